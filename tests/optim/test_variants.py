"""Where authors' code and their paper's text part: both by hand, on the quadratic of test_family, and ASAM's scopes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from timm.optim.lion import Lion
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam

from bench.config.file import find, load
from bench.optim.asam import ASAM
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.sam import SAM

from .helpers import Watch, WatchLosses, flat, problem, same_bits
from .test_family import Descent, exact

# ---- Friendly SAM ------------------------------------------------------------------------------------------------


def authors_friendly(base: Any, sigma: float = 0.8, lmbda: float = 0.5) -> FriendlySAM:
    return FriendlySAM(base, rho=5.0, sigma=sigma, lmbda=lmbda, variant="authors")


def test_golden_friendly_sam_of_the_authors() -> None:
    """sigma = 0.8, lmbda = 0.5, lr 1/6.

    1: d = g = (3, 4), e = g, g' = (6, 12), w <- (3 - 1, 2 - 2) = (2, 0); m = g = (3, 4), not half of it
    2: g = (2, 0); d = (2, 0) - 0.8 (3, 4) = (-0.4, -3.2), ||d|| = sqrt(10.4); m = 0.5 (3, 4) + 0.5 (2, 0) = (2.5, 2)
    """
    descent = Descent(authors_friendly, lr=1 / 6)
    assert descent.step() == exact([2, 0])
    assert descent.looked_at()[1] == exact([6, 6])
    memory = descent.optimizer.memory  # type: ignore[attr-defined]
    assert memory[descent.w].tolist() == exact([3, 4])
    descent.step()
    length = 10.4**0.5
    assert descent.looked_at()[1] == exact([2 - 5 * 0.4 / length, -5 * 3.2 / length])
    assert memory[descent.w].tolist() == exact([2.5, 2])


def test_a_first_step_that_is_skipped_does_not_begin_the_authors_average() -> None:
    descent = Descent(authors_friendly, lr=1 / 6)
    descent.optimizer.step(Watch(descent.optimizer, lambda: descent.loss() * torch.inf))
    assert descent.optimizer.skipped_steps == 1
    assert descent.step() == exact([2, 0])
    assert descent.optimizer.memory[descent.w].tolist() == exact([3, 4])  # type: ignore[attr-defined]


def _linear(w: Tensor, slope: Tensor) -> Tensor:
    return (w * slope).sum()


def test_at_sigma_1_the_two_differ_by_how_the_average_begins_which_fades() -> None:
    """d is along g - m_{t-1} in both; lmbda^t of the first gradient is all that differs, here after 40 steps 1e-12."""

    def last_e(sigma: float, variant: Any) -> Tensor:
        w = nn.Parameter(torch.tensor([1.0, 0.5], dtype=torch.float64))
        optimizer = FriendlySAM(SGD([w], lr=0.0), rho=0.1, sigma=sigma, lmbda=0.5, variant=variant)
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        for step in range(41):
            optimizer.step(watch := Watch(optimizer, partial(_linear, w, signs**step * (step + 1))))
        return flat(watch.e)

    assert (last_e(1.0, "paper") - last_e(1.0, "authors")).norm() < 1e-10
    assert (last_e(0.5, "paper") - last_e(0.5, "authors")).norm() > 1e-3


# ---- ESAM --------------------------------------------------------------------------------------------------------


def chosen(rises: list[float], gamma: float, **settings: Any) -> list[int]:
    """The examples of the second pass, where the loss of each rises by so much per unit of the only weight."""
    w, slopes = nn.Parameter(torch.zeros(1)), torch.tensor(rises)
    optimizer = ESAM(SGD([w], lr=0.0), rho=1.0, beta=1.0, gamma=gamma, **settings)
    seen: list[list[int]] = []

    def losses(examples: Tensor | None = None) -> Tensor:
        if examples is not None:
            seen.append(sorted(examples.tolist()))
        return slopes * w if examples is None else slopes[examples] * w

    optimizer.step(losses)
    return seen[0]


@pytest.mark.parametrize(
    ("rises", "paper", "authors"),
    [
        ([1.0, 4.0, 3.0, 2.0, 5.0, 0.5], [1, 2, 4], [1, 4]),  # the third rises by what the others must rise above
        ([1.0, 3.0, 3.0, 3.0, 5.0, 0.5], None, [4]),
        ([3.0, 3.0, 3.0, 3.0, 3.0, 3.0], None, [0, 1, 2, 3, 4, 5]),  # none above, so those at it
    ],
)
def test_esam_takes_gamma_of_the_batch_and_the_authors_those_above_the_last_of_them(
    rises: list[float], paper: list[int] | None, authors: list[int]
) -> None:
    found = chosen(rises, 0.5)
    assert len(found) == 3
    assert found == paper or paper is None
    assert chosen(rises, 0.5, variant="authors") == authors


def test_the_authors_esam_moves_whole_tensors_by_rho_over_beta() -> None:
    """Two tensors with gradients (3, 4) and (6, 8): e is rho / beta along one, the other, both or none of them."""
    met = set()
    for step in range(40):
        pair = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
        optimizer = ESAM(SGD(pair, lr=0.0), rho=2.0, beta=0.5, gamma=1.0, variant="authors")
        optimizer.param_groups[0]["steps_done"] = step
        slopes = [torch.tensor(values, dtype=torch.float64) for values in ([3.0, 4.0], [6.0, 8.0])]

        def losses(pair: Any = pair, slopes: Any = slopes) -> Tensor:
            return torch.stack([(w * slope).sum() for w, slope in zip(pair, slopes, strict=True)]).sum().reshape(1)

        optimizer.step(watch := WatchLosses(optimizer, losses, 1))
        which = tuple(bool(e.any()) for e in watch.e)
        met.add(which)
        along = flat(slope * on for slope, on in zip(slopes, which, strict=True))
        torch.testing.assert_close(flat(watch.e), 4.0 * along / along.norm() if any(which) else along)
    assert len(met) == 4


def test_the_papers_esam_moves_single_weights() -> None:
    w = nn.Parameter(torch.zeros(4000))
    optimizer = ESAM(SGD([w], lr=0.0), rho=2.0, beta=0.5, gamma=1.0)
    optimizer.step(watch := WatchLosses(optimizer, lambda: w.sum().reshape(1), 1))
    e = watch.e[0]
    assert 1800 < int((e != 0).sum()) < 2200
    assert e.norm().item() == pytest.approx(2.0 / 0.5**0.5, rel=0.05), "rho / sqrt(beta), not rho"


# ---- Momentum-SAM ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "second"),
    [("paper", [1.5 - 0.5 * (1.5 + 0.3), 0.0 - 0.5 * -2.0]), ("authors", [1.5 - 0.5 * (1.5 + 0.0), -0.5 * -2.4])],
)
def test_golden_momentum_sam_with_weight_decay(variant: Any, second: list[float]) -> None:
    """Momentum 0.5, lr 0.5, rho 2.5, decay 0.2, from a w with v = (3, 4), where the decay of w was taken off.

    w = (1.5, 0), e = (-1.5, -2), w + e = (0, -2), gradient there (0, -4), to which the paper's method leaves the base
    to add 0.2 w = (0.3, 0), and the authors' code 0.2 (w + e) = (0, -0.4):
    v = 0.5 (3, 4) + (0.3, -4) = (1.8, -2), or 0.5 (3, 4) + (0, -4.4) = (1.5, -2.4)
    """
    w = nn.Parameter(torch.tensor([1.5, 0.0], dtype=torch.float64))
    base = SGD([w], lr=0.5, momentum=0.5, weight_decay=0.2)
    base.state[w]["momentum_buffer"] = torch.tensor([3.0, 4.0], dtype=torch.float64)
    optimizer = MomentumSAM(base, rho=2.5, variant=variant)
    scale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    optimizer.step(watch := Watch(optimizer, lambda: (scale * w**2).sum() / 2))
    assert watch.weights[0][0].tolist() == exact([0, -2])
    assert w.tolist() == exact(second)


def test_the_authors_decay_is_for_bases_that_decay_the_gradient() -> None:
    weights = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match=r'variant="authors" over AdamW: its weight decay is not known to be part'):
        MomentumSAM(AdamW(weights, weight_decay=0.1), variant="authors")
    MomentumSAM(AdamW(weights, weight_decay=0.0), variant="authors")
    MomentumSAM(Adam(weights, weight_decay=0.1), variant="authors")


@pytest.mark.parametrize(
    ("base", "is_taken"),
    [
        (partial(torch.optim.Muon, lr=0.1, weight_decay=0.1), False),
        (partial(Lion, lr=0.1, weight_decay=0.1), False),
        (partial(NAdam, decoupled_weight_decay=True, weight_decay=0.1), False),
        (partial(pytorch_optimizer.AdaBelief, weight_decay=0.1, weight_decouple=True), False),
        (partial(pytorch_optimizer.AdaBelief, weight_decay=0.1, weight_decouple=False), True),
        (partial(NAdam, weight_decay=0.1), True),
        (lambda weights: pytorch_optimizer.Lookahead(SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.1)), True),
    ],
)
def test_a_decay_that_nobody_knows_to_be_in_the_gradient_is_not_taken_for_it(base: Any, is_taken: bool) -> None:
    weights = [nn.Parameter(torch.ones(2, 2))]
    with nullcontext() if is_taken else pytest.raises(ValueError, match="not known to be part of the gradient"):
        MomentumSAM(base(weights), variant="authors")


# ---- words of a user's own code ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "setting", "valid"),
    [
        (FriendlySAM, "variant", "'paper' or 'authors'"),
        (ESAM, "variant", "'paper' or 'authors'"),
        (MomentumSAM, "variant", "'paper' or 'authors'"),
        (SAM, "adaptive_on", "'all' or 'weight'"),
        (ASAM, "adaptive_on", "'all' or 'weight'"),
    ],
)
def test_a_misspelt_word_is_no_method_of_its_own(method: Any, setting: str, valid: str) -> None:
    model, _ = problem()
    base = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=f"{method.__name__}: {setting} must be {valid}, got 'author'"):
        method(base, model=model, **{setting: "author"})


# ---- ASAM --------------------------------------------------------------------------------------------------------


def two_layers() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 2).double()
    return model, lambda: nn.functional.mse_loss(model(x), y)


def test_golden_asam_of_the_authors_scales_what_is_called_weight() -> None:
    """T = |w| + eta of weights, those of batch norm too, and 1 of biases: e = rho T^2 g / ||T g||."""
    model, loss = two_layers()
    optimizer = SAM(
        SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=True, eta=0.01, adaptive_on="weight", model=model
    )
    optimizer.step(watch := Watch(optimizer, loss))
    names = [name for name, _ in model.named_parameters()]
    scales = [
        w.abs() + 0.01 if "weight" in name else torch.ones_like(w)
        for name, w in zip(names, watch.weights[0], strict=True)
    ]
    scaled = [scale * g for scale, g in zip(scales, watch.gradients[0], strict=True)]
    length = flat(scaled).norm()
    for e, scale, g in zip(watch.e, scales, scaled, strict=True):
        torch.testing.assert_close(e, 0.5 * scale * g / length, rtol=1e-8, atol=1e-12)
    biases = flat(e for name, e in zip(names, watch.e, strict=True) if "weight" not in name)
    everywhere = SAM(SGD(model.parameters(), lr=0.1), rho=0.5, adaptive=True, model=model)
    everywhere.step(again := Watch(everywhere, loss))
    share = biases.norm() ** 2 / flat(watch.e).norm() ** 2
    other = flat(e for name, e in zip(names, again.e, strict=True) if "weight" not in name)
    assert share > 0.5 > 0.2 > other.norm() ** 2 / flat(again.e).norm() ** 2, "where most of e is"


def _of_rows(table: nn.Module) -> Tensor:
    rows: Tensor = table(torch.tensor([1, 4]))
    return rows.square().sum()


def test_a_scope_that_is_empty_would_be_sam_and_is_refused() -> None:
    scales = nn.ParameterList([torch.ones(3), torch.ones(2)])
    with pytest.raises(ValueError, match='ASAM: adaptive_on="weight" needs parameters with "weight" in their names'):
        ASAM(SGD(scales.parameters(), lr=0.1), adaptive_on="weight", model=scales)
    other, _ = two_layers()
    with pytest.raises(ValueError, match='but Linear has none in the param_groups: take adaptive_on="all"'):
        ASAM(SGD(other.parameters(), lr=0.1), adaptive_on="weight", model=nn.Linear(2, 2))


def test_a_scope_needs_names_and_goes_along_with_sparse_rows() -> None:
    with pytest.raises(ValueError, match=r'SAM: adaptive_on="weight" needs model='):
        SAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), adaptive=True, adaptive_on="weight")
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=sparse)
        optimizer = SAM(SGD(table.parameters(), lr=0.1), adaptive=True, adaptive_on="weight", model=table)
        optimizer.step(Watch(optimizer, partial(_of_rows, table)))
        found.append(flat(table.parameters()))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("card", ["cifar10_sam", "cifar100_sam"])
def test_cards_that_follow_kwon_et_al_scale_as_their_code_does(card: str) -> None:
    asam = [run.spec.optimizer.params for run in load(find(card)).runs if run.label == "asam"]
    assert asam
    assert all(params["adaptive_on"] == "weight" for params in asam)


@pytest.mark.parametrize("card", ["paper_foret_table1", "paper_foret_table4"])
def test_cards_that_follow_foret_et_al_clip_and_ascend_as_their_code_does(card: str) -> None:
    runs = load(find(card)).runs
    assert {run.label for run in runs} == {"sgd", "sgd-2x", "sam"}
    assert {run.spec.train.clip_norm for run in runs} == {5.0}
    assert {run.spec.optimizer.params.get("ascent_decay") for run in runs} == {None, True}


# ---- GSAM's radius -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.4, 0.2, 0.1, 0.04]),
        ({"rho_end": 0.1}, [0.4, 0.25, 0.175, 0.13]),
        ({"lr_min": 0.1}, [0.4, 0.4 * 0.4 / 0.9, 0.4 * 0.15 / 0.9, 0.0]),
        ({"lr_min": 0.1, "rho_end": 0.1}, [0.4, 0.1 + 0.3 * 0.4 / 0.9, 0.1 + 0.3 * 0.15 / 0.9, 0.1]),
        ({"lr_min": 0.3, "rho_end": 0.1}, [0.4, 0.1 + 0.3 * 0.2 / 0.7, 0.1, 0.1]),  # below lr_min: rho_end
        ({"lr_min": 1.0, "rho_end": 0.1}, [0.4, 0.4, 0.4, 0.4]),  # lr_max = lr_min: no way to go
    ],
)
def test_rho_follows_lr_from_its_largest_to_its_smallest(
    settings: dict[str, float], expected: list[float], tensor: bool
) -> None:
    """rho_t = rho_min + (rho_max - rho_min)(lr_t - lr_min)/(lr_max - lr_min), lr going 1, .5, .25, .1."""
    model, _ = problem()
    optimizer = GSAM(SGD(model.parameters(), lr=1.0), rho=0.4, rho_schedule="lr", **settings)  # type: ignore[arg-type]
    group = optimizer.param_groups[0]
    group["initial_lr"] = 1.0
    found = []
    for lr in (1.0, 0.5, 0.25, 0.1):
        group["lr"] = torch.tensor(lr, dtype=torch.float64) if tensor else lr
        found.append(float(optimizer.rho_now(group)))
    assert found == pytest.approx(expected, abs=1e-7)


def test_with_one_cycle_the_smallest_lr_is_the_one_that_it_ends_at() -> None:
    model, _ = problem()
    optimizer = GSAM(SGD(model.parameters(), lr=1.0), rho=0.4, rho_schedule="lr", rho_end=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=6, final_div_factor=2.0, cycle_momentum=False
    )
    found, shares = [], []
    for _ in range(6):
        found.append(optimizer.rho_now(optimizer.param_groups[0]))
        shares.append((optimizer.param_groups[0]["lr"] - 0.02) / (1.0 - 0.02))  # from 1 / 25 up, then down to its half
        optimizer._opt_called = True  # type: ignore[attr-defined]
        if len(found) < 6:
            schedule.step()
    lrs = [0.1 + 0.3 * share for share in shares]
    assert found == pytest.approx(lrs)
    assert found[-1] == pytest.approx(0.1)


def test_a_smallest_lr_is_for_a_rho_that_follows_lr() -> None:
    with pytest.raises(ValueError, match=r'SAM: lr_min needs rho_schedule = "lr" too, got 0.1'):
        SAM(SGD([nn.Parameter(torch.ones(1))], lr=0.1), lr_min=0.1, rho_schedule="linear", total_steps=3)


# ---- without a gradient, and up the hill -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SAM, GSAM, LookSAM, FriendlySAM])
def test_a_step_in_which_no_parameter_has_a_gradient_is_harmless(make: Any) -> None:
    model, loss = problem()
    twin, twin_loss = problem()
    optimizer, other = (make(SGD(net.parameters(), lr=0.1, momentum=0.9), rho=0.1) for net in (model, twin))
    for _ in range(6):
        optimizer.step(Watch(optimizer, loss))
        other.step(Watch(other, twin_loss))
    for step in range(6):
        watch = Watch(optimizer, lambda: torch.ones(1, requires_grad=True).sum())
        optimizer.step(watch)
        assert optimizer.steps_done in (0, 7 + step)
    assert same_bits(model.parameters(), twin.parameters())


@pytest.mark.parametrize("make", [SAM, GSAM, LookSAM, FriendlySAM])
@pytest.mark.parametrize("ascent_decay", [False, True])
def test_to_maximize_f_is_to_minimize_minus_f(make: Any, ascent_decay: bool) -> None:
    def after(sign: int) -> Tensor:
        model, loss = problem(torch.float64)
        base = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, maximize=sign < 0)
        optimizer = make(base, rho=0.3, ascent_decay=ascent_decay)
        for _ in range(4):
            optimizer.step(Watch(optimizer, lambda: loss() * sign))
        return flat(model.parameters())

    torch.testing.assert_close(after(1), after(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_momentum_sam_goes_up_as_it_goes_down(variant: Any) -> None:
    """The authors' variant also decays the way to the perturbed weights, with the sign of the base's decay."""

    def after(sign: int) -> Tensor:
        model, loss = problem(torch.float64)
        base = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3, maximize=sign < 0)
        optimizer = MomentumSAM(base, rho=0.3, variant=variant)
        for _ in range(5):
            optimizer.step(Watch(optimizer, lambda: loss() * sign))
        return flat(model.parameters())

    torch.testing.assert_close(after(1), after(-1), rtol=1e-10, atol=1e-12)
