"""The variants and the controls against numbers worked out by hand from the papers' formulas.

All of them on L(w) = (w1^2 + 2 w2^2) / 2, with gradient (w1, 2 w2), from w = (3, 2), where g = (3, 4) and ||g|| = 5.
With rho = 5 the ascent of SAM is e = g, so w + e = (6, 6) and g' = (6, 12).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.ema import EMA
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.swa import SWA

from .helpers import Watch, WatchLosses, flat, problem, same_bits, snapshot


def exact(values: list[float]) -> Any:
    return pytest.approx(values, rel=1e-9, abs=1e-9)


class Descent:
    """A method on the quadratic, step by step."""

    def __init__(
        self, method: Callable[[torch.optim.Optimizer], OptimizerWrapper], lr: float, momentum: float = 0.0
    ) -> None:
        self.w = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))
        self.optimizer = method(SGD([self.w], lr=lr, momentum=momentum))
        self.watch = Watch(self.optimizer, self.loss)
        self.returned = 0.0

    def loss(self) -> Tensor:
        return (torch.tensor([1.0, 2.0], dtype=torch.float64) * self.w**2).sum() / 2

    def step(self) -> list[float]:
        """The weights after one more step."""
        self.watch = Watch(self.optimizer, self.loss)
        self.returned = self.optimizer.step(self.watch).item()
        return self.w.tolist()

    def looked_at(self) -> list[list[float]]:
        """The points at which the last step evaluated the loss."""
        return [weights[0].tolist() for weights in self.watch.weights]


# ---- GSAM --------------------------------------------------------------------------------------------------------


def test_golden_gsam() -> None:
    """g . g' = 3*6 + 4*12 = 66, ||g'||^2 = 180, so g_ = (3, 4) - 66/180 (6, 12) = (0.8, -0.4), orthogonal to g'.

    alpha = 0.5: g' - 0.5 g_ = (5.6, 12.2); lr 0.1: w <- (3 - 0.56, 2 - 1.22) = (2.44, 0.78)
    """
    descent = Descent(lambda base: GSAM(base, rho=5.0, alpha=0.5), lr=0.1)
    assert descent.step() == exact([2.44, 0.78])
    assert descent.looked_at() == [exact([3, 2]), exact([6, 6])]
    assert descent.returned == pytest.approx(8.5)


def test_gsam_of_alpha_0_is_sam() -> None:
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    gsam, sam = GSAM(SGD(model.parameters(), lr=0.1), rho=0.5, alpha=0.0), SAM(SGD(twin.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        gsam.step(Watch(gsam, loss))
        sam.step(Watch(sam, twin_loss))
    torch.testing.assert_close(flat(model.parameters()), flat(twin.parameters()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("make", [GSAM, LookSAM], ids=["gsam", "looksam"])
def test_a_parameter_that_only_one_pass_reaches_counts_as_zero_in_the_other(make: Any) -> None:
    """Stochastic depth: two branches, of which each pass takes one."""
    torch.manual_seed(0)
    model, x = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]), torch.randn(8, 4)
    optimizer = make(SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    watch = Watch(optimizer, lambda: model[watch.calls - 1](x).square().mean())
    optimizer.step(watch)
    first, second = (list(model[n].parameters()) for n in (0, 1))
    g, g_moved = flat(watch.gradients[0][:2]), flat(watch.gradients[1][2:])
    if make is GSAM:  # nothing of g is along g'
        assert torch.allclose(flat(p.grad for p in first if p.grad is not None), -0.1 * g)
        assert torch.allclose(flat(p.grad for p in second if p.grad is not None), g_moved)
    else:  # all of g' is orthogonal to g
        assert torch.allclose(flat(optimizer.remembered(second)), g_moved)
        assert not flat(optimizer.remembered(first)).any()


# ---- LookSAM -----------------------------------------------------------------------------------------------------


def test_golden_looksam() -> None:
    """k = 2, alpha = 0.6, lr 1/6.

    1: a step of SAM: w <- (3, 2) - (6, 12)/6 = (2, 0);  g_v = (6, 12) - 66/25 (3, 4) = (-1.92, 1.44), ||g_v|| = 2.4
    2: g = (2, 0), ||g|| = 2; g + 0.6 * 2/2.4 * g_v = (2, 0) + 0.5 (-1.92, 1.44) = (1.04, 0.72);
       w <- (2 - 1.04/6, -0.12)
    3: a step of SAM again, two passes
    """
    descent = Descent(lambda base: LookSAM(base, rho=5.0, k=2, alpha=0.6), lr=1 / 6)
    assert descent.step() == exact([2, 0])
    assert isinstance(descent.optimizer, LookSAM)
    assert descent.optimizer.remembered([descent.w])[0].tolist() == exact([-1.92, 1.44])
    assert descent.step() == exact([2 - 1.04 / 6, -0.12])
    assert descent.looked_at() == [exact([2, 0])], "one pass, at w"
    descent.step()
    assert descent.watch.calls == 2


def test_looksam_reuses_nothing_outside_of_its_share_of_training() -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer = LookSAM(SGD(model.parameters(), lr=0.1), rho=0.5, k=2, perturb_from=0.5, total_steps=4)
    plain = SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss))
        plain.step(Watch(plain, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())
    passes = []
    for _ in range(2):
        optimizer.step(watch := Watch(optimizer, loss))
        passes.append(watch.calls)
    assert passes == [2, 1]


# ---- Friendly SAM ------------------------------------------------------------------------------------------------


def test_golden_friendly_sam() -> None:
    """sigma = 0.8, lmbda = 0.5, lr 1/6.

    1: m = 0.5 (3, 4) = (1.5, 2); d = (3, 4) - 0.8 m = (1.8, 2.4), ||d|| = 3; e = 5 d/3 = (3, 4); g' = (6, 12);
       w <- (3 - 1, 2 - 2) = (2, 0)
    2: g = (2, 0); m = 0.5 (1.5, 2) + 0.5 (2, 0) = (1.75, 1); d = (2, 0) - 0.8 m = (0.6, -0.8), ||d|| = 1;
       e = (3, -4); w + e = (5, -4); g' = (5, -8); w <- (2 - 5/6, 8/6)
    """
    descent = Descent(lambda base: FriendlySAM(base, rho=5.0, sigma=0.8, lmbda=0.5), lr=1 / 6)
    assert descent.step() == exact([2, 0])
    assert descent.looked_at()[1] == exact([6, 6])
    assert descent.step() == exact([2 - 5 / 6, 8 / 6])
    assert descent.looked_at()[1] == exact([5, -4])
    assert isinstance(descent.optimizer, FriendlySAM)
    assert descent.optimizer.remembered([descent.w])[0].tolist() == exact([1.75, 1])


def test_the_average_of_a_gradient_that_never_changes_is_that_gradient() -> None:
    """Where one package's settles at half of it."""
    w = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = FriendlySAM(SGD([w], lr=0.1), rho=1.0, lmbda=0.5)
    for _ in range(60):
        optimizer.step(Watch(optimizer, lambda: w.sum()))
    assert optimizer.remembered([w])[0].tolist() == exact([1, 1])


