"""XSAM against its formula: the plane of the ascent and the gradient there, and the search in it.

On the quadratic of `test_family`: w = (3, 2), g = (3, 4), and with rho = 5 e = (3, 4), g' = (6, 12). Then
v0 = (3, 4)/5 and v1 = (1, 2)/r with r = sqrt(5), cos = 2.2/r and sin = 0.4/r of their angle, and v(2), the mirror image
of v0 in v1, is 2 cos v1 - v0 = (0.28, 0.96).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from bench.optim.sam import SAM
from bench.optim.xsam import XSAM

from .helpers import Watch, flat, problem, same_bits
from .test_family import Descent, exact

R = 5**0.5


def direction(v0: Tensor, v1: Tensor, alpha: float) -> Tensor:
    """The paper's v(alpha), of vectors of any length."""
    v0, v1 = v0 / v0.norm(), v1 / v1.norm()
    angle = torch.arccos(v0 @ v1)
    return (torch.sin((1 - alpha) * angle) * v0 + torch.sin(alpha * angle) * v1) / torch.sin(angle)


@pytest.mark.parametrize(
    ("alpha", "along"),
    [(0.0, [0.6, 0.8]), (1.0, [1 / R, 2 / R]), (2.0, [0.28, 0.96])],
)
def test_golden_xsam_of_a_fixed_alpha(alpha: float, along: list[float]) -> None:
    """||g'|| = 6 r; lr 0.1: w <- (3, 2) - 0.6 r v(alpha); two passes."""
    descent = Descent(lambda base: XSAM(base, rho=5.0, alpha=alpha), lr=0.1)
    assert descent.step() == exact([3 - 0.6 * R * along[0], 2 - 0.6 * R * along[1]])
    assert descent.looked_at() == [exact([3, 2]), exact([6, 6])]
    assert descent.returned == pytest.approx(8.5)


def test_golden_search() -> None:
    """rho_max = 5, alpha of 0, 1 and 2: 2 L is 108 at (6, 6), 111.2 at (3 + r, 2 + 2 r), 111.8 at (4.4, 6.8): 2.

    So alpha is 2; with values up to 1 it is 1, which is SAM.
    """
    descent = Descent(lambda base: XSAM(base, rho=5.0, rho_max=5.0, points=3, search_every=2), lr=0.1)
    assert descent.step() == exact([3 - 0.6 * R * 0.28, 2 - 0.6 * R * 0.96])
    tried = [exact([6, 6]), exact([3 + R, 2 + 2 * R]), exact([4.4, 6.8])]
    assert descent.looked_at() == [exact([3, 2]), exact([6, 6]), *tried]
    assert descent.returned == pytest.approx(8.5), "the loss at w, not one of the search"
    assert descent.optimizer.param_groups[0]["alpha"].item() == 2
    assert descent.watch.work == pytest.approx(2 + 3 / 3)
    descent.step()
    assert descent.watch.calls == 2, "no search in the second step"
    descent.step()
    assert descent.watch.calls == 5
    sams = Descent(lambda base: XSAM(base, rho=5.0, rho_max=5.0, alpha_max=1.0, points=2), lr=0.1)
    assert sams.step() == exact([2.4, 0.8])


def test_golden_ascent_in_two_parts() -> None:
    """rho = 5: first 2.5 along (3, 4) to (4.5, 4), then 2.5 along (4.5, 8), of length sqrt(84.25)."""
    descent = Descent(lambda base: XSAM(base, rho=5.0, alpha=0.7, ascents=2), lr=0.1)
    after = descent.step()
    end = [4.5 + 2.5 * 4.5 / 84.25**0.5, 4 + 2.5 * 8 / 84.25**0.5]
    assert descent.looked_at() == [exact([3, 2]), exact([4.5, 4]), exact(end)]
    moved, gradient = torch.tensor([[end[0] - 3, end[1] - 2], [end[0], 2 * end[1]]], dtype=torch.float64)
    followed = gradient.norm() * direction(moved, gradient, 0.7)
    assert after == exact([3 - 0.1 * followed[0].item(), 2 - 0.1 * followed[1].item()])


