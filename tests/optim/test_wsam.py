"""WSAM against numbers worked out by hand, its limits, and what clipping, scaling and averaging do to its two terms.

On the quadratic of `test_family.py`: L(w) = (w1^2 + 2 w2^2) / 2 from w = (3, 2), where g = (3, 4) and, with rho = 5,
w + e = (6, 6) and g' = (6, 12), so that g' - g = (3, 8).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import schedulefree
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from bench.optim.sam import SAM
from bench.optim.wsam import WSAM

from .helpers import Watch, flat, over_all_bases, problem, same_bits, snapshot, state_of
from .test_family import Descent, exact


@pytest.mark.parametrize(("decouple", "second"), [(True, [-0.6, 4.32]), (False, [-1.5, 1.92])])
def test_golden_wsam(decouple: bool, second: list[float]) -> None:
    """gamma = 0.6, so that sharpness weighs 0.6 / 0.4 = 1.5; lr 0.4, momentum 0.5.

    1: w <- (3, 2) - 0.4 (3, 4) - 0.6 (3, 8) = (0, -4.4)
    2: g = (0, -8.8), e = (0, -5), w + e = (0, -9.4), g' = (0, -18.8), g' - g = (0, -10)
       decoupled: v = 0.5 (3, 4) + g = (1.5, -6.8);  w <- (0, -4.4) - 0.4 v - 0.6 (0, -10) = (-0.6, 4.32)
       coupled: the first gradient was (3, 4) + 1.5 (3, 8) = (7.5, 16), the second is (0, -23.8);
       v = 0.5 (7.5, 16) + (0, -23.8) = (3.75, -15.8);  w <- (0, -4.4) - 0.4 v = (-1.5, 1.92)
    """
    descent = Descent(lambda base: WSAM(base, rho=5.0, gamma=0.6, decouple=decouple), lr=0.4, momentum=0.5)
    assert descent.step() == exact([0, -4.4])
    assert descent.looked_at() == [exact([3, 2]), exact([6, 6])]
    assert descent.returned == pytest.approx(8.5)
    assert descent.step() == exact(second)
    assert descent.looked_at()[1] == exact([0, -9.4])


def test_golden_wsam_over_adamw() -> None:
    """Adam's first step is lr * sign(g) = 0.1 (1, 1), decay 0.1 * 0.2 * w; sharpness comes beside: 0.1 * 1.5 (3, 8)."""
    w = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))
    optimizer = WSAM(AdamW([w], lr=0.1, weight_decay=0.2, eps=0.0), rho=5.0, gamma=0.6)
    optimizer.step(Watch(optimizer, lambda: (torch.tensor([1.0, 2.0], dtype=torch.float64) * w**2).sum() / 2))
    assert w.tolist() == exact([3 - 0.06 - 0.1 - 0.45, 2 - 0.04 - 0.1 - 1.2])
    assert optimizer.state[w]["exp_avg"].tolist() == exact([0.3, 0.4]), "of g alone"


@over_all_bases
@pytest.mark.parametrize("decouple", [True, False])
def test_gamma_0_is_the_base_bit_for_bit_at_one_pass(base: Any, decouple: bool) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = WSAM(base(model.parameters()), gamma=0.0, decouple=decouple), base(twin.parameters())
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
        assert watch.calls == 1
    assert same_bits(model.parameters(), twin.parameters())


