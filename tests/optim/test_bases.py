"""SAM over bases that have settings of SAM's names, that are no longer fused, or that it cannot be around."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from pytorch_optimizer import Lookahead
from torch import nn
from torch.optim import LBFGS, SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer

from bench.core.errors import BenchError
from bench.core.spec import ComponentSpec
from bench.optim.ae_sam import AESAM
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.ema import EMA
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.functional_sam import FunctionalSAM
from bench.optim.gsam import GSAM
from bench.optim.le_sam import LESAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.sampa import SAMPa
from bench.optim.swa import SWA
from bench.optim.wsam import WSAM
from bench.optim.xsam import XSAM
from bench.training.step import build_optimizer

from .helpers import Watch, flat, problem, same_bits, spec

# ---- settings of the same name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True], ids=["adadelta", "adadelta in a Lookahead"])
def test_the_rho_of_adadelta_is_adadeltas_and_sam_has_its_own(inside: bool) -> None:
    model, loss = problem(torch.float64)
    base: Optimizer = Adadelta(model.parameters(), lr=0.1, rho=0.8)
    optimizer = SAM(Lookahead(base) if inside else base, rho=0.05)
    optimizer.step(watch := Watch(optimizer, loss))
    assert flat(watch.e).norm().item() == pytest.approx(0.05)
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["sam_rho"]) == (0.8, 0.05)
    assert optimizer.keys == {"rho": "sam_rho"}


def test_over_adadelta_rho_is_a_groups_own_is_scheduled_and_is_saved_as_over_any_base() -> None:
    model, loss = problem(torch.float64)
    first, *rest = model.parameters()
    groups = [{"params": [first], "sam_rho": 0.4}, {"params": rest, "rho": 0.7}]
    optimizer = GSAM(Adadelta(groups, lr=0.1), rho=0.2, rho_schedule="linear", total_steps=4)
    assert [group["gsam_rho"] for group in optimizer.param_groups] == [0.2, 0.2], "sam_rho is another method's"
    assert [group["rho"] for group in optimizer.param_groups] == [0.9, 0.7]
    radii = []
    for step in range(3):
        if step == 1:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        if step == 2:
            optimizer = copy.deepcopy(optimizer)
            loss = partial(_loss_over, optimizer)
        optimizer.step(watch := Watch(optimizer, loss))
        radii.append(flat(watch.e).norm().item())
    assert radii == pytest.approx([0.2, 0.15, 0.1])


def _loss_over(optimizer: Optimizer) -> torch.Tensor:
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.stack([(p**4).sum() for p in weights]).sum()


class Counting(SGD):
    """A base whose groups say how many steps it has done."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.defaults["steps_done"] = 100
        for group in self.param_groups:
            group["steps_done"] = 100


def test_every_setting_that_a_method_puts_into_groups_leaves_the_bases_alone() -> None:
    model, loss = problem()
    optimizer = LookSAM(Counting(model.parameters(), lr=0.1), rho=0.05, k=2)
    calls = []
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        calls.append(watch.calls)
    assert calls == [2, 1, 2]
    assert optimizer.steps_done == optimizer.param_groups[0]["looksam_steps_done"] == 3
    assert optimizer.param_groups[0]["steps_done"] == 100


def test_a_rho_that_is_negative_is_told_under_its_name() -> None:
    with pytest.raises(ValueError, match=r"SAM: sam_rho must be >= 0, got -0\.1"):
        SAM(Adadelta([{"params": [nn.Parameter(torch.ones(1))], "sam_rho": -0.1}]))


# ---- fused, or no longer -----------------------------------------------------------------------------------------

FUSABLE: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9),
    "sgd without momentum": partial(SGD, lr=0.1),
    "adam": partial(Adam, lr=0.01),
    "adamw": partial(AdamW, lr=0.01),
    "adagrad": partial(Adagrad, lr=0.01),
}


@pytest.mark.parametrize("make", FUSABLE.values(), ids=FUSABLE)
@pytest.mark.parametrize("saved_fused", [False, True], ids=["unfused into fused", "fused into unfused"])
def test_a_checkpoint_goes_from_unfused_bases_into_fused_ones_and_back(
    make: Callable[..., Optimizer], saved_fused: bool
) -> None:
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    saved = SAM(make(model.parameters(), fused=saved_fused), rho=0.1)
    loaded = SAM(make(twin.parameters(), fused=not saved_fused), rho=0.1)
    saved.step(Watch(saved, loss))
    twin.load_state_dict(model.state_dict())
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert bool(loaded.param_groups[0]["fused"]) == saved_fused, "as torch's own: the checkpoint says it"
    for _ in range(2):
        saved.step(Watch(saved, loss))
        loaded.step(Watch(loaded, twin_loss))
    torch.testing.assert_close(flat(twin.parameters()), flat(model.parameters()), rtol=1e-12, atol=1e-14)
    before = [p.detach().clone() for p in twin.parameters()]
    loaded.step(Watch(loaded, lambda: twin_loss() * float("inf")))
    assert same_bits(twin.parameters(), before)
    assert loaded.skipped_steps == 1


def test_one_group_may_be_unfused_in_a_fused_base() -> None:
    model, loss = problem()
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first], "fused": False}, {"params": rest}]
    optimizer = SAM(SGD(groups, lr=0.1, momentum=0.9, fused=True))
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss))
    assert optimizer.skipped_steps == 0


def test_clip_norm_of_a_run_is_not_for_a_base_that_needs_a_closure(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = problem()
    monkeypatch.setattr("bench.training.step.chosen_optimizer", lambda choice, weights, model: LBFGS(weights))
    with pytest.raises(BenchError, match=r"train\.clip_norm: OptimizerWrapper cannot wrap LBFGS"):
        build_optimizer(spec(ComponentSpec(name="sgd"), clip_norm=1.0), model)


# ---- what it cannot be around ------------------------------------------------------------------------------------

METHODS = [
    SAM,
    AESAM,
    FunctionalSAM,
    GSAM,
    LESAM,
    SAMPa,
    WSAM,
    XSAM,
    LookSAM,
    FriendlySAM,
    ESAM,
    MomentumSAM,
    RandomDirection,
    EMA,
    SWA,
    OptimizerWrapper,
]
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_a_base_whose_step_needs_a_closure_is_refused_at_construction(method: Any) -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match=f"{method.__name__} cannot wrap LBFGS, whose step needs a closure"):
        method(LBFGS(model.parameters()))
    with pytest.raises(ValueError, match=f"{method.__name__} cannot wrap SAM, whose step needs a closure"):
        method(SAM(SGD(model.parameters(), lr=0.1)))


@every_method
def test_the_call_of_other_packages_gets_the_one_that_is_meant_told(method: Any) -> None:
    """davda54/sam, and after it pytorch_optimizer, take parameters, a class, and the class's settings."""
    model, _ = problem()
    words = rf"{method.__name__} wraps a constructed optimizer.*torch\.optim\.SGD\(model\.parameters\(\), lr=0\.1\)"
    calls: list[Callable[[], Any]]
    if issubclass(method, EMA | SWA) or method is OptimizerWrapper:
        calls = [lambda: method(model.parameters()), lambda: method(SGD)]
    else:
        calls = [
            lambda: method(model.parameters(), SGD, lr=0.1, momentum=0.9),
            lambda: method(model.parameters(), base_optimizer=SGD, rho=0.05, lr=0.1),
            lambda: method(SGD, rho=0.05),
        ]
    for call in calls:
        with pytest.raises(TypeError, match=words):
            call()
    with pytest.raises(TypeError, match="got the class SGD"):
        method(SGD)