def test_friendly_sam_of_sigma_0_is_sam() -> None:
    model, loss = problem(torch.float64)
    twin, twin_loss = problem(torch.float64)
    friendly = FriendlySAM(SGD(model.parameters(), lr=0.1), rho=0.5, sigma=0.0)
    sam = SAM(SGD(twin.parameters(), lr=0.1), rho=0.5)
    for _ in range(3):
        friendly.step(Watch(friendly, loss))
        sam.step(Watch(sam, twin_loss))
    assert same_bits(model.parameters(), twin.parameters())


# ---- ESAM --------------------------------------------------------------------------------------------------------


def test_golden_esam_descends_on_the_example_whose_loss_rises_most() -> None:
    """Two examples with losses w1^2 and 2 w2^2, whose mean is L. beta = 1, gamma = 0.5, lr 0.05.

    at w: (9, 8), at w + e = (6, 6): (36, 72); they rise by 27 and 64, so B+ is the second, with gradient (0, 24);
    w <- (3, 2 - 1.2) = (3, 0.8)
    """
    w = nn.Parameter(torch.tensor([3.0, 2.0], dtype=torch.float64))
    optimizer = ESAM(SGD([w], lr=0.05), rho=5.0, beta=1.0, gamma=0.5)

    def losses(examples: Tensor | slice = slice(None)) -> Tensor:
        return (torch.tensor([1.0, 2.0], dtype=torch.float64) * w**2)[examples]

    watch = WatchLosses(optimizer, losses, 2)
    assert optimizer.step(watch).item() == pytest.approx(8.5)
    assert w.tolist() == exact([3, 0.8])
    assert [weights[0].tolist() for weights in watch.weights] == [exact([3, 2]), exact([6, 6]), exact([6, 6])]
    assert watch.work == pytest.approx(1 + 1 / 3 + 1 / 2)


