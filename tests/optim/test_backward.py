"""`backward(closure)` and `step()` apart, for loops that are not ours: accumulation, clipping, GradScaler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM

from .helpers import Watch, over_all_bases, over_both, problem, same_bits, snapshot, state_of
from .test_m import closures, network, sgd

MakeBase = Callable[..., Optimizer]


# ---- in two places what `step` does in one -----------------------------------------------------------------------


@over_both
@over_all_bases
def test_backward_then_step_is_step_bit_for_bit(base: MakeBase, adaptive: bool) -> None:
    model, loss = problem(dropout=0.5)
    twin, twin_loss = problem(dropout=0.5)
    whole = SAM(base(model.parameters()), rho=0.5, adaptive=adaptive, model=model)
    apart = SAM(base(twin.parameters()), rho=0.5, adaptive=adaptive, model=twin)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = whole.step(Watch(whole, loss))
        torch.manual_seed(seed)
        apart.zero_grad()
        returned = apart.backward(Watch(apart, twin_loss, zero_grad=False))
        assert apart.step() is None
        assert torch.equal(returned, expected)
    assert same_bits(model.parameters(), twin.parameters())


def test_micro_batches_add_up_each_with_its_own_perturbation() -> None:
    model, twin = network(), network()
    parts, whole = SAM(sgd(model), rho=0.5), SAM(sgd(twin), rho=0.5)
    for part in closures(model, Optimizer([nn.Parameter(torch.zeros(1))], {}), 8):  # a zero_grad that zeroes nothing
        parts.backward(part)
    for p in model.parameters():
        assert p.grad is not None
        p.grad /= 4
    parts.step()
    whole.step(closures(twin, whole, 8))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_closure_may_zero_what_earlier_ones_left_and_it_stays() -> None:
    model, twin = network(), network()
    zeroing, not_zeroing = SAM(sgd(model), rho=0.5), SAM(sgd(twin), rho=0.5)
    for part in closures(model, zeroing, 8):
        zeroing.backward(part)
    for part in closures(twin, Optimizer([nn.Parameter(torch.zeros(1))], {}), 8):
        not_zeroing.backward(part)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_a_parameter_that_only_an_earlier_part_used_keeps_its_gradient() -> None:
    model, x = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1)]), torch.ones(1, 2)
    optimizer = SAM(SGD(model.parameters(), lr=1.0))
    for layer in model:

        def closure(layer: nn.Module = layer) -> Tensor:
            loss: Tensor = layer(x).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.backward(closure)
    assert [p.grad.tolist() for p in model.parameters() if p.grad is not None] == [[[1.0, 1.0]], [1.0]] * 2


def test_one_batch_in_micro_batches_inside_of_a_closure_is_that_batch() -> None:
    """Accumulation with one perturbation for all: 4 x 8 == 32 examples."""
    model, twin = network(), network()
    parts, whole = SAM(sgd(model), rho=0.5), SAM(sgd(twin), rho=0.5)
    idle = Optimizer([nn.Parameter(torch.zeros(1))], {})

    def accumulated() -> Tensor:
        parts.zero_grad()
        losses = [part() for part in closures(model, idle, 8)]
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= 4
        return torch.stack(losses).mean()

    for _ in range(3):
        torch.testing.assert_close(parts.step(accumulated), whole.step(closures(twin, whole, 32)[0]))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_step_needs_its_own_backward() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    loss().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match=r"or optimizer\.backward\(closure\) before it"):
        optimizer.step()
    optimizer.backward(Watch(optimizer, loss))
    optimizer.step()
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step()


def test_a_step_after_backward_takes_a_closure_that_computes_nothing_and_no_other() -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    clipped: list[bool] = []
    optimizer.backward(Watch(optimizer, loss))
    optimizer.step(lambda: clipped.append(True))
    assert clipped == [True]
    optimizer.backward(Watch(optimizer, loss))
    for closure in (Watch(optimizer, loss), [Watch(optimizer, loss)]):
        with pytest.raises(TypeError, match=r"SAM\.step takes no closure after backward\(closure\)"):
            optimizer.step(closure)


def test_clip_norm_and_the_skipping_of_what_is_not_finite_hold_as_in_a_whole_step() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=1.0), rho=0.3, clip_norm=1e-3)
    before = snapshot(model.parameters())
    optimizer.backward(Watch(optimizer, loss))
    optimizer.step()
    moved = torch.cat([(p - q).reshape(-1) for p, q in zip(model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-4)


@over_both
def test_a_first_pass_that_is_not_finite_is_seen_by_whoever_looks_at_gradients(adaptive: bool) -> None:
    """Even where the second pass does not meet what the first one spoilt."""
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), torch.randn(8, 4)
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive)

    def spoil(call: int) -> None:
        if call == 1:
            next(p.grad for p in model.parameters() if p.grad is not None)[0, 0] = math.inf

    optimizer.backward(watch := Watch(optimizer, lambda: model[watch.calls - 1](x).square().mean(), spoil))
    assert all(g.isfinite().all() for g in watch.gradients[1])
    assert not clip_grad_norm_(model.parameters(), 1.0).isfinite()
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert same_bits(model.parameters(), before)


@pytest.mark.parametrize(
    "make", [lambda p: SAM(SGD(p, lr=0.1)), lambda p: OptimizerWrapper(SGD(p, lr=0.1))], ids=["sam", "plain"]
)
def test_a_closure_can_tell_the_first_pass_to_count_and_log_once_a_step(
    make: Callable[[Any], OptimizerWrapper],
) -> None:
    model, loss = problem()
    optimizer = make(model.parameters())
    seen: list[bool] = []
    watch = Watch(optimizer, loss, lambda call: seen.append(optimizer.first_pass))
    optimizer.step(watch)
    optimizer.backward(watch)
    optimizer.step()
    optimizer.step([watch, watch])
    assert seen == ([True, False] if isinstance(optimizer, SAM) else [True]) * 4
    assert optimizer.first_pass
    with pytest.raises(KeyError):
        optimizer.step(lambda: dict[str, Tensor]()["no loss"])
    assert optimizer.first_pass


@pytest.mark.parametrize("method", [SAM, OptimizerWrapper])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_closure_that_adds_to_gradients_that_are_there_is_refused(
    method: Callable[[Optimizer], OptimizerWrapper], parts: int
) -> None:
    model, loss = problem()
    optimizer = method(SGD(model.parameters(), lr=0.1))
    closures = [Watch(optimizer, loss, zero_grad=False) for _ in range(parts)]
    optimizer.step(closures)  # there are none yet
    before = snapshot(model.parameters())
    with pytest.raises(RuntimeError, match=r"must zero them first with optimizer\.zero_grad\(\).*optimizer\.backward"):
        optimizer.step(closures)
    assert same_bits(model.parameters(), before)
    optimizer.zero_grad()
    optimizer.step(closures)
    assert not same_bits(model.parameters(), before)


@pytest.mark.parametrize("zero", ["optimizer", "optimizer, in place", "base", "model"])
def test_whoever_zeroes_the_gradients_is_seen(zero: str) -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    zeroes: dict[str, Callable[[], None]] = {
        "optimizer": optimizer.zero_grad,
        "optimizer, in place": lambda: optimizer.zero_grad(set_to_none=False),
        "base": optimizer.base.zero_grad,
        "model": model.zero_grad,
    }

    def closure() -> Tensor:
        zeroes[zero]()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(3):
        optimizer.step(closure)


# ---- fp16 with a GradScaler --------------------------------------------------------------------------------------


class Scaled:
    """SAM in an ordinary fp16 loop: scale, backward, unscale, clip, step, update."""

    def __init__(self, scale: float, dtype: torch.dtype | None = None, **settings: Any) -> None:
        self.model, loss = problem()
        self.optimizer = SAM(SGD(self.model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=self.model, **settings)
        self.scaler = GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        self.dtype, self.loss = dtype, loss

    def step(self, mischief: Callable[[int], None] = lambda call: None) -> Watch:
        def loss() -> Tensor:
            with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
                value = self.loss()
            return self.scaler.scale(value)

        self.optimizer.zero_grad()
        self.optimizer.backward(watch := Watch(self.optimizer, loss, mischief, zero_grad=False))
        self.scaler.unscale_(self.optimizer)
        clip_grad_norm_(self.model.parameters(), 0.5)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return watch

    @property
    def weights(self) -> list[Tensor]:
        return list(self.model.parameters())


@over_both
def test_any_scale_gives_the_same_weights(adaptive: bool) -> None:
    small, large, none = Scaled(1.0, adaptive=adaptive), Scaled(2.0**16, adaptive=adaptive), problem()
    plain = SAM(SGD(none[0].parameters(), lr=0.1, momentum=0.9), rho=0.5, adaptive=adaptive, clip_norm=0.5)
    for _ in range(5):
        small.step()
        large.step()
        plain.step(Watch(plain, none[1]))
    assert same_bits(small.weights, large.weights)  # powers of 2: exact
    torch.testing.assert_close(small.weights, list(none[0].parameters()))


def test_in_fp16_what_a_scale_of_1_loses_a_larger_one_keeps() -> None:
    """Gradients under 6e-8 are 0 in fp16; scaled they are there, and SAM is as in fp32."""

    def after(scale: float, dtype: torch.dtype | None) -> list[Tensor]:
        loop = Scaled(scale, dtype)
        loss = loop.loss
        loop.loss = lambda: loss() * 1e-7
        before = snapshot(loop.weights)
        loop.optimizer.param_groups[0]["lr"] = 1e6
        loop.step()
        return [p - q for p, q in zip(loop.weights, before, strict=True)]

    exact, scaled, lost = after(1.0, None), after(2.0**16, torch.float16), after(1.0, torch.float16)
    torch.testing.assert_close(scaled, exact, rtol=0.05, atol=2e-4)
    assert sum(int((p == 0).sum()) for p in lost) > sum(int((p == 0).sum()) for p in scaled)


@over_both
@pytest.mark.parametrize("call", [1, 2])
def test_inf_backs_off_once_and_skips(call: int, adaptive: bool) -> None:
    loop = Scaled(2.0**16, adaptive=adaptive)
    loop.step()
    weights, state = snapshot(loop.weights), snapshot(state_of(loop.optimizer))

    def spoil(now: int) -> None:
        if now == call:
            gradient = loop.weights[0].grad
            assert gradient is not None
            gradient[0, 0] = math.inf

    loop.step(spoil)
    assert loop.scaler.get_scale() == 2.0**15
    assert same_bits(loop.weights, weights)
    assert same_bits(state_of(loop.optimizer), state)
    loop.step()
    assert loop.scaler.get_scale() == 2.0**15
    assert not same_bits(loop.weights, weights)


def test_a_scale_that_overflows_fp16_comes_down_until_it_fits_and_training_goes_on() -> None:
    loop = Scaled(2.0**40, torch.float16)
    before = snapshot(loop.weights)
    steps = 0
    while same_bits(loop.weights, before):
        loop.step()
        steps += 1
        assert steps < 40
    assert loop.scaler.get_scale() == 2.0 ** (40 - (steps - 1))
    assert steps > 1
    assert all(w.isfinite().all() for w in loop.weights)


def test_a_scaler_that_is_not_enabled_changes_nothing() -> None:
    loop, (model, loss) = Scaled(1.0), problem()
    loop.scaler = GradScaler("cpu", enabled=False)
    loop.step()
    plain = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, clip_norm=0.5)
    plain.step(Watch(plain, loss))
    torch.testing.assert_close(loop.weights, list(model.parameters()))
