"""Coverage and power of the paired intervals, with the seeds that committed runs really have: docs/statistics.md.

What is invented is only which seeds were drawn: differences are drawn from those of the committed final runs, moved so
that the truth is known.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.analysis.stats import half_width, smallest_detectable
from bench.analysis.study import Study
from bench.store import records

ROOT = Path(__file__).parents[2]
SETS = ("digits_tuned", "mnist1d_noise", "sam_family")
DRAWN = 20_000


@cache
def real() -> list[NDArray[np.float64]]:
    """Return the paired differences of every comparison over ten seeds, standardized: mean 0 and deviation 1."""
    found = [one.differences for name in SETS for one in Study(records.read(ROOT / "results" / name)).contrasts]
    return [(one - one.mean()) / one.std(ddof=1) for one in found if len(one) == 10 and one.std() > 0]


def drawn(n: int, seed: int = 0) -> NDArray[np.float64]:
    """Return samples of n differences (samples, n) of mean 0, each from one comparison of committed runs.

    A smoothed bootstrap: a drawn difference is one of the comparison's ten, moved by noise of a fifth of their
    deviation, since ten values drawn again and again would repeat themselves as new seeds do not.
    """
    rng = np.random.default_rng(seed)
    pool = np.array(real())
    which = rng.integers(len(pool), size=(DRAWN, 1))
    values = pool[which, rng.integers(pool.shape[1], size=(DRAWN, n))]
    return np.asarray(values + 0.2 * rng.normal(size=values.shape))


@pytest.mark.parametrize(("n", "least"), [(3, 0.92), (5, 0.92), (10, 0.93)])
def test_intervals_cover_the_true_difference_about_as_often_as_they_say(n: int, least: float) -> None:
    samples = drawn(n)
    mean, half = samples.mean(axis=1), half_width(np.full(DRAWN, n), samples.std(axis=1, ddof=1))
    covered = float(np.mean(np.abs(mean) <= half))
    print(f"n = {n}: {covered:.3f}")
    assert least <= covered <= 0.97


@pytest.mark.parametrize("n", [3, 5, 10])
def test_a_normal_quantile_instead_of_students_would_cover_too_rarely(n: int) -> None:
    """Break the rule: 1.96 in place of t is what a careless table uses."""
    samples = drawn(n)
    half = 1.96 * samples.std(axis=1, ddof=1) / np.sqrt(n)
    assert np.mean(np.abs(samples.mean(axis=1)) <= half) < 0.925


@pytest.mark.parametrize("n", [5, 10])
def test_the_smallest_detectable_difference_is_found_four_times_in_five(n: int) -> None:
    """The difference that the deviation of all samples makes detectable is found in about 80 % of the samples."""
    samples = drawn(n, seed=1)
    spread = samples.std(ddof=1)
    one_of_n = np.resize([1.0, -1.0], n)  # any sample with the deviation `spread`
    moved = samples + smallest_detectable(one_of_n / one_of_n.std(ddof=1) * spread)
    half = half_width(np.full(DRAWN, n), moved.std(axis=1, ddof=1))
    found = float(np.mean(moved.mean(axis=1) > half))
    print(f"n = {n}: {found:.3f}")
    assert 0.75 <= found <= 0.86


def test_pairing_by_seed_narrows_intervals_of_committed_runs() -> None:
    """Runs of one seed share weights, batches and noise: paired differences spread less than unpaired ones would."""
    ratios = []
    for name in SETS:
        for one in Study(records.read(ROOT / "results" / name)).contrasts:
            if len(one.a) == 10:
                unpaired = np.hypot(one.a.std(ddof=1), one.b.std(ddof=1))
                ratios.append(float(one.differences.std(ddof=1) / unpaired))
    print(f"median ratio of the deviations: {np.median(ratios):.2f}, {len(ratios)} comparisons")
    assert np.median(ratios) < 1
