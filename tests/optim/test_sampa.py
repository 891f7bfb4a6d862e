"""SAMPa against numbers worked out by hand and against its three equations, and what goes on from step to step.

The numbers are on the quadratic of `test_family.py`: L(w) = (w1^2 + 2 w2^2) / 2 from w = (3, 2), gradient (w1, 2 w2).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from bench.optim.sampa import SAMPa

from . import pair
from .helpers import Watch, flat, over_all_bases, problem, same_bits, snapshot
from .test_family import Descent, exact


def test_golden_sampa() -> None:
    """lmbda = 0.25, lr 0.5, rho 5.

    0: d = 0, so both passes are at w, and d' = (3, 4) is all of the step;  w <- (3, 2) - 0.5 (3, 4) = (1.5, 0)
    1: y = w - 0.5 (3, 4) = (0, -2), d' = (0, -4);  e = (3, 4), w + e = (4.5, 4), g' = (4.5, 8)
       0.75 g' + 0.25 d' = (3.375, 5);  w <- (-0.1875, -2.5)
    2: y = w - 0.5 (0, -4) = (-0.1875, -0.5), d' = (-0.1875, -1);  e = (0, -5), g' = (-0.1875, -15)
       0.75 g' + 0.25 d' = (-0.1875, -11.5);  w <- (-0.09375, 3.25)
    """
    descent = Descent(lambda base: SAMPa(base, rho=5.0, lmbda=0.25), lr=0.5)
    optimizer = descent.optimizer
    assert isinstance(optimizer, SAMPa)
    assert descent.step() == exact([1.5, 0])
    assert descent.looked_at() == [exact([3, 2])] * 2
    assert optimizer.remembered([descent.w])[0].tolist() == exact([3, 4])
    assert descent.step() == exact([-0.1875, -2.5])
    assert descent.looked_at() == [exact([0, -2]), exact([4.5, 4])]
    assert descent.returned == pytest.approx(4.0), "the loss at y"
    assert descent.step() == exact([-0.09375, 3.25])
    assert descent.looked_at() == [exact([-0.1875, -0.5]), exact([-0.1875, -7.5])]
    assert optimizer.remembered([descent.w])[0].tolist() == exact([-0.1875, -1])


@pytest.mark.parametrize("lmbda", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_the_papers_three_equations(lmbda: float, momentum: float) -> None:
    """By hand, with an lr that falls; the plain step of x is the base's, with momentum where it has some."""
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    weights = list(twin.parameters())
    optimizer = SAMPa(SGD(model.parameters(), lr=0.1, momentum=momentum), rho=0.3, lmbda=lmbda, model=model)

    def gradient_at(point: Tensor) -> Tensor:
        nn.utils.vector_to_parameters(point, weights)
        return flat(torch.autograd.grad(twin_loss(), weights))

    x = flat(weights)
    d, buffer = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(6):
        lr = optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
        optimizer.step(Watch(optimizer, loss))
        ahead = gradient_at(x - lr * d)
        descent = (1 - lmbda) * gradient_at(x + 0.3 * d / (d.norm() + 1e-12)) + lmbda * ahead
        buffer = momentum * buffer + descent
        x, d = x - lr * buffer, ahead
        torch.testing.assert_close(flat(model.parameters()), x, rtol=1e-10, atol=1e-12)