def test_esam_moves_a_share_of_the_weights_further() -> None:
    torch.manual_seed(0)
    w, direction = nn.Parameter(torch.zeros(10_000)), torch.randn(10_000)

    def moved(step: int) -> Tensor:
        optimizer = ESAM(SGD([w], lr=0.0), rho=2.0, beta=0.25, gamma=1.0)
        for group in optimizer.param_groups:
            group["steps_done"] = step
        watch = WatchLosses(optimizer, lambda: ((w + 1) * direction).sum().reshape(1), 1)
        optimizer.step(watch)
        assert watch.work == 2, "of the whole batch nothing has to be chosen"
        return watch.e[0]

    e, full = moved(0), 2.0 * direction / direction.norm()
    kept = e != 0
    assert 0.22 < kept.float().mean() < 0.28
    torch.testing.assert_close(e[kept], 4 * full[kept])
    assert torch.equal(e, moved(0))
    assert not torch.equal(kept, moved(1) != 0)


def test_esam_says_what_it_wants_where_it_gets_a_closure_of_other_methods() -> None:
    model, loss = problem()
    optimizer = ESAM(SGD(model.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"ESAM\.step takes a function that returns the losses of single examples"):
        optimizer.step(Watch(optimizer, loss))


# ---- Momentum-SAM ------------------------------------------------------------------------------------------------


def test_golden_momentum_sam() -> None:
    """Momentum 0.5, lr 0.5, rho 2.5.

    1: there is no momentum yet; v = (3, 4); w <- (3 - 1.5, 2 - 2) = (1.5, 0)
    2: e = -2.5 (3, 4)/5 = (-1.5, -2); w + e = (0, -2), where L = 4 and the gradient is (0, -4);
       v = 0.5 (3, 4) + (0, -4) = (1.5, -2); w <- (1.5 - 0.75, 0 + 1) = (0.75, 1)
    """
    descent = Descent(lambda base: MomentumSAM(base, rho=2.5), lr=0.5, momentum=0.5)
    assert descent.step() == exact([1.5, 0])
    assert descent.returned == pytest.approx(8.5)
    assert descent.step() == exact([0.75, 1])
    assert descent.looked_at() == [exact([0, -2])], "one pass, and not at w"
    assert descent.returned == pytest.approx(4.0), "the loss there"


def test_momentum_sam_follows_adams_first_moment() -> None:
    model, loss = problem(torch.float64)
    optimizer = MomentumSAM(Adam(model.parameters(), lr=0.01), rho=0.5)
    optimizer.step(Watch(optimizer, loss))
    weights = snapshot(model.parameters())
    momentum = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    optimizer.step(watch := Watch(optimizer, loss))
    e = flat(watch.weights[0]) - flat(weights)
    torch.testing.assert_close(e, -0.5 * flat(momentum) / flat(momentum).norm(), rtol=1e-9, atol=1e-12)


def test_momentum_sam_needs_momentum() -> None:
    with pytest.raises(ValueError, match="SGD has no momentum; set"):
        MomentumSAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1))


# ---- random direction --------------------------------------------------------------------------------------------


def directions(steps: int, seed: int = 0, **options: Any) -> list[Tensor]:
    model, loss = problem(torch.float64)
    optimizer = RandomDirection(SGD(model.parameters(), lr=0.0), rho=0.7, **options)
    optimizer.seed = seed
    found = []
    for _ in range(steps):
        at_w = snapshot(model.parameters())
        optimizer.step(watch := Watch(optimizer, loss))
        assert watch.calls == 1
        found.append(flat(watch.weights[0]) - flat(at_w))
    return found


def test_a_random_direction_has_norm_rho_over_everything_and_is_another_one_in_each_step() -> None:
    first, second = directions(2)
    assert [first.norm().item(), second.norm().item()] == exact([0.7, 0.7])
    assert (first @ second).abs() < 0.7 * first.norm() * second.norm()
    assert (first != 0).all()


def test_directions_come_from_the_seed_and_not_from_torchs_stream() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = directions(2)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(one, directions(2), strict=True))
    assert not torch.equal(one[0], directions(1, seed=1)[0])
    assert not torch.equal(torch.get_rng_state(), before)


# ---- averages ----------------------------------------------------------------------------------------------------


