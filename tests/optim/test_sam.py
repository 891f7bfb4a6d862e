"""The SAM step itself: where it looks, what it follows, and that the weights come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.sam import SAM

from .helpers import Watch, flat, over_all_bases, over_both, problem, same_bits, snapshot

MakeBase = Callable[..., Optimizer]


# ---- against numbers worked out by hand, and against a second implementation -------------------------------------


def quadratic(w: Tensor, curvature: list[float]) -> Tensor:
    """L(w) = (a w1^2 + b w2^2) / 2, with gradient (a w1, b w2)."""
    return (torch.tensor(curvature, dtype=w.dtype) * w**2).sum() / 2


def test_golden_sam() -> None:
    """w = (3, 2), a = 1, b = 2, rho = 0.5, SGD with lr 0.1.

    L(w) = (1*9 + 2*4)/2 = 8.5;  g = (3, 4), ||g|| = 5;  e = 0.5 (3, 4)/5 = (0.3, 0.4);  w + e = (3.3, 2.4)
    g' = (3.3, 4.8);  w <- (3 - 0.33, 2 - 0.48) = (2.67, 1.52)
    """
    w = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))
    optimizer = SAM(SGD([w], lr=0.1), rho=0.5)
    watch = Watch(optimizer, lambda: quadratic(w, [1.0, 2.0]))
    loss = optimizer.step(watch)
    assert loss.item() == pytest.approx(8.5, rel=1e-12)
    assert watch.weights[1][0].tolist() == pytest.approx([3.3, 2.4], rel=1e-10)
    assert w.tolist() == pytest.approx([2.67, 1.52], rel=1e-10)


def test_golden_asam() -> None:
    """w = (2, -1), a = 0.5, b = 2, rho = 0.5, eta = 1, SGD with lr 0.1.

    L(w) = (0.5*4 + 2*1)/2 = 2;  g = (1, -2);  T = |w| + 1 = (3, 2);  T g = (3, -4), ||T g|| = 5;  T^2 g = (9, -8)
    e = 0.5 (9, -8)/5 = (0.9, -0.8);  w + e = (2.9, -1.8);  g' = (1.45, -3.6)
    w <- (2 - 0.145, -1 + 0.36) = (1.855, -0.64)
    """
    w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = SAM(SGD([w], lr=0.1), rho=0.5, adaptive=True, eta=1.0)
    watch = Watch(optimizer, lambda: quadratic(w, [0.5, 2.0]))
    loss = optimizer.step(watch)
    assert loss.item() == pytest.approx(2.0, rel=1e-12)
    assert watch.weights[1][0].tolist() == pytest.approx([2.9, -1.8], rel=1e-10)
    assert w.tolist() == pytest.approx([1.855, -0.64], rel=1e-10)


def nesterov(w: Tensor, g: Tensor, t: int, memory: dict[str, Tensor], decay: float = 0.01) -> Tensor:
    d = g + decay * w
    v = memory["v"] = 0.9 * memory.get("v", torch.zeros_like(w)) + d
    return w - 0.1 * (d + 0.9 * v)


def adamw(w: Tensor, g: Tensor, t: int, memory: dict[str, Tensor], decay: float = 0.1) -> Tensor:
    m = memory["m"] = 0.9 * memory.get("m", torch.zeros_like(w)) + 0.1 * g
    v = memory["v"] = 0.999 * memory.get("v", torch.zeros_like(w)) + 0.001 * g**2
    return w - 0.05 * decay * w - 0.05 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)


@over_both
@pytest.mark.parametrize(
    ("update", "base"),
    [
        (nesterov, lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
        (adamw, lambda params: AdamW(params, lr=0.05, weight_decay=0.1)),
    ],
    ids=["nesterov", "adamw"],
)
def test_20_steps_follow_the_papers_formula_on_one_flat_vector(
    update: Callable[..., Tensor], base: MakeBase, adaptive: bool
) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(20, 5, 4, dtype=torch.float64), torch.randn(20, 5, 3, dtype=torch.float64)
    matrix, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def loss_of(m: Tensor, b: Tensor, t: int) -> Tensor:
        return (torch.tanh(x[t] @ m + b) - y[t]).square().mean()

    w, memory, rho = torch.cat([matrix.reshape(-1), bias]), dict[str, Tensor](), 0.3

    def gradient(at: Tensor, t: int) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad(loss_of(at[:12].reshape(4, 3), at[12:], t), at)[0]

    m, b = nn.Parameter(matrix), nn.Parameter(bias)
    optimizer = SAM(base([m, b]), rho=rho, adaptive=adaptive, eta=0.01)
    for t in range(20):
        optimizer.step(Watch(optimizer, partial(loss_of, m, b, t)))
        g = gradient(w, t)
        scale = w.abs() + 0.01 if adaptive else torch.ones_like(w)
        w = update(w, gradient(w + rho * scale**2 * g / (scale * g).norm(), t), t + 1, memory)
        torch.testing.assert_close(flat([m, b]), w, rtol=1e-9, atol=1e-11)


# ---- the perturbation --------------------------------------------------------------------------------------------


def two_groups(model: nn.Module, **second: float) -> SGD:
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first]}, {"params": rest, **second}]
    return SGD(groups, lr=0.1)


def test_e_is_the_gradient_scaled_to_norm_rho_over_all_groups() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(two_groups(model), rho=0.3)
    optimizer.step(watch := Watch(optimizer, loss))
    e, g = flat(watch.e), flat(watch.gradients[0])
    assert e.norm().item() == pytest.approx(0.3, rel=1e-9)
    torch.testing.assert_close(e, 0.3 * g / g.norm(), rtol=1e-9, atol=1e-12)


def test_a_groups_own_rho_is_honoured_under_one_norm() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(two_groups(model, rho=0.9), rho=0.3)
    optimizer.step(watch := Watch(optimizer, loss))
    norm = flat(watch.gradients[0]).norm()
    for e, g, rho in zip(watch.e, watch.gradients[0], [0.3, 0.9, 0.9, 0.9], strict=True):
        torch.testing.assert_close(e, rho * g / norm, rtol=1e-9, atol=1e-12)


def test_a_group_with_rho_0_stays_while_others_move() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(two_groups(model, rho=0.0), rho=0.3)
    optimizer.step(watch := Watch(optimizer, loss))
    assert watch.e[0].norm() > 0
    assert not any(e.any() for e in watch.e[1:])


def test_asam_e_is_rho_t2_g_over_the_norm_of_tg() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(two_groups(model), rho=0.7, adaptive=True, eta=0.05)
    optimizer.step(watch := Watch(optimizer, loss))
    e, g, t = flat(watch.e), flat(watch.gradients[0]), flat(watch.weights[0]).abs() + 0.05
    torch.testing.assert_close(e, 0.7 * t**2 * g / (t * g).norm(), rtol=1e-9, atol=1e-12)
    assert (e / t).norm().item() == pytest.approx(0.7, rel=1e-9)


@over_both
def test_frozen_parameters_and_those_without_a_gradient_are_not_moved(adaptive: bool) -> None:
    model, loss = problem()
    frozen, unused = model[0].weight, nn.Parameter(torch.randn(3))  # type: ignore[index]
    frozen.requires_grad_(False)
    before = snapshot([frozen, unused])
    optimizer = SAM(SGD([*model.parameters(), unused], lr=0.1), rho=0.3, adaptive=adaptive)
    optimizer.step(watch := Watch(optimizer, loss))
    moved = [bool(e.any()) for e in watch.e]
    assert moved == [False, True, True, True, False]
    assert same_bits([frozen, unused], before)


def test_the_bases_weight_decay_is_not_in_the_ascent() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=0.1, weight_decay=10.0), rho=0.3)
    optimizer.step(watch := Watch(optimizer, loss))
    g = flat(watch.gradients[0])
    torch.testing.assert_close(flat(watch.e), 0.3 * g / g.norm(), rtol=1e-9, atol=1e-12)


@over_both
def test_clip_norm_acts_on_the_final_gradient_only(adaptive: bool) -> None:
    model, loss = problem(torch.float64)
    free = SAM(SGD(model.parameters(), lr=0.0), rho=0.3, adaptive=adaptive)
    free.step(unclipped := Watch(free, loss))
    optimizer = SAM(SGD(model.parameters(), lr=1.0), rho=0.3, adaptive=adaptive, clip_norm=1e-3)
    optimizer.step(watch := Watch(optimizer, loss))
    assert same_bits(watch.e, unclipped.e)
    update, g = flat(watch.weights[0]) - flat(model.parameters()), flat(watch.gradients[1])
    assert g.norm() > 1e-2
    torch.testing.assert_close(update, 1e-3 * g / (g.norm() + 1e-6), rtol=1e-9, atol=1e-12)


def test_clip_norm_leaves_a_smaller_gradient_alone() -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), clip_norm=1e3)
    optimizer.step(Watch(optimizer, loss))
    plain = SAM(SGD(twin.parameters(), lr=0.1))
    plain.step(Watch(plain, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())


# ---- the evaluations ---------------------------------------------------------------------------------------------


@over_both
def test_the_closure_runs_twice_and_the_loss_at_w_is_returned(adaptive: bool) -> None:
    model, loss = problem()
    at_w = loss().detach()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=adaptive)
    returned = optimizer.step(watch := Watch(optimizer, loss))
    assert watch.calls == 2
    assert torch.equal(returned, at_w)
    assert watch.losses[1] > at_w


@over_all_bases
def test_rho_0_is_the_base_optimizer_bit_for_bit_and_costs_one_pass(base: MakeBase) -> None:
    model, loss = problem(dropout=0.5)
    twin, twin_loss = problem(dropout=0.5)
    optimizer, plain = SAM(base(model.parameters()), rho=0.0, model=model), base(twin.parameters())
    watch = Watch(optimizer, loss)
    for seed in range(3):
        torch.manual_seed(seed)
        optimizer.step(watch)
        torch.manual_seed(seed)
        plain.step(Watch(plain, twin_loss))  # type: ignore[arg-type]
    assert watch.calls == 3
    assert same_bits(model.parameters(), twin.parameters())


@over_all_bases
def test_a_bare_method_is_the_base_optimizer_bit_for_bit(base: MakeBase) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, plain = OptimizerWrapper(base(model.parameters())), base(twin.parameters())
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))  # type: ignore[arg-type]
    assert same_bits(model.parameters(), twin.parameters())


@over_both
def test_a_closure_that_forgets_zero_grad_gets_the_right_second_gradient(adaptive: bool) -> None:
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5, adaptive=adaptive)
    optimizer.step(right := Watch(optimizer, loss))
    optimizer.zero_grad()
    optimizer.step(forgetful := Watch(optimizer, loss, zero_grad=False))
    assert same_bits(forgetful.gradients[1], right.gradients[1])


@pytest.mark.parametrize("where", ["inside", "around"])
def test_the_second_pass_sees_moved_weights_under_an_autocast_too(where: str) -> None:
    """An autocast that is around both passes keeps the bf16 copies of weights that it has made."""
    model, loss = problem()
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)

    def in_bf16() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss().float()

    if where == "inside":
        optimizer.step(watch := Watch(optimizer, in_bf16))
    else:
        with torch.autocast("cpu", torch.bfloat16):
            optimizer.step(watch := Watch(optimizer, in_bf16))
            after = in_bf16().detach()
        assert torch.equal(after, in_bf16().detach())
    assert watch.losses[1] > watch.losses[0] * 1.1


def test_the_base_follows_the_second_gradient_from_w() -> None:
    model, loss = problem(torch.float64)
    optimizer = SAM(SGD(model.parameters(), lr=0.1), rho=0.5)
    optimizer.step(watch := Watch(optimizer, loss))
    assert not torch.equal(flat(watch.gradients[0]), flat(watch.gradients[1]))
    expected = flat(watch.weights[0]) - 0.1 * flat(watch.gradients[1])
    torch.testing.assert_close(flat(model.parameters()), expected, rtol=1e-14, atol=0)


# ---- the weights come back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@over_both
@over_all_bases
def test_with_lr_0_the_weights_are_the_very_same_bits_in_the_same_memory(
    base: MakeBase, adaptive: bool, dtype: torch.dtype
) -> None:
    model, loss = problem(dtype)
    optimizer = SAM(base(model.parameters(), lr=0.0), rho=0.5, adaptive=adaptive)
    before, places = snapshot(model.parameters()), [p.data_ptr() for p in model.parameters()]
    for _ in range(3):
        optimizer.step(watch := Watch(optimizer, loss))
        assert all(e.any() for e in watch.e)
    assert same_bits(model.parameters(), before)
    assert [p.data_ptr() for p in model.parameters()] == places


@over_both
def test_a_parameter_with_a_gradient_in_pass_1_and_none_in_pass_2_comes_back(adaptive: bool) -> None:
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), torch.randn(8, 4)
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.0), rho=0.5, adaptive=adaptive)
    watch = Watch(optimizer, lambda: model[watch.calls % 2](x).square().mean())  # each pass another branch
    optimizer.step(watch)
    assert all(e.any() for e in watch.e[2:])
    assert not any(e.any() for e in watch.e[:2])
    assert same_bits(model.parameters(), before)


@over_both
def test_a_gradient_that_is_zero_is_harmless(adaptive: bool) -> None:
    model, loss = problem()
    before = snapshot(model.parameters())
    optimizer = SAM(SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, adaptive=adaptive)
    optimizer.step(watch := Watch(optimizer, lambda: loss() * 0))
    assert not flat(watch.e).any()
    assert same_bits(model.parameters(), before)
    assert optimizer.skipped_steps == 0


def test_a_step_in_which_nothing_has_a_gradient_is_harmless() -> None:
    model, _ = problem()
    before, constant = snapshot(model.parameters()), torch.zeros((), requires_grad=True)
    optimizer = SAM(SGD(model.parameters(), lr=0.1))
    optimizer.step(watch := Watch(optimizer, lambda: constant * 1))
    assert watch.calls == 1, "there is nothing to ascend along"
    assert same_bits(model.parameters(), before)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_a_step_without_a_closure_says_what_it_needs() -> None:
    model, _ = problem()
    with pytest.raises(TypeError, match=r"SAM\.step needs a closure.*optimizer\.step\(closure\)"):
        SAM(SGD(model.parameters(), lr=0.1)).step()


def test_a_base_that_is_no_optimizer_is_refused() -> None:
    model, _ = problem()
    with pytest.raises(TypeError, match=r"SAM wraps a constructed optimizer, for example .*; got generator"):
        SAM(model.parameters())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got the class SGD"):
        SAM(SGD)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["rho", "eta"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_rho_or_eta_below_0_is_refused(name: str, value: float) -> None:
    model, _ = problem()
    with pytest.raises(ValueError, match=f"{name} must be >= 0"):
        SAM(SGD(model.parameters(), lr=0.1), **{name: value})  # type: ignore[arg-type]
