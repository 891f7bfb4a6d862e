"""The statistics against textbook examples, scipy, and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.analysis.stats import (
    Interval,
    half_width,
    mean_interval,
    paired_t_p,
    paired_test,
    sign_flip_p,
    smallest_sign_flip_p,
)

# Hours of sleep gained with two drugs by ten patients (Student, Biometrika 6, 1908, page 20).
DRUG_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
DRUG_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def test_sleep_data_gives_the_published_test() -> None:
    found = paired_test(DRUG_2, DRUG_1)
    assert found.difference.n == 10
    assert found.difference.mean == pytest.approx(1.58)
    assert found.difference.low == pytest.approx(0.7001, abs=5e-5)
    assert found.difference.high == pytest.approx(2.4599, abs=5e-5)
    assert found.p_t == pytest.approx(0.002833, abs=5e-7)
    # No difference is negative, one is 0: of 1024 sign patterns 2 * 2 (all others alike) reach the sum.
    assert found.p_sign_flip == 4 / 1024


def test_mean_interval_by_hand() -> None:
    # Mean 3, squared deviations 4 + 1 + 0 + 1 + 4 = 10, sd^2 = 10 / 4, se^2 = 2.5 / 5, t(4) = 2.776445.
    found = mean_interval([1, 2, 3, 4, 5])
    assert (found.n, found.mean) == (5, 3.0)
    assert found.half_width == pytest.approx(2.776445 * np.sqrt(0.5), rel=1e-6)
    assert found.scaled(100).low == pytest.approx(300 - 100 * found.half_width)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_agrees_with_scipy(n: int) -> None:
    a, b = np.random.default_rng(n).normal([[0.0], [0.5]], 1.0, size=(2, n))
    theirs = scipy_stats.ttest_rel(a, b)
    bounds = theirs.confidence_interval(0.95)
    ours = paired_test(a, b)
    assert ours.p_t == pytest.approx(theirs.pvalue, rel=1e-9)
    assert (ours.difference.low, ours.difference.high) == pytest.approx((bounds.low, bounds.high))


def test_sign_flip_agrees_with_scipy() -> None:
    sample = np.random.default_rng(3).normal(0.4, 1.0, size=8)
    theirs = scipy_stats.permutation_test((sample,), np.mean, permutation_type="samples", n_resamples=2**8)
    assert sign_flip_p(sample) == pytest.approx(theirs.pvalue)


def test_sign_flip_by_hand() -> None:
    # |sum| of the eight patterns of 1, 2, 4: 7 5 3 1 1 3 5 7. All reach the observed |1 + 2 - 4| = 1,
    # six of them 1 - 2 + 4 = 3, and two 1 + 2 + 4 = 7.
    assert sign_flip_p([1, 2, -4]) == 1.0
    assert sign_flip_p([1, -2, 4]) == 0.75
    assert sign_flip_p([1, 2, 4]) == 0.25 == smallest_sign_flip_p(3)


def test_sign_flip_floor_at_five_seeds_is_one_sixteenth() -> None:
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5]) == smallest_sign_flip_p(5) == 0.0625


@pytest.mark.filterwarnings("error")
def test_too_few_values_give_nan_and_no_warning() -> None:
    one, none = mean_interval([0.7]), mean_interval([])
    assert (one.n, one.mean) == (1, 0.7)
    assert np.isnan([one.low, one.high, one.half_width, none.mean, none.low, none.high]).all()
    assert np.isnan([paired_t_p([]), paired_t_p([1.0]), sign_flip_p([]), sign_flip_p(np.ones(21))]).all()
    assert paired_test([], []).difference.n == 0


@pytest.mark.filterwarnings("error")
def test_equal_differences_are_no_evidence() -> None:
    # 0.9 - 0.8 and 0.7 - 0.6 differ in the last bit only; dividing by that spread would give p = 1e-60.
    assert np.isnan(paired_test([0.9, 0.7, 0.5], [0.8, 0.6, 0.4]).p_t)


def test_only_seeds_of_both_sides_count() -> None:
    found = paired_test([1.0, np.nan, 3.0, 5.0], [0.0, 0.0, np.nan, 2.0])
    assert (found.difference.n, found.difference.mean) == (2, 2.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one value per seed"):
        paired_test([1.0, 2.0], [1.0])


def test_half_width_works_on_arrays_and_leaves_single_runs_undefined() -> None:
    widths = half_width([1, 5, 0], [np.nan, 1.0, np.nan])
    assert np.isnan(widths[[0, 2]]).all()
    assert widths[1] == pytest.approx(2.776445 / np.sqrt(5), rel=1e-6)


def test_t_intervals_cover_at_five_seeds_and_normal_ones_do_not() -> None:
    samples = np.random.default_rng(0).normal(size=(20_000, 5))
    distance, sd = np.abs(samples.mean(axis=1)), samples.std(axis=1, ddof=1)
    assert np.mean(distance <= half_width(5, sd)) == pytest.approx(0.95, abs=0.006)
    assert np.mean(distance <= 1.96 * sd / np.sqrt(5)) == pytest.approx(0.878, abs=0.008)


def test_interval_half_width() -> None:
    assert Interval(3, 1.0, 0.5, 1.5).half_width == 0.5