@over_all_bases
def test_rho_0_and_the_first_step_are_the_base(base: Any) -> None:
    """The former bit for bit at one pass; the latter up to how a sum of lmbda and 1 - lmbda of a number is rounded."""
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = SAMPa(base(model.parameters()), rho=0.0), base(twin.parameters())
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
        assert watch.calls == 1
    assert same_bits(model.parameters(), twin.parameters())
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = SAMPa(base(model.parameters()), rho=0.5), base(twin.parameters())
    optimizer.step(Watch(optimizer, loss))
    plain.step(Watch(plain, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-6, atol=1e-8)


def backward(loss: Tensor) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_scaler_and_micro_batches_leave_d_in_units_of_the_loss(scale: float, micro_batches: int) -> None:
    model, loss = problem(torch.float64)
    optimizer = SAMPa(SGD(model.parameters(), lr=0.1), rho=0.5)
    twin, twin_loss = problem(torch.float64)
    plain = SAMPa(SGD(twin.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(micro_batches):
            optimizer.backward(lambda: backward(loss() * scale / micro_batches))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= scale
        optimizer.step()
        plain.step(Watch(plain, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat(optimizer.memory.values()), flat(plain.memory.values()), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("call", [1, 2])
def test_a_skipped_step_leaves_d(call: int) -> None:
    """Also at lmbda 0, where d is no part of what the base follows."""
    model, loss = problem()
    optimizer = SAMPa(AdamW(model.parameters(), lr=0.01, fused=True), rho=0.5, lmbda=0.0)
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss))
    before = snapshot([*model.parameters(), *optimizer.memory.values()])
    watch = Watch(optimizer, loss)
    watch.loss = lambda: loss() * (torch.inf if watch.calls == call else 1.0)
    optimizer.step(watch)
    assert optimizer.skipped_steps == 1
    assert same_bits([*model.parameters(), *optimizer.memory.values()], before)


def test_y_is_where_all_weights_go_and_e_only_those_that_are_perturbed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    x = torch.randn(8, 4)
    optimizer = SAMPa(SGD(model.parameters(), lr=0.1), rho=0.5, model=model, perturb_only="norm")
    for _ in range(2):
        before = snapshot(model.parameters())
        optimizer.step(watch := Watch(optimizer, lambda: model(x).square().mean()))
    at_y, moved = ([not torch.equal(p, q) for p, q in zip(some, before, strict=True)] for some in watch.weights)
    assert at_y == [True] * 6
    assert moved == [False, False, True, True, False, False]


def test_to_maximize_f_is_to_minimize_minus_f() -> None:
    def after(sign: int) -> Tensor:
        model, loss = problem(torch.float64)
        optimizer = SAMPa(SGD(model.parameters(), lr=0.1, momentum=0.9, maximize=sign < 0), rho=0.3)
        for _ in range(4):
            optimizer.step(Watch(optimizer, lambda: loss() * sign))
        return flat(model.parameters())

    torch.testing.assert_close(after(1), after(-1), rtol=1e-10, atol=1e-12)


def test_impossible_settings_and_sparse_gradients_are_told() -> None:
    for lmbda in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"SAMPa: lmbda must be in \[0, 1\], got"):
            SAMPa(SGD([nn.Parameter(torch.ones(1))], lr=0.1), lmbda=lmbda)
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = SAMPa(SGD(table.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="takes no sparse gradients; SAM does"):
        optimizer.step(Watch(optimizer, lambda: table(torch.tensor([1, 2])).sum()))


# ---- two processes, one pass each --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["", ", spoilt"])
@pytest.mark.parametrize("base", pair.BASES)
def test_a_pair_of_processes_makes_one_pass_each_and_the_same_step_to_the_bit(
    in_two: list[dict[str, Any]], base: str, spoilt: str
) -> None:
    """Weights, batch norm's statistics and d, with dropout; with a gradient that is not finite in one of the two."""
    for found in in_two:
        both = found[f"pair over {base}{spoilt}"]
        assert same_bits(both["pair"]["tensors"], both["alone"]["tensors"])
        assert [both[which]["calls"] for which in ("pair", "alone")] == [pair.STEPS, 2 * pair.STEPS]
        assert both["pair"]["skipped"] == both["alone"]["skipped"] == bool(spoilt)


def test_a_pair_is_two_processes_with_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = problem()
    group: Any = object()
    monkeypatch.setattr("torch.distributed.get_world_size", lambda _: 3)
    with pytest.raises(ValueError, match=r"^SAMPa: pair must be a group of 2 processes, got 3"):
        SAMPa(SGD(model.parameters(), lr=0.1), pair=group)
    with pytest.raises(ValueError, match=r"^SAMPa: a pair of processes needs the whole model in each"):
        SAMPa(SGD(model.parameters(), lr=0.1), pair=group, norm_group=group)