def averaged(descent: Descent) -> list[float]:
    with descent.optimizer.averaged([]):  # type: ignore[attr-defined]
        found: list[float] = descent.w.tolist()
        return found


def test_golden_ema() -> None:
    """lr 0.1, decay 0.75: w goes (2.7, 1.6), (2.43, 1.28); a = 0.75 (2.7, 1.6) + 0.25 (2.43, 1.28)."""
    descent = Descent(lambda base: EMA(base, decay=0.75), lr=0.1)
    assert averaged(descent) == [3, 2], "nothing is averaged yet"
    assert descent.step() == exact([2.7, 1.6])
    assert averaged(descent) == exact([2.7, 1.6])
    assert descent.step() == exact([2.43, 1.28])
    assert averaged(descent) == exact([2.6325, 1.52])
    assert descent.w.tolist() == exact([2.43, 1.28]), "and the weights are back"


def test_golden_swa() -> None:
    """lr 0.1, from half of 4 steps on: the mean of w3 = (2.187, 1.024) and w4 = (1.9683, 0.8192)."""
    descent = Descent(lambda base: SWA(base, begin=0.5, total_steps=4), lr=0.1)
    for _ in range(2):
        assert averaged(descent) == descent.w.tolist()
        descent.step()
    assert descent.step() == averaged(descent) == exact([2.187, 1.024])
    assert descent.step() == exact([1.9683, 0.8192])
    assert averaged(descent) == exact([2.07765, 0.9216])


@pytest.mark.parametrize("make", [EMA, lambda base, model: SWA(base, begin=0.0, total_steps=9, model=model)])
def test_training_is_the_bases_and_measuring_leaves_no_trace(make: Any) -> None:
    """With batch norm, whose statistics are taken anew over the inputs, and dropout, which draws on the way."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 1))

    model, twin = net(), net()
    optimizer = make(SGD(model.parameters(), lr=0.1, momentum=0.9), model=model)
    plain = SGD(twin.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(4, 10, 4)

    def loss_of(net: nn.Module, some: Tensor) -> Tensor:
        loss: Tensor = net(some).square().mean()
        return loss

    for some in x:
        torch.manual_seed(7)
        optimizer.step(Watch(optimizer, partial(loss_of, model, some)))
        torch.manual_seed(7)
        plain.step(Watch(plain, partial(loss_of, twin, some)))
        before, random = snapshot(model.state_dict().values()), torch.get_rng_state()
        with optimizer.averaged(list(x)):
            features = model[0](x)  # type: ignore[index]
            torch.testing.assert_close(model[1].running_mean, features.mean((0, 1)))  # type: ignore[index]
            torch.testing.assert_close(model[1].running_var, features.var(1).mean(0))  # type: ignore[index]
        assert same_bits(model.state_dict().values(), before)
        assert torch.equal(torch.get_rng_state(), random)
    assert same_bits(model.state_dict().values(), twin.state_dict().values())


def test_weights_come_back_where_measuring_fails() -> None:
    descent = Descent(EMA, lr=0.1)
    descent.step()
    descent.step()
    before = descent.w.tolist()
    with pytest.raises(KeyError), descent.optimizer.averaged([]):  # type: ignore[attr-defined]
        raise KeyError
    assert descent.w.tolist() == before


# ---- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "settings", "words"),
    [
        (GSAM, {"alpha": -0.1}, "GSAM: alpha must be >= 0, got -0.1"),
        (LookSAM, {"k": 0}, "LookSAM: k must be >= 1"),
        (FriendlySAM, {"lmbda": 1.0}, r"FriendlySAM: .* lmbda in \[0, 1\)"),
        (ESAM, {"gamma": 0.0}, r"ESAM: beta and gamma must be in \(0, 1\]"),
        (EMA, {"decay": 1.0}, r"EMA: decay must be in \[0, 1\), got 1.0"),
        (SWA, {"begin": 1.0}, r"SWA: begin must be in \[0, 1\)"),
        (RandomDirection, {"rho": -1.0}, "RandomDirection: rho must be >= 0"),
    ],
)
def test_impossible_settings_are_told(make: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(SGD([nn.Parameter(torch.ones(1))], lr=0.1), **settings)


@pytest.mark.parametrize("make", [GSAM, LookSAM, FriendlySAM])
def test_sparse_gradients_are_sams_alone(make: Any) -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = make(SGD(table.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="takes no sparse gradients; SAM does"):
        optimizer.step(Watch(optimizer, lambda: table(torch.tensor([1, 2])).sum()))
