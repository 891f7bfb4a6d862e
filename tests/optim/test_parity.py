"""50 steps beside independent implementations: the same weights where they are right; where not, which rule they break.

pytorch_optimizer's SAM and ASAM, and optax's SAM. The net has neither batch norm nor dropout, since the first of them
moves statistics in both passes and draws new masks for the second (see below), and the second knows neither.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_optimizer import SAM as TheirSAM
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.sam import SAM
from tests.prefork import HANGS

from .helpers import Watch, flat, same_bits, snapshot

STEPS, RHO = 50, 0.2
BASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.1}),
    "momentum, weight decay": (SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adamw": (AdamW, {"lr": 0.01, "weight_decay": 0.1}),
}
every_base = pytest.mark.parametrize("base", BASES)


def net(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    xs = torch.randn(STEPS, 16, 6, generator=random, dtype=torch.float64)
    return xs.to(dtype), torch.randn(STEPS, 16, 3, generator=random, dtype=torch.float64).to(dtype)


def ours(base: str, dtype: torch.dtype, **settings: Any) -> Tensor:
    model, (make, base_settings) = net(dtype), BASES[base]
    optimizer = SAM(make(model.parameters(), **base_settings), rho=RHO, **settings)
    for x, y in zip(*batches(dtype), strict=True):
        optimizer.step(Watch(optimizer, lambda x=x, y=y: nn.functional.mse_loss(model(x), y)))  # type: ignore[misc]
    return in_order(model)


def in_order(model: nn.Module) -> Tensor:
    return flat([p for _, p in sorted(model.named_parameters())])


# ---- pytorch_optimizer -------------------------------------------------------------------------------------------


def their_step(optimizer: TheirSAM, loss: Callable[[], Tensor]) -> Watch:
    watch = Watch(optimizer, loss)
    watch()
    optimizer.step(watch)  # type: ignore[arg-type]
    return watch


def theirs(base: str, dtype: torch.dtype, **settings: Any) -> Tensor:
    model, (make, base_settings) = net(dtype), BASES[base]
    optimizer = TheirSAM(model.parameters(), make, rho=RHO, **settings, **base_settings)
    for x, y in zip(*batches(dtype), strict=True):
        their_step(optimizer, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))  # type: ignore[misc]
    return in_order(model)


PRECISIONS = {torch.float32: 2e-5, torch.float64: 2e-6}
"""What may be between two weights; in double precision theirs still takes the norm in single."""


@every_base
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_sam_goes_where_pytorch_optimizers_goes(base: str, dtype: torch.dtype) -> None:
    torch.testing.assert_close(ours(base, dtype), theirs(base, dtype), rtol=0, atol=PRECISIONS[dtype])
    assert (ours(base, dtype, adaptive=True) - theirs(base, dtype)).abs().max() > 1e-3  # the tolerance tells them apart


@every_base
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_asam_goes_where_pytorch_optimizers_goes_without_eta(base: str, dtype: torch.dtype) -> None:
    """Theirs leaves out eta, the paper's floor under |w|: with it, as the paper has it, ours goes elsewhere."""
    without = ours(base, dtype, adaptive=True, eta=0.0)
    torch.testing.assert_close(without, theirs(base, dtype, adaptive=True), rtol=0, atol=PRECISIONS[dtype])
    assert (ours(base, dtype, adaptive=True, eta=0.01) - without).abs().max() > 1e-4


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "ours": lambda model: SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=RHO, model=model),
    "theirs": lambda model: TheirSAM(model.parameters(), SGD, rho=RHO, lr=0.1, momentum=0.9),
}


def one_step(make: str, model: nn.Module, mischief: Callable[[int], None] = lambda call: None) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(2))
    optimizer = MAKERS[make](model)
    watch = Watch(optimizer, lambda: model(x).square().mean(), mischief)
    if make == "theirs":
        watch()
    optimizer.step(watch)


@pytest.mark.parametrize("make", MAKERS)
def test_batch_norm_statistics_move_once_in_ours_and_twice_in_theirs(make: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
    one_step(make, model)
    assert int(model[1].num_batches_tracked) == {"ours": 1, "theirs": 2}[make]  # type: ignore[arg-type]


@pytest.mark.parametrize("make", MAKERS)
def test_dropout_masks_are_the_same_in_ours_and_new_in_theirs(make: str) -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5))
    masks: list[Tensor] = []
    model[1].register_forward_hook(lambda module, args, output: masks.append(output == 0))
    one_step(make, model)
    assert torch.equal(*masks) is (make == "ours")


@pytest.mark.parametrize("make", MAKERS)
def test_an_infinite_gradient_is_skipped_by_ours_and_makes_nan_of_weights_in_theirs(make: str) -> None:
    model = net(torch.float32)
    before = snapshot(model.parameters())

    def spoil(call: int) -> None:
        gradient = model[0].weight.grad
        if call == 1 and isinstance(gradient, Tensor):
            gradient[0, 0] = math.inf

    one_step(make, model, spoil)
    assert same_bits(model.parameters(), before) is (make == "ours")
    assert bool(flat(model.parameters()).isfinite().all()) is (make == "ours")


# ---- optax -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def optax(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray[Any, Any]]:
    folder = tmp_path_factory.mktemp("optax")
    xs, ys = batches(torch.float64)
    weights = {name: p.detach().numpy() for name, p in net(torch.float64).named_parameters()}
    np.savez(folder / "in.npz", allow_pickle=False, xs=xs.numpy(), ys=ys.numpy(), rho=np.float64(RHO), **weights)
    script = Path(__file__).with_name("optax_runs.py")
    command = [sys.executable, str(script), str(folder / "in.npz"), str(folder / "out.npz")]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "out.npz"))


@pytest.mark.parametrize("base", [*BASES, "adamw, opaque"])
def test_sam_goes_where_optaxs_goes(optax: dict[str, np.ndarray[Any, Any]], base: str) -> None:
    expected = torch.from_numpy(optax[base])
    torch.testing.assert_close(ours(base.removesuffix(", opaque"), torch.float64), expected, rtol=0, atol=1e-9)


def test_at_a_minimum_ours_stays_and_optaxs_becomes_nan(optax: dict[str, np.ndarray[Any, Any]]) -> None:
    """Theirs divides by a norm of 0."""
    model = net(torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=RHO)
    optimizer.step(Watch(optimizer, lambda: model(batches(torch.float64)[0][0]).square().mean()))
    assert not in_order(model).any()
    assert np.isnan(optax["zero gradient"]).any()
