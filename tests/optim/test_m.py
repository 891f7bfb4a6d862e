"""m-SAM: one perturbation for every m examples of a batch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM

X, Y = torch.randn(32, 5, generator=torch.Generator().manual_seed(0)), torch.arange(32) % 3


def network(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    middle: list[nn.Module] = [nn.BatchNorm1d(7)] if norm else []
    return nn.Sequential(nn.Linear(5, 7), *middle, nn.Tanh(), nn.Linear(7, 3)).double()


def closures(model: nn.Module, optimizer: torch.optim.Optimizer, m: int) -> list[Callable[[], Tensor]]:
    def over(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return closure

    return [over(x, y) for x, y in zip(torch.split(X.double(), m), torch.split(Y, m), strict=True)]


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def by_hand(model: nn.Module, m: int, rho: float) -> list[Tensor]:
    """The mean over parts of grad L_part(w + rho g_part / |g_part|), written out."""
    total = [torch.zeros_like(p) for p in model.parameters()]
    for x, y in zip(torch.split(X.double(), m), torch.split(Y, m), strict=True):
        twin = copy.deepcopy(model)
        ascent = torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters()))
        norm = torch.sqrt(sum((g**2).sum() for g in ascent))  # type: ignore[arg-type]
        with torch.no_grad():
            for p, g in zip(twin.parameters(), ascent, strict=True):
                p.add_(rho * g / norm)
        for sum_, g in zip(
            total, torch.autograd.grad(F.cross_entropy(twin(x), y), list(twin.parameters())), strict=True
        ):
            sum_ += g * len(x) / len(X)
    return total


@pytest.mark.parametrize("m", [4, 8, 16, 32])
def test_the_update_follows_the_mean_of_the_parts_own_sam_gradients(m: int) -> None:
    model = network()
    expected = [p - 0.3 * g for p, g in zip(model.parameters(), by_hand(model, m, rho=0.2), strict=True)]
    optimizer = SAM(sgd(model), rho=0.2)
    optimizer.step(closures(model, optimizer, m))
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_m_changes_the_result_and_m_of_the_whole_batch_is_plain_sam() -> None:
    def after(m: int | None) -> list[Tensor]:
        model = network()
        optimizer = SAM(sgd(model), rho=0.5)
        whole = closures(model, optimizer, m or 32)
        optimizer.step(whole if m else whole[0])
        return list(model.parameters())

    plain, whole, parts = after(None), after(32), after(8)
    assert all(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))
    assert not all(torch.allclose(a, b) for a, b in zip(plain, parts, strict=True))


def test_the_loss_is_the_mean_over_the_parts_at_w() -> None:
    model = network()
    optimizer = SAM(sgd(model), rho=0.5)
    expected = F.cross_entropy(model(X.double()), Y)
    torch.testing.assert_close(optimizer.step(closures(model, optimizer, 8)), expected.detach())


def test_weights_come_back_bit_for_bit_and_statistics_move_once_a_part() -> None:
    model = network(norm=True)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=0.5, model=model)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step(closures(model, optimizer, 8))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert model[1].num_batches_tracked == 4


def test_parts_of_a_method_that_perturbs_nothing_are_gradient_accumulation() -> None:
    model, twin = network(), network()
    accumulating, plain = OptimizerWrapper(sgd(model)), sgd(twin)
    accumulating.step(closures(model, accumulating, 8))
    plain.step(closures(twin, plain, 32)[0])
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("part", range(4))
def test_one_part_that_is_not_finite_skips_the_whole_step(part: int) -> None:
    model = network()
    optimizer = SAM(sgd(model), rho=0.5)
    optimizer.step(closures(model, optimizer, 8))
    before = [p.detach().clone() for p in model.parameters()]
    parts = closures(model, optimizer, 8)
    calls = 0

    def spoilt() -> Tensor:
        nonlocal calls
        loss = closures(model, optimizer, 8)[part]()
        calls += 1
        gradient = model[0].weight.grad
        assert isinstance(gradient, Tensor)
        gradient[0, 0] = math.inf if calls == 1 else gradient[0, 0]  # in the first pass only
        return loss

    parts[part] = spoilt
    optimizer.step(parts)
    assert optimizer.skipped_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


def test_a_parameter_that_only_some_parts_use_gets_the_mean_all_the_same() -> None:
    first, second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    model = nn.ModuleList([first, second])
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1.0), rho=0.0)
    before = second.weight.detach().clone()

    def closure_of(layer: nn.Linear) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = layer(torch.ones(1, 2)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        return closure

    optimizer.step([closure_of(first), closure_of(second), closure_of(second)])
    torch.testing.assert_close(before - second.weight, torch.full((1, 2), 2 / 3))


def test_zeroing_in_place_does_not_reach_the_gradients_of_earlier_parts() -> None:
    def after(set_to_none: bool) -> list[Tensor]:
        model = network()
        optimizer = SAM(sgd(model), rho=0.5)
        zero_grad = optimizer.zero_grad
        optimizer.zero_grad = lambda: zero_grad(set_to_none=set_to_none)  # type: ignore[method-assign, assignment, misc]
        optimizer.step(closures(model, optimizer, 8))
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(after(True), after(False), strict=True))


@pytest.mark.parametrize("m", [0, -1])
def test_m_is_at_least_1(m: int) -> None:
    with pytest.raises(ValueError, match=f"m must be >= 1, got {m}"):
        SAM(sgd(network()), m=m)


def test_no_closure_at_all_is_an_error() -> None:
    with pytest.raises(TypeError, match="needs a closure"):
        SAM(sgd(network())).step([])