def test_alpha_1_is_sam() -> None:
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    ours, sam = XSAM(SGD(model.parameters(), lr=0.1), rho=0.5, alpha=1.0), SAM(SGD(twin.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        ours.step(Watch(ours, loss))
        sam.step(Watch(sam, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-10, atol=1e-12)


def test_where_the_gradient_is_the_same_everywhere_it_is_the_base() -> None:
    """v0 and v1 are parallel, and any alpha gives them."""
    slope, ends = torch.tensor([3.0, -4.0], dtype=torch.float64), []
    for make in (SGD, lambda w, lr: XSAM(SGD(w, lr=lr), alpha=0.3), lambda w, lr: XSAM(SGD(w, lr=lr), points=3)):
        w = nn.Parameter(torch.ones(2, dtype=torch.float64))
        optimizer: Any = make([w], lr=0.1)
        for _ in range(3):
            optimizer.step(Watch(optimizer, partial(lambda w: (w * slope).sum(), w)))
        ends.append(w.tolist())
    assert ends[1] == exact(ends[0])
    assert ends[2] == exact(ends[0])


def searched(loss: Callable[[nn.Module], Tensor], seed: int = 0, **settings: Any) -> tuple[nn.Module, Any, Watch]:
    """A net after one step that searches."""
    model, _ = problem(torch.float64, seed=seed)
    optimizer = XSAM(SGD(model.parameters(), lr=0.1), rho=0.5, rho_max=0.8, **settings)
    optimizer.step(watch := Watch(optimizer, partial(loss, model)))
    return model, optimizer, watch


def of(x: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(x).square().mean()


def batch(number: int) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(number), dtype=torch.float64)


def test_the_search_tries_the_points_of_an_arc_and_takes_the_highest() -> None:
    _, optimizer, watch = searched(of(batch(0)))
    w, moved, gradient = flat(watch.weights[0]), flat(watch.e), flat(watch.gradients[1])
    alphas = [n / 10 for n in range(21)]
    for alpha, tried in zip(alphas, watch.weights[2:], strict=True):
        expected = w + 0.8 * direction(moved, gradient, alpha)
        torch.testing.assert_close(flat(tried), expected, rtol=1e-9, atol=1e-12)
    best = max(range(21), key=lambda n: watch.losses[2 + n].item())
    alpha = optimizer.param_groups[0]["alpha"].item()
    assert alpha == pytest.approx(alphas[best])
    followed = (w - flat(p for g in optimizer.param_groups for p in g["params"])) / 0.1
    expected = gradient.norm() * direction(moved, gradient, alphas[best])
    torch.testing.assert_close(followed, expected, rtol=1e-6, atol=1e-9)


def test_a_closure_that_goes_backward_in_a_search_leads_to_the_same_weights() -> None:
    model, _, _ = searched(of(batch(0)))
    twin, _ = problem(torch.float64)
    other = XSAM(SGD(twin.parameters(), lr=0.1), rho=0.5, rho_max=0.8)
    calls = []

    def closure() -> Tensor:
        other.zero_grad()
        loss = of(batch(0))(twin)
        loss.backward()  # type: ignore[no-untyped-call]
        calls.append(1)
        return loss

    other.step(closure)
    assert len(calls) == 2 + 21
    assert same_bits(model.parameters(), twin.parameters())


def test_parts_search_each_for_itself_and_their_mean_is_kept() -> None:
    found = [searched(of(batch(n)))[1].param_groups[0]["alpha"].item() for n in range(4)]
    assert len(set(found)) > 1
    model, _ = problem(torch.float64)
    optimizer = XSAM(SGD(model.parameters(), lr=0.1), rho=0.5, rho_max=0.8)
    optimizer.step([Watch(optimizer, partial(of(batch(n)), model)) for n in range(4)])
    assert optimizer.param_groups[0]["alpha"].item() == pytest.approx(sum(found) / 4)


def test_a_search_in_a_step_that_is_skipped_changes_no_alpha() -> None:
    model, _ = problem(torch.float64)
    optimizer = XSAM(SGD(model.parameters(), lr=0.1), rho=0.5, search_every=2)
    loss = of(batch(0))
    optimizer.step(Watch(optimizer, lambda: loss(model) * torch.inf))
    assert optimizer.skipped_steps == 1
    assert float(optimizer.param_groups[0]["alpha"]) == 1.0
    assert flat(model.parameters()).isfinite().all()
    for _ in range(2):
        optimizer.step(Watch(optimizer, partial(loss, model)))
    assert float(optimizer.param_groups[0]["alpha"]) != 1.0


def test_a_base_that_maximizes_flees_from_the_lowest_point() -> None:
    """-L upwards is L downwards."""
    model, _, _ = searched(of(batch(0)))
    twin, _ = problem(torch.float64)
    optimizer = XSAM(SGD(twin.parameters(), lr=0.1, maximize=True), rho=0.5, rho_max=0.8)
    optimizer.step(Watch(optimizer, lambda: -of(batch(0))(twin)))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-10, atol=1e-12)


def test_parameters_that_are_not_perturbed_follow_the_gradient_there() -> None:
    model, loss = problem(torch.float64)
    first, rest = list(model.parameters())[:2], list(model.parameters())[2:]
    groups: list[dict[str, Any]] = [{"params": first}, {"params": rest, "rho": 0.0}]
    optimizer = XSAM(SGD(groups, lr=0.1), rho=0.5, alpha=0.4)
    optimizer.step(watch := Watch(optimizer, loss))
    before, moved, there = (flat(watch.weights[0][2:]), flat(watch.e[:2]), watch.gradients[1])
    assert not flat(watch.e[2:]).any()
    torch.testing.assert_close((before - flat(rest)) / 0.1, flat(there[2:]), rtol=1e-9, atol=1e-12)
    expected = flat(there[:2]).norm() * direction(moved, flat(there[:2]), 0.4)
    torch.testing.assert_close((flat(watch.weights[0][:2]) - flat(first)) / 0.1, expected, rtol=1e-9, atol=1e-12)


def test_micro_batches_of_backward_search_in_the_same_step() -> None:
    model, _ = problem(torch.float64)
    twin, _ = problem(torch.float64)
    apart, whole = (XSAM(SGD(m.parameters(), lr=0.1), rho=0.5, search_every=2) for m in (model, twin))

    def micro(number: int) -> Tensor:
        loss: Tensor = of(batch(number))(model) / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for step in range(3):
        apart.zero_grad()
        for number in range(2):
            apart.backward(partial(micro, 2 * step + number))
        apart.step()
        whole.step([Watch(whole, partial(of(batch(2 * step + n)), twin)) for n in range(2)])
        assert float(apart.param_groups[0]["alpha"]) == pytest.approx(float(whole.param_groups[0]["alpha"]))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-9, atol=1e-12)


def test_a_search_needs_the_loss() -> None:
    model, loss = problem()
    optimizer = XSAM(SGD(model.parameters(), lr=0.1))

    def silent() -> None:
        Watch(optimizer, loss)()

    before = flat(model.parameters())
    with pytest.raises(TypeError, match="needs a closure that returns its loss, one number"):
        optimizer.step(silent)
    assert torch.equal(flat(model.parameters()), before)
    XSAM(SGD(model.parameters(), lr=0.1), alpha=1.0).step(silent)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rho_max": 0.0}, "XSAM: rho_max and alpha_max must be above 0, got 0.0"),
        ({"alpha": -1.0}, "XSAM: alpha must be >= 0, or None to search for it, got -1.0"),
        ({"points": 1}, "XSAM: points must be >= 2, search_every and ascents >= 1, got 1, 400 and 1"),
        ({"ascents": 0}, "XSAM: points must be >= 2, search_every and ascents >= 1, got 21, 400 and 0"),
        ({"norm_group": object()}, "XSAM does not support norm_group"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        XSAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), **settings)
