"""A default dtype or device that the user has set for all of torch: a step must not depend on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bench.optim.base.tensors import dot, found_inf, global_norm
from bench.optim.esam import ESAM
from bench.optim.sam import SAM

from .helpers import problem, same_bits, state_of
from .test_contract import Recipe, batches, every_core_method, net, step

DTYPES = [torch.float64, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def three_steps(recipe: Recipe, dtype: torch.dtype) -> list[Tensor]:
    """Return all that three steps of a float32 model leave, of which only the steps run under `dtype`."""
    torch.set_default_dtype(torch.float32)
    model, data = net(), batches(3)
    optimizer = recipe.build(model)
    torch.set_default_dtype(dtype)
    losses = [step(optimizer, model, x, y)[0] for x, y in data]
    return [*model.state_dict().values(), *losses, *(s for s in state_of(optimizer) if s.ndim)]


@every_dtype
@every_core_method
def test_a_default_dtype_changes_no_bit(recipe: Recipe, dtype: torch.dtype) -> None:
    assert same_bits(three_steps(recipe, dtype), three_steps(recipe, torch.float32))


@every_dtype
@every_core_method
def test_a_model_of_the_default_dtype_is_trained(recipe: Recipe, dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    model = net()
    optimizer = recipe.build(model)
    before = [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        loss, _ = step(optimizer, model, torch.randn(12, 5), torch.randn(12, 3))
        assert loss.isfinite()
    assert all(p.dtype == dtype and p.isfinite().all() for p in model.parameters())
    assert not same_bits(model.parameters(), before)


@every_dtype
def test_numbers_about_nothing_are_in_fp32_too(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    assert [t.dtype for t in (global_norm([]), dot([], []), found_inf([]))] == [torch.float32] * 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_mean_of_losses_that_are_floats_is_not_rounded_to_a_half(dtype: torch.dtype) -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))

    def part() -> float:
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        return 100001.0  # no number of a half

    torch.set_default_dtype(dtype)
    mean = optimizer.step([part, part])
    assert mean.item() == 100001.0


def test_rho_follows_an_lr_on_a_device_from_a_peak_that_no_half_holds() -> None:
    model, _ = problem()
    optimizer = SAM(SGD(model.parameters(), lr=torch.tensor(0.05)), rho=1.0, rho_schedule="lr")
    optimizer.param_groups[0]["initial_lr"] = 0.1003
    torch.set_default_dtype(torch.bfloat16)
    torch.testing.assert_close(
        optimizer.rho_now(optimizer.param_groups[0]), torch.tensor(0.05 / 0.1003, dtype=torch.float32)
    )


def test_the_masks_of_esam_are_drawn_on_the_host_whatever_the_default_device() -> None:
    def losses(examples: Tensor | slice = slice(None)) -> Tensor:
        return model(x[examples]).square().mean(1)  # type: ignore[no-any-return]

    model, x = net(), torch.randn(12, 5)
    optimizer = ESAM(SGD(model.parameters(), lr=0.1), variant="authors", gamma=1.0)
    torch.set_default_device("meta")
    assert optimizer.step(losses).isfinite()
