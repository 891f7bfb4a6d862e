"""SAM behaves as any torch optimizer does: groups, schedulers, checkpoints, hooks, copies, clipping by the suite."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bench.core.spec import ComponentSpec
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM
from bench.training.step import build_optimizer

from .helpers import Watch, flat, over_all_bases, problem, same_bits, snapshot, spec, state_of

MakeBase = Callable[..., Optimizer]


def momentum_sgd(model: nn.Module, **settings: Any) -> SGD:
    return SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **settings})


def trained(steps: int = 2, seed: int = 0, **settings: Any) -> tuple[nn.Module, SAM, Callable[[], torch.Tensor]]:
    model, loss = problem(seed=seed)
    optimizer = SAM(momentum_sgd(model), model=model, **settings)
    for _ in range(steps):
        optimizer.step(Watch(optimizer, loss))
    return model, optimizer, loss


# ---- one list of groups, one state -------------------------------------------------------------------------------


def test_it_is_an_optimizer_with_the_bases_groups_state_and_defaults() -> None:
    model, _ = problem()
    base = momentum_sgd(model)
    optimizer = SAM(base, rho=0.2)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.param_groups is base.param_groups
    assert optimizer.state is base.state
    assert optimizer.defaults == {**base.defaults, "rho": 0.2}


def test_groups_and_state_are_still_the_bases_after_a_load() -> None:
    _, source, _ = trained()
    model, optimizer, _ = trained(seed=1)
    optimizer.load_state_dict(source.state_dict())
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert same_bits(state_of(optimizer.base), state_of(source))
    assert all(p is q for p, q in zip(model.parameters(), optimizer.base.param_groups[0]["params"], strict=True))


@pytest.mark.parametrize("load", [False, True], ids=["fresh", "after a load"])
def test_the_base_uses_the_lr_that_a_scheduler_gives_the_wrapper(load: bool) -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.1)
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    if load:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for step in range(4):
        optimizer.step(watch := Watch(optimizer, loss))
        update = flat(watch.weights[0]) - flat(model.parameters())
        torch.testing.assert_close(update, 0.1 * 0.5**step * flat(watch.gradients[1]), rtol=1e-9, atol=1e-12)
        schedule.step()
        assert optimizer.base.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.1 * 0.5 ** (step + 1)


SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda step: 1 / (step + 1)),
    "OneCycleLR": lambda optimizer: OneCycleLR(optimizer, max_lr=0.2, total_steps=6, cycle_momentum=True),
    "ReduceLROnPlateau": lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
}


def advance(schedule: LRScheduler) -> None:
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(1.0)
    else:
        schedule.step()


@over_all_bases
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
def test_torchs_schedulers_drive_it_as_they_drive_the_base(
    make: Callable[[Optimizer], LRScheduler], base: MakeBase
) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = SAM(base(model.parameters()), rho=0.0), base(twin.parameters())
    schedule, plain_schedule = make(optimizer), make(plain)
    first_lr = plain.param_groups[0]["lr"]
    for _ in range(4):
        optimizer.step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))  # type: ignore[arg-type]
        advance(schedule)
        advance(plain_schedule)
        for name in ("lr", "momentum", "betas"):
            assert optimizer.base.param_groups[0].get(name) == plain.param_groups[0].get(name)
    assert plain.param_groups[0]["lr"] != first_lr
    assert same_bits(model.parameters(), twin.parameters())


def test_a_scheduler_built_over_the_base_before_wrapping_works_too() -> None:
    model, loss = problem()
    base = momentum_sgd(model)
    schedule = LambdaLR(base, lambda step: 0.5**step)
    optimizer = SAM(base)
    optimizer.step(Watch(optimizer, loss))
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_group_added_later_is_the_bases_and_is_perturbed() -> None:
    model, loss = problem(torch.float64)
    first, *rest = model.parameters()
    optimizer = SAM(SGD([first], lr=0.1, momentum=0.9), rho=0.3)
    optimizer.add_param_group({"params": rest[:1]})
    optimizer.add_param_group({"params": rest[1:], "rho": 0.0, "lr": 0.5})
    assert optimizer.base.param_groups is optimizer.param_groups
    assert [(g["rho"], g["lr"], g["momentum"]) for g in optimizer.param_groups] == [
        (0.3, 0.1, 0.9),
        (0.3, 0.1, 0.9),
        (0.0, 0.5, 0.9),
    ]
    optimizer.step(watch := Watch(optimizer, loss))
    assert [bool(e.any()) for e in watch.e] == [True, True, False, False]
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), watch.weights[0], strict=True))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    model, optimizer, _ = trained()
    optimizer.zero_grad(set_to_none=set_to_none)
    for p in model.parameters():
        assert p.grad is None if set_to_none else p.grad is not None and not p.grad.any()


def test_repr_names_the_method_and_its_groups() -> None:
    _, optimizer, _ = trained(rho=0.125)
    lines = {line.strip() for line in repr(optimizer).splitlines()}
    assert lines >= {"SAM (", "Parameter Group 0", "rho: 0.125", "momentum: 0.9"}


# ---- hooks -------------------------------------------------------------------------------------------------------


def test_hooks_on_the_method_and_on_its_base_fire_once() -> None:
    _, optimizer, loss = trained()
    fired: list[str] = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: fired.append("pre"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: fired.append("post"))
    optimizer.base.register_step_post_hook(lambda o, args, kwargs: fired.append("base"))
    optimizer.step(Watch(optimizer, loss, lambda call: fired.append(f"pass {call}")))
    assert fired == ["pre", "pass 1", "pass 2", "base", "post"]


def test_hooks_on_all_optimizers_fire_once_a_step_and_for_the_base_by_itself() -> None:
    _, optimizer, loss = trained()
    fired: list[str] = []
    handles = [
        register_optimizer_step_pre_hook(lambda o, args, kwargs: fired.append(f"before {type(o).__name__}")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: fired.append(f"after {type(o).__name__}")),
    ]
    optimizer.step(Watch(optimizer, loss))
    optimizer.base.step()
    for handle in handles:
        handle.remove()
    assert fired == ["before SAM", "after SAM", "before SGD", "after SGD"]


def test_a_profile_shows_its_step_and_the_bases() -> None:
    _, optimizer, loss = trained()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step(Watch(optimizer, loss))
    counts = {event.key: event.count for event in profile.key_averages()}
    assert (counts["Optimizer.step#SAM.step"], counts["Optimizer.step#SGD.step"]) == (1, 1)


@pytest.mark.parametrize("apart", [False, True], ids=["step(closure)", "backward, step()"])
def test_a_scheduler_sees_its_steps_and_warns_where_there_was_none(apart: bool) -> None:
    model, loss = problem()
    optimizer = SAM(momentum_sgd(model), model=model)
    LambdaLR(optimizer, lambda step: 1.0)  # warnings are errors here
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    if apart:
        optimizer.backward(Watch(optimizer, loss))
        optimizer.step()
    else:
        optimizer.step(Watch(optimizer, loss))
    schedule.step()
    _, unstepped, _ = trained(steps=0)
    schedule = LambdaLR(unstepped, lambda step: 0.5**step)
    with pytest.warns(UserWarning, match=r"lr_scheduler\.step\(\)` before `optimizer\.step\(\)"):
        schedule.step()


def test_hooks_on_saving_and_loading_fire_once() -> None:
    _, optimizer, _ = trained()
    fired: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: fired.append("save pre"))
    optimizer.register_state_dict_post_hook(lambda o, state: fired.append("save post"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: fired.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: fired.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert fired == ["save pre", "save post", "load pre", "load post"]


# ---- checkpoints and copies --------------------------------------------------------------------------------------


def test_a_checkpoint_goes_through_a_file_of_tensors_and_plain_values(tmp_path: Path) -> None:
    model, optimizer, loss = trained(rho=0.2)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    twin, resumed, twin_loss = trained(steps=0)  # rho 0.05: the file's rho holds, as its lr does
    twin.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss))
        resumed.step(Watch(resumed, twin_loss))
    assert resumed.param_groups[0]["rho"] == 0.2
    assert same_bits(model.parameters(), twin.parameters())


def test_the_checkpoint_of_a_plain_base_loads_and_rho_stays() -> None:
    model, loss = problem()
    plain = momentum_sgd(model)
    plain.step(Watch(plain, loss))
    assert "rho" not in plain.state_dict()["param_groups"][0]
    optimizer = SAM(momentum_sgd(model, lr=0.7), rho=0.3)
    optimizer.load_state_dict(plain.state_dict())
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["lr"]) == (0.3, 0.1)
    assert same_bits(state_of(optimizer), state_of(plain))
    optimizer.step(watch := Watch(optimizer, loss))
    assert flat(watch.e).norm().item() == pytest.approx(0.3, rel=1e-4)


def test_its_checkpoint_loads_into_a_plain_base() -> None:
    model, optimizer, _ = trained()
    plain = momentum_sgd(model)
    plain.load_state_dict(optimizer.state_dict())
    assert same_bits(state_of(plain), state_of(optimizer))


def pickled(parts: Any) -> Any:
    return pickle.loads(pickle.dumps(parts))


@over_all_bases
@pytest.mark.parametrize("scheduled", [False, True], ids=["bare", "scheduled"])
@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
def test_a_copy_goes_on_alike_and_apart(clone: Callable[[Any], Any], scheduled: bool, base: MakeBase) -> None:
    model, loss = problem()
    optimizer = SAM(base(model.parameters()), rho=0.2, adaptive=True, eta=0.02, model=model, clip_norm=3.0)
    if scheduled:
        LambdaLR(optimizer, lambda step: 1.0)
    optimizer.step(Watch(optimizer, lambda: loss() * float("nan")))
    optimizer.step(Watch(optimizer, loss))
    twin = clone(optimizer)
    assert type(twin) is SAM
    assert twin.param_groups is twin.base.param_groups
    assert twin.state is twin.base.state
    assert (twin.adaptive, twin.eta, twin.clip_norm, twin.skipped_steps) == (True, 0.02, 3.0, 1)
    model_of_twin = twin.model
    assert isinstance(model_of_twin, nn.Module)
    assert all(p is q for p, q in zip(model_of_twin.parameters(), twin.param_groups[0]["params"], strict=True))

    before = snapshot(model.parameters())
    torch.manual_seed(0)
    x, y = torch.randn(16, 6), torch.randn(16, 3)
    twin.step(Watch(twin, lambda: nn.functional.mse_loss(model_of_twin(x), y)))
    assert same_bits(model.parameters(), before)
    optimizer.step(Watch(optimizer, lambda: nn.functional.mse_loss(model(x), y)))
    assert same_bits(model.parameters(), model_of_twin.parameters())
    assert same_bits(state_of(optimizer), state_of(twin))
    twin.param_groups[0]["lr"] = 9.0
    assert optimizer.param_groups[0]["lr"] < 9.0


# ---- as the suite builds it --------------------------------------------------------------------------------------

SGD_AT_1 = ComponentSpec(name="sgd", params={"lr": 1.0, "momentum": 0.0})


@pytest.mark.parametrize(
    ("method", "base"),
    [
        (SGD_AT_1, None),
        (ComponentSpec(name="sam", params={"rho": 0.3}), SGD_AT_1),
        (ComponentSpec(name="asam"), SGD_AT_1),
    ],
    ids=["sgd", "sam", "asam"],
)
def test_build_optimizer_puts_clip_norm_on_methods_and_on_plain_optimizers(
    method: ComponentSpec, base: ComponentSpec | None
) -> None:
    model, loss = problem(torch.float64)
    optimizer = build_optimizer(spec(method, base, clip_norm=1e-3), model)
    assert isinstance(optimizer, OptimizerWrapper)
    optimizer.step(watch := Watch(optimizer, loss))
    update, g = flat(watch.weights[0]) - flat(model.parameters()), flat(watch.gradients[-1])
    torch.testing.assert_close(update, 1e-3 * g / (g.norm() + 1e-6), rtol=1e-9, atol=1e-12)
    if method.name == "sam":
        assert flat(watch.e).norm().item() == pytest.approx(0.3)


def test_build_optimizer_without_clip_norm_leaves_a_plain_optimizer_plain() -> None:
    model, _ = problem()
    assert type(build_optimizer(spec(SGD_AT_1), model)) is SGD


def test_build_optimizer_gives_sam_the_model_and_leaves_out_frozen_parameters() -> None:
    model, _ = problem()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    optimizer = build_optimizer(spec(ComponentSpec(name="sam", params={"rho": 0.3}), SGD_AT_1), model)
    assert isinstance(optimizer, SAM)
    assert optimizer.model is model
    assert not any(p is frozen for group in optimizer.param_groups for p in group["params"])


def test_build_optimizer_hands_over_what_the_experiment_says() -> None:
    model, _ = problem()
    base = ComponentSpec(name="sgd", params={"lr": 0.3, "momentum": 0.8, "nesterov": True, "weight_decay": 0.02})
    optimizer = build_optimizer(spec(ComponentSpec(name="asam", params={"rho": 0.7, "eta": 0.05}), base), model)
    assert isinstance(optimizer, SAM)
    assert (optimizer.param_groups[0]["rho"], optimizer.eta, optimizer.adaptive) == (0.7, 0.05, True)
    assert {name: optimizer.param_groups[0][name] for name in base.params} == base.params


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_build_optimizer_hands_adam_its_moments(name: str) -> None:
    model, _ = problem()
    params = {"lr": 0.3, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.02}
    group = build_optimizer(spec(ComponentSpec(name=name, params=params)), model).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.3, (0.8, 0.99), 1e-6, 0.02)
    assert group["decoupled_weight_decay"] is (name == "adamw")


def test_a_negative_rho_in_a_group_is_refused() -> None:
    weights = [{"params": [nn.Parameter(torch.ones(1))], "rho": -0.1}]
    with pytest.raises(ValueError, match=r"rho must be >= 0, got -0\.1"):
        SAM(torch.optim.SGD(weights, lr=0.1))
    optimizer = SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1))
    with pytest.raises(ValueError, match="rho must be >= 0"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "rho": -1.0})
