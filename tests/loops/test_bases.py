"""SAM and its kin over bases that people have: what such a base does by itself, it does within them."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from bench.optim.ae_sam import AESAM
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.ema import EMA
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.le_sam import LESAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.sampa import SAMPa
from bench.optim.wsam import WSAM

from .bases import BASES, TORCH, Base, batches, to_training

pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.usefixtures("one_thread", "accelerate_forgets"),
]

METHODS: dict[str, Callable[..., OptimizerWrapper]] = {
    "sam": SAM,
    "asam": partial(SAM, adaptive=True),
    "gsam": GSAM,
    "le-sam": partial(LESAM, anneal_from=None),
    "looksam": partial(LookSAM, k=2, alpha=0.5),
    "friendly-sam": FriendlySAM,
    "sampa": SAMPa,
    "ae-sam": partial(AESAM, lambda_1=0.0, lambda_2=0.0),
    "wsam": partial(WSAM, gamma=0.5, decouple=False),  # decoupled it refuses schedule-free bases
    "esam": ESAM,
    "momentum-sam": MomentumSAM,
    "random-direction": RandomDirection,
    "ema": lambda base, rho, model: EMA(base, model=model),
}
PAIRS = [
    pytest.param(base, name, id=f"{name}-{base_name}")
    for base_name, base in BASES.items()
    for name in METHODS
    if (name != "momentum-sam" or base.momentum)
    and (not base.takes_sparse or name in ("sam", "asam", "le-sam", "momentum-sam", "random-direction", "ema"))
    # ESAM takes other numbers of examples; what the others make of several passes such a base would not see.
    and (not base.counts_examples or name not in ("esam", "gsam", "looksam", "sampa", "wsam"))
]
WITHOUT_MOMENTUM = {name: base for name, base in BASES.items() if not base.momentum}
every_pair = pytest.mark.parametrize(("base", "name"), PAIRS)
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)


def objects(base: Base, method: Callable[..., OptimizerWrapper] | None, rho: float = 0.1) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = base.net().to(base.dtype)
    optimizer = base.optimizer(model)
    if method is not None:
        optimizer = method(optimizer, rho=rho, model=model)
    to_training(optimizer)
    return model, optimizer


def steps(model: nn.Module, optimizer: Any, base: Base, which: range) -> None:
    for number in which:
        torch.manual_seed(number)
        x, y = batches(base)[number]

        def losses(examples: Tensor | slice = slice(None), x: Tensor = x, y: Tensor = y) -> Tensor:
            found: Tensor = (model(x[examples]) - y[examples]).square().mean(1)
            return found

        def closure(losses: Callable[[], Tensor] = losses) -> Tensor:
            optimizer.zero_grad()
            loss = losses().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(losses if getattr(optimizer, "takes_losses", False) else closure)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# ---- checkpoints -------------------------------------------------------------------------------------------------


@every_pair
def test_three_steps_save_load_three_steps_are_six_steps_to_the_bit(base: Base, name: str) -> None:
    model, optimizer = objects(base, METHODS[name])
    steps(model, optimizer, base, range(3))
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, resumed_optimizer = objects(base, METHODS[name], rho=0.3)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    for each in ((model, optimizer), (resumed, resumed_optimizer)):
        steps(*each, base, range(3, 6))
    assert torch.equal(weights(model), weights(resumed))


@every_base
def test_a_checkpoint_of_the_bare_base_loads_and_rho_stays(base: Base) -> None:
    plain_model, plain = objects(base, None)
    steps(plain_model, plain, base, range(3))
    saved = through_a_file(plain.state_dict())
    model, optimizer = objects(base, SAM, rho=0.0)  # the base's own steps, so that all of it can be compared
    optimizer.param_groups[0][optimizer.keys["rho"]] = 0.0
    model.load_state_dict(plain_model.state_dict())
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0][optimizer.keys["rho"]] == 0.0
    for each in ((plain_model, plain), (model, optimizer)):
        steps(*each, base, range(3, 6))
    assert torch.equal(weights(plain_model), weights(model))


def test_a_groups_own_rho_stays_when_a_checkpoint_has_none() -> None:
    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    groups: list[dict[str, Any]] = [{"params": parameters[:1], "rho": 0.4}, {"params": parameters[1:]}]
    optimizer = SAM(torch.optim.SGD(groups, lr=0.1), rho=0.05)
    plain = [{"params": [parameter]} for parameter in parameters]
    optimizer.load_state_dict(torch.optim.SGD(plain, lr=0.2).state_dict())
    assert [(group["lr"], group["rho"]) for group in optimizer.param_groups] == [(0.2, 0.4), (0.2, 0.05)]


@every_base
def test_after_a_load_the_base_steps_with_the_lr_that_a_scheduler_sets(base: Base) -> None:
    model, optimizer = objects(base, SAM)
    twin, resumed = objects(base, SAM)
    steps(model, optimizer, base, range(3))
    twin.load_state_dict(model.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for scheduled, factor in ((optimizer, 1.0), (resumed, 0.5)):
        torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step, factor=factor: factor)  # type: ignore[misc]
    for each in ((model, optimizer), (twin, resumed)):
        steps(*each, base, range(3, 6))
    assert torch.equal(weights(model), weights(twin)) is not base.follows_lr


# ---- what it does ------------------------------------------------------------------------------------------------


@every_pair
def test_at_a_vanishing_rho_it_is_the_bare_base(base: Base, name: str) -> None:
    if name == "looksam":
        method: Callable[..., OptimizerWrapper] = partial(
            LookSAM, k=2, alpha=0.0
        )  # what is reused has a length of its own
    elif name == "esam":
        method = partial(ESAM, gamma=1.0)
    elif name == "sampa":
        method = partial(SAMPa, lmbda=0.0)  # else it also follows the gradient at y, whatever rho
    else:
        method = METHODS[name]
    plain_model, plain = objects(base, None)
    start = weights(plain_model)
    steps(plain_model, plain, base, range(6))
    model, optimizer = objects(base, method, rho=1e-9 if base.dtype == torch.float64 else 1e-7)
    steps(model, optimizer, base, range(6))
    way = (weights(plain_model) - start).norm()
    assert way > 0
    assert (weights(model) - weights(plain_model)).norm() <= base.near * way


@every_pair
def test_rho_counts(base: Base, name: str) -> None:
    """So that none of the other tests here would pass over a base that no perturbation reaches."""
    if name == "ema":
        pytest.skip("has no rho")
    start, ends = weights(objects(base, None)[0]), []
    for rho in (0.0, 0.1):
        model, optimizer = objects(base, METHODS[name], rho=rho)
        steps(model, optimizer, base, range(6))
        ends.append(weights(model))
    assert (ends[1] - ends[0]).norm() > 1e-4 * (ends[0] - start).norm()


@pytest.mark.parametrize("base", WITHOUT_MOMENTUM.values(), ids=WITHOUT_MOMENTUM)
def test_momentum_sam_refuses_a_base_that_keeps_no_momentum(base: Base) -> None:
    """At construction where its settings say so, else after its first step."""

    def some_steps() -> None:
        model, optimizer = objects(base, MomentumSAM)
        steps(model, optimizer, base, range(2))

    with pytest.raises(ValueError, match="momentum"):
        some_steps()


def test_the_list_has_all_of_torchs_optimizers_but_the_one_that_is_refused() -> None:
    theirs = {
        name
        for name in torch.optim.__all__
        if isinstance(kind := getattr(torch.optim, name), type) and issubclass(kind, Optimizer)
    }
    assert theirs - {"Optimizer", "LBFGS"} == {name.split(",")[0] for name in TORCH}
    with pytest.raises(ValueError, match="needs a closure of its own"):
        SAM(LBFGS([nn.Parameter(torch.ones(1))]))
