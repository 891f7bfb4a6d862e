"""What torch asks of its own optimizers, asked of SAM around each of them.

The rules are those of torch's optimizer tests, over its 15 optimizers. What SAM cannot mean there, and why:

- LBFGS evaluates its closure itself, along a line: refused at construction (see test_bases).
- `step()` without a closure, after gradients were written by hand: SAM needs the gradient at another point. The tests
  hand a closure over that writes them.
- `differentiable=True`: the step of SAM is no function that can be differentiated, since weights are moved and put back
  outside of autograd.
- `capturable=True`: for CUDA graphs, on a GPU only.
- hooks on the steps of all optimizers: torch counts a wrapper and its base as one step, and so do we.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bench.optim.gsam import GSAM
from bench.optim.sam import SAM

from .helpers import Watch, flat, same_bits, snapshot

Make = Callable[..., Optimizer]

DENSE: dict[str, Make] = {
    "Adadelta": partial(Adadelta, lr=1.0),
    "Adafactor": partial(Adafactor, lr=0.01),
    "Adagrad": partial(Adagrad, lr=0.1),
    "Adam": partial(Adam, lr=0.01),
    "Adamax": partial(Adamax, lr=0.01),
    "AdamW": partial(AdamW, lr=0.01),
    "ASGD": partial(ASGD, lr=0.02),
    "Muon": partial(Muon, lr=0.01),
    "NAdam": partial(NAdam, lr=0.01),
    "RAdam": partial(RAdam, lr=0.01),
    "RMSprop": partial(RMSprop, lr=0.005, momentum=0.9),
    "Rprop": partial(Rprop, lr=0.01),
    "SGD": partial(SGD, lr=0.02, momentum=0.9),
}
"""All but LBFGS, which is refused, and SparseAdam, which has a test of its own."""

REAL_ONLY = {"Muon", "Adafactor"}
"""Those that torch has for no complex parameters."""

FLAGS: dict[str, tuple[str, ...]] = {
    "SGD": ("foreach", "fused", "maximize"),
    "Adam": ("foreach", "fused", "maximize"),
    "AdamW": ("foreach", "fused", "maximize"),
    "Adagrad": ("foreach", "fused", "maximize"),
    "Muon": (),
    "Adafactor": ("foreach", "maximize"),
} | dict.fromkeys(("Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop"), ("foreach", "maximize"))

every_base = pytest.mark.parametrize("name", DENSE)


class Line:
    """(W x + b)^2 summed, over matrices of two sizes, so that Muon takes them, too."""

    def __init__(self, name: str, rho: float = 0.01, lr: Any = None, **flags: Any) -> None:
        torch.manual_seed(0)
        self.weights = [nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10, 1))]
        self.x = torch.randn(5, 1)
        settings = flags | ({} if lr is None else {"lr": lr})
        self.optimizer = SAM(DENSE[name](self.weights, **settings), rho=rho)

    def loss(self) -> Tensor:
        w, b = self.weights
        return (w @ self.x + b).square().sum()

    def step(self) -> float:
        return self.optimizer.step(Watch(self.optimizer, self.loss)).item()


# ---- the right way -----------------------------------------------------------------------------------------------


@every_base
@pytest.mark.parametrize("scheduled", [False, True], ids=["", "scheduled"])
def test_a_loop_goes_the_right_way(name: str, scheduled: bool) -> None:
    line = Line(name)
    schedules: list[Any] = []
    if scheduled:
        schedules = [StepLR(line.optimizer, gamma=0.9, step_size=10), ReduceLROnPlateau(line.optimizer)]
    first = line.loss().item()
    for _ in range(20):
        value = line.step()
        for schedule in schedules:
            schedule.step(*([value] if isinstance(schedule, ReduceLROnPlateau) else []))
    assert line.loss().item() < first


@pytest.mark.parametrize(("name", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags])
def test_every_implementation_comes_to_the_same(name: str, flag: str) -> None:
    """Loops, foreach and fused kernels; to maximize goes up."""
    plain, other = Line(name, foreach=False), Line(name, **{flag: True})
    first = plain.loss().item()
    for _ in range(5):
        plain.step()
        other.step()
    if flag == "maximize":
        assert other.loss().item() > first > plain.loss().item()
    else:
        torch.testing.assert_close(flat(other.weights), flat(plain.weights), rtol=1e-4, atol=1e-5)


@every_base
def test_a_group_of_lr_0_stays_and_the_other_moves(name: str) -> None:
    if name == "Rprop":
        pytest.skip("takes lr for its first step's length only, and has a shortest one")
    line = Line(name)
    still, moving = line.weights
    line.optimizer = SAM(DENSE[name]([{"params": [still], "lr": 0.0}, {"params": [moving]}]), rho=0.01)
    before = snapshot(line.weights)
    for _ in range(3):
        line.step()
    assert same_bits([still], before[:1])
    assert not torch.equal(moving, before[1])


@every_base
def test_weight_decay_of_a_group_is_that_groups(name: str) -> None:
    if name == "Rprop":
        pytest.skip("has no weight decay")
    torch.manual_seed(0)
    first, second = (nn.Parameter(torch.ones(3, 3)) for _ in range(2))
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": [second], "weight_decay": 0.0}]
    optimizer = SAM(DENSE[name](groups), rho=0.01)
    for _ in range(3):
        optimizer.step(Watch(optimizer, lambda: (first + second).sum()))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adadelta", "RMSprop"])
def test_lr_may_be_a_tensor(name: str) -> None:
    plain, tensor = Line(name, lr=0.01, foreach=False), Line(name, lr=torch.tensor(0.01), foreach=False)
    for _ in range(4):
        plain.step()
        tensor.step()
    torch.testing.assert_close(flat(tensor.weights), flat(plain.weights), rtol=1e-5, atol=1e-6)


# ---- nothing to do -----------------------------------------------------------------------------------------------


@every_base
def test_parameters_without_gradients_stay(name: str) -> None:
    weights = [nn.Parameter(torch.randn(2, 3), requires_grad=False) for _ in range(2)]
    before = snapshot(weights)
    optimizer = SAM(DENSE[name](weights))
    returned = optimizer.step(lambda: torch.tensor([1]))
    assert returned.tolist() == [1]
    assert same_bits(weights, before)


@every_base
def test_gradients_of_zero_that_are_there_move_nothing(name: str) -> None:
    weights = [nn.Parameter(torch.randn(3, 2)) for _ in range(2)]
    optimizer = SAM(DENSE[name](weights, **({} if name == "Rprop" else {"weight_decay": 0.0})))
    before = snapshot(weights)
    for w in weights:
        w.grad = torch.zeros_like(w)
    optimizer.step(lambda: torch.tensor([1]))
    assert same_bits(weights, before)


# ---- states ------------------------------------------------------------------------------------------------------


@every_base
@pytest.mark.parametrize("way", ["file", "older", "deepcopy", "pickle"])
def test_it_goes_on_as_if_it_had_not_been_put_away(name: str, way: str, tmp_path: Path) -> None:
    """A file of tensors and plain values; one from before torch had today's flags; copies."""
    line, other = Line(name), Line(name)
    for _ in range(3):
        line.step()
    if way in ("deepcopy", "pickle"):
        other = copy.deepcopy(line) if way == "deepcopy" else pickle.loads(pickle.dumps(line))
        assert all(p is q for p, q in zip(other.weights, other.optimizer.param_groups[0]["params"], strict=True))
    else:
        torch.save(line.optimizer.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        if way == "older":
            always_had = {"maximize", "differentiable"} if name in ("Adafactor", "Muon") else set()
            for flag in {"foreach", "fused", "maximize", "differentiable", "capturable"} - always_had:
                state["param_groups"][0].pop(flag, None)
        for mine, theirs in zip(other.weights, line.weights, strict=True):
            mine.data.copy_(theirs.data)
        other.optimizer.load_state_dict(copy.deepcopy(state))
    for _ in range(3):
        line.step()
        other.step()
    assert same_bits(line.weights, other.weights)
    assert other.optimizer.param_groups is other.optimizer.base.param_groups


@every_base
def test_hooks_around_steps_and_states_fire_once(name: str) -> None:
    line = Line(name)
    fired: list[str] = []
    handles: list[Any] = [
        line.optimizer.register_step_pre_hook(lambda o, args, kwargs: fired.append("before")),
        line.optimizer.register_step_post_hook(lambda o, args, kwargs: fired.append("after")),
        register_optimizer_step_pre_hook(lambda o, args, kwargs: fired.append(f"before {type(o).__name__}")),
        register_optimizer_step_post_hook(lambda o, args, kwargs: fired.append(f"after {type(o).__name__}")),
    ]
    try:
        line.step()
        line.step()
    finally:
        for handle in handles:
            handle.remove()
    line.step()
    assert fired == ["before SAM", "before", "after", "after SAM"] * 2


def test_printing_names_the_method_and_every_group() -> None:
    line = Line("Adadelta", rho=0.25)
    assert repr(line.optimizer).startswith("SAM (\nParameter Group 0\n")
    assert "sam_rho: 0.25" in repr(line.optimizer)


# ---- kinds of numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SAM, partial(SAM, adaptive=True), GSAM], ids=["sam", "asam", "gsam"])
@pytest.mark.parametrize("name", [name for name in DENSE if name not in REAL_ONLY])
def test_a_complex_parameter_is_its_two_parts(name: str, make: Any) -> None:
    """As for torch's own. The gradient is a conjugate, which autograd may leave as a mark only."""
    torch.manual_seed(0)
    z = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
    parts = nn.Parameter(torch.view_as_real(z.detach()).clone())
    a = torch.randn(4, 3, dtype=torch.complex128)

    def loss(z: Tensor) -> Tensor:
        return (z * a - 1).abs().square().sum() + (z.conj() * a).real.sum()

    one, other = make(DENSE[name]([z]), rho=0.1), make(DENSE[name]([parts]), rho=0.1)
    before = z.detach().clone()
    for step in range(4):
        one.step(watch := Watch(one, lambda: loss(z)))
        other.step(Watch(other, lambda: loss(torch.view_as_complex(parts))))
        if step == 0 and make is SAM:
            assert torch.linalg.vector_norm(watch.e[0]).item() == pytest.approx(0.1)
    torch.testing.assert_close(torch.view_as_real(z), parts, rtol=1e-9, atol=1e-10)
    assert not torch.equal(z, before)
    one.param_groups[0]["lr"] = 0.0
    before = z.detach().clone()
    one.step(Watch(one, lambda: loss(z) * float("inf")))
    assert torch.equal(z, before)
    assert one.skipped_steps == 1


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("seen", [False, True], ids=["SparseAdam", "Adagrad"])
def test_sparse_gradients_go_to_bases_that_take_them(seen: bool) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True)
    base: Optimizer = Adagrad(table.parameters(), lr=0.1) if seen else SparseAdam(list(table.parameters()), lr=0.1)
    optimizer = SAM(base, rho=0.1)
    first = before = table.weight.detach().clone()
    for _ in range(20):
        loss = optimizer.step(Watch(optimizer, lambda: table(torch.tensor([1, 4, 4])).square().sum()))
    assert loss < first[[1, 4, 4]].square().sum()
    assert same_bits(table.weight[[0, 2, 3, 5]], before[[0, 2, 3, 5]])


def test_parameters_of_several_dtypes_share_one_norm() -> None:
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, dtype=dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    optimizer = SAM(SGD(weights, lr=0.1), rho=0.3)
    optimizer.step(watch := Watch(optimizer, lambda: torch.stack([w.double().square().sum() for w in weights]).sum()))
    e = torch.cat([part.double() for part in watch.e])
    assert e.norm().item() == pytest.approx(0.3, rel=0.02)