@over_all_bases
def test_gamma_a_half_coupled_is_sam_bit_for_bit(base: Any) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = WSAM(base(model.parameters()), rho=0.5, gamma=0.5, decouple=False)
    sam = SAM(base(twin.parameters()), rho=0.5)
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss))
        sam.step(Watch(sam, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())


def test_gamma_a_half_decoupled_is_sam_over_a_base_without_memory() -> None:
    ends = []
    for make in (partial(WSAM, gamma=0.5), SAM):
        model, loss = problem(torch.float64)
        optimizer = make(SGD(model.parameters(), lr=0.1), rho=0.5)
        for _ in range(3):
            optimizer.step(Watch(optimizer, loss))
        ends.append(flat(model.parameters()))
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


def test_decoupled_the_bases_memory_is_that_of_the_plain_gradient() -> None:
    """After one step bit for bit; the weights are elsewhere from then on."""
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = (make(net.parameters()) for make, net in ((_wsam, model), (_adamw, twin)))
    optimizer.step(Watch(optimizer, loss))
    plain.step(Watch(plain, twin_loss))
    assert same_bits(state_of(optimizer), state_of(plain))
    assert (flat(model.parameters()) - flat(twin.parameters())).abs().max() > 1e-4


def _adamw(parameters: Any) -> AdamW:
    return AdamW(parameters, lr=0.01)


def _wsam(parameters: Any) -> WSAM:
    return WSAM(_adamw(parameters), rho=0.5)


def one_step(clip_norm: float | None = None, parts: int = 1) -> tuple[Tensor, Watch]:
    """How far one step moves a net, over parts that are alike."""
    model, loss = problem(torch.float64)
    optimizer = WSAM(SGD(model.parameters(), lr=0.1), rho=0.5, clip_norm=clip_norm)
    before = flat(model.parameters())
    watch = Watch(optimizer, loss)
    optimizer.step([watch] * parts)
    return flat(model.parameters()) - before, watch


def test_clipping_scales_sharpness_as_it_scales_the_gradient() -> None:
    moved, watch = one_step()
    clipped, _ = one_step(clip_norm=0.1)
    length = flat(watch.gradients[0]).norm()
    assert length > 0.2
    torch.testing.assert_close(clipped, moved * 0.1 / (length + 1e-6), rtol=1e-9, atol=1e-12)


def test_alike_parts_are_as_one() -> None:
    torch.testing.assert_close(one_step(parts=3)[0], one_step()[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_scaler_and_micro_batches_scale_both_terms(scale: float, micro_batches: int) -> None:
    """Micro-batches that are alike, each loss divided by their number and multiplied by the scale, unscaled before."""
    model, loss = problem(torch.float64)
    optimizer = WSAM(SGD(model.parameters(), lr=0.1), rho=0.5, clip_norm=0.1)
    before = flat(model.parameters())
    for _ in range(2):  # the second step must not find what the first has noted
        before = flat(model.parameters())
        optimizer.zero_grad()
        for _ in range(micro_batches):
            optimizer.backward(lambda: _backward(loss() * scale / micro_batches))
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad /= scale
        optimizer.step()
    twin, twin_loss = problem(torch.float64)
    plain = WSAM(SGD(twin.parameters(), lr=0.1), rho=0.5, clip_norm=0.1)
    for _ in range(2):
        plain.step(Watch(plain, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-9, atol=1e-12)
    assert not torch.equal(before, flat(model.parameters()))


def _backward(loss: Tensor) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def test_what_a_skipped_step_has_noted_is_forgotten() -> None:
    """A GradScaler that finds inf calls no `step`; the next one perturbs nothing, and must be the base's."""
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = WSAM(SGD(model.parameters(), lr=0.1), rho=0.5, perturb_every=2)
    plain = SGD(twin.parameters(), lr=0.1)
    optimizer.backward(lambda: _backward(loss()))
    optimizer.zero_grad()
    optimizer.param_groups[0]["steps_done"] = 1
    optimizer.backward(lambda: _backward(loss()))
    optimizer.step()
    plain.step(Watch(plain, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())


@pytest.mark.parametrize("decouple", [True, False])
def test_to_maximize_f_is_to_minimize_minus_f(decouple: bool) -> None:
    def after(sign: int) -> Tensor:
        model, loss = problem(torch.float64)
        base = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1, maximize=sign < 0)
        optimizer = WSAM(base, rho=0.3, decouple=decouple)
        for _ in range(4):
            optimizer.step(Watch(optimizer, lambda: loss() * sign))
        return flat(model.parameters())

    torch.testing.assert_close(after(1), after(-1), rtol=1e-10, atol=1e-12)


def test_each_group_has_its_own_lr() -> None:
    model, loss = problem(torch.float64)
    weights = list(model.parameters())
    optimizer = WSAM(SGD([{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.0}]), rho=0.5)
    before = snapshot(weights)
    optimizer.step(Watch(optimizer, loss))
    assert not any(torch.equal(p, q) for p, q in zip(weights[:2], before[:2], strict=True))
    assert same_bits(weights[2:], before[2:])


def test_impossible_settings_are_told() -> None:
    weights = [nn.Parameter(torch.ones(1))]
    for gamma in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"WSAM: gamma must be in \[0, 1\), got"):
            WSAM(SGD(weights, lr=0.1), gamma=gamma)
    base = schedulefree.SGDScheduleFree(weights, lr=0.1)
    with pytest.raises(ValueError, match="WSAM: decoupled over SGDScheduleFree, which trains at an average"):
        WSAM(base)
    WSAM(base, decouple=False)


def test_sparse_gradients_are_sams_alone() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = WSAM(SGD(table.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="takes no sparse gradients; SAM does"):
        optimizer.step(Watch(optimizer, lambda: table(torch.tensor([1, 2])).sum()))
