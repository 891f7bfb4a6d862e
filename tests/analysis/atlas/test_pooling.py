"""Means over many comparisons: against a published meta-analysis, worked numbers, and cases without an answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from bench.analysis.atlas.pooling import pooled, rank_correlation
from bench.analysis.stats import Interval

BCG = [
    (-0.8893, 0.3256), (-1.5854, 0.1946), (-1.3481, 0.4154), (-1.4416, 0.0200), (-0.2175, 0.0512), (-0.7861, 0.0069),
    (-1.6209, 0.2230), (0.0120, 0.0040), (-0.4694, 0.0564), (-1.3713, 0.0730), (-0.3394, 0.0124), (0.4459, 0.5325),
    (-0.0173, 0.0714),
]  # fmt: skip
"""Log relative risks of the 13 trials of BCG vaccine with their variances (Colditz et al. 1994, JAMA 271)."""


def interval(mean: float, error: float, n: int = 10) -> Interval:
    half = float(special.stdtrit(n - 1, 0.975)) * error
    return Interval(n, mean, mean - half, mean + half)


def test_the_bcg_trials_come_out_as_in_the_literature() -> None:
    found = pooled([interval(mean, math.sqrt(variance)) for mean, variance in BCG])
    assert found.k == 13
    assert found.mean.mean == pytest.approx(-0.715, abs=2e-3)
    assert found.i2 == pytest.approx(0.921, abs=2e-3)  # (152.23 - 12) / 152.23
    # tau2 of Paule and Mandel is 0.318 and the standard error 0.181: -0.715 -+ t(11) sqrt(0.318 + 0.181^2)
    assert found.predicted == pytest.approx((-2.017, 0.588), abs=2e-2)


def test_equal_differences_have_no_heterogeneity_and_a_standard_error_that_is_not_zero() -> None:
    found = pooled([interval(1.0, 0.2)] * 4)
    assert found.i2 == 0
    # Hartung and Knapp's alone would be 0: the usual one, 0.2 / sqrt(4), stands instead.
    assert found.mean.half_width == pytest.approx(0.1 * float(special.stdtrit(3, 0.975)))


def test_one_difference_is_itself_and_none_is_nothing() -> None:
    one = interval(1.0, 0.2)
    assert pooled([one]).mean == one
    assert math.isnan(pooled([one]).i2)
    assert pooled([]).k == 0
    assert pooled([Interval(1, 1.0, math.nan, math.nan)]).k == 0


def test_two_differences_have_a_mean_but_no_prediction() -> None:
    found = pooled([interval(1.0, 0.2), interval(2.0, 0.2)])
    assert found.mean.mean == pytest.approx(1.5)
    assert math.isnan(found.predicted[0])


def test_intervals_hold_about_as_often_as_they_say() -> None:
    """Of many invented families of eight: the mean's interval, and the next member's true difference."""
    rng = np.random.default_rng(1)
    held, mean = [], []
    for _ in range(300):
        true = rng.normal(1.0, 0.5, size=9)
        found = pooled([interval(value, 0.2, n=1000) for value in true[:8] + rng.normal(0, 0.2, size=8)])
        held.append(found.predicted[0] <= true[8] <= found.predicted[1])
        mean.append(found.mean.low <= 1.0 <= found.mean.high)
    assert 0.90 <= np.mean(held) <= 0.98
    assert 0.92 <= np.mean(mean) <= 0.99


def test_a_rank_correlation_and_its_interval_are_those_of_the_formula() -> None:
    x, y = [1, 2, 3, 4, 5, 6, 7, 8], [2, 1, 4, 3, 6, 5, 8, 7]
    found = rank_correlation(x, y)
    r = 1 - 6 * 8 / (8 * 63)  # every rank is off by one
    half = 1.959964 * math.sqrt((1 + r**2 / 2) / 5)
    assert found.mean == pytest.approx(r)
    assert (found.low, found.high) == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4], [1, 2, 3, 4]), ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5]), ([1, 2, 3, 4, math.nan], [1, 2, 3, 4, 5])],
    ids=["four pairs", "constant", "four known pairs"],
)
def test_a_rank_correlation_needs_five_pairs_that_vary(x: list[float], y: list[float]) -> None:
    assert math.isnan(rank_correlation(x, y).mean)


def test_the_last_bits_of_the_differences_do_not_show() -> None:
    """Sums differ in their last bit between processors, and a committed table must be the same to the byte on all."""
    trials = [interval(mean, math.sqrt(variance)) for mean, variance in BCG]
    other = [one.scaled(1 + 4e-16 * (-1) ** number) for number, one in enumerate(trials)]
    assert other != trials
    assert pooled(other) == pooled(trials)
