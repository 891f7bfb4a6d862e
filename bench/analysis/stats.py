"""Means with confidence intervals, and paired tests between optimizers that share their seeds.

What statsmodels and scipy.stats have is taken from them, and imported where it is needed: they are slow to import.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats would do as well, at ten times the import time

LEVEL = 0.95
FEWEST = 4  # finished pairs, or runs, without which nothing is called better, worse or reproduced, whatever p is
POWER = 0.8  # the usual one: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988, section 2.4
MOST_EXAMPLES = 1_000_000  # of a test set
MAX_EXACT_N = 20  # 2^19 signed sums, 4 MiB; beyond it the t test is as good


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and the bounds of its confidence interval.

    The bounds are NaN where there is none: of one value, and of values that are all the same, whose spread of 0 would
    be taken for certainty.
    """

    n: int
    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Return half the length of the interval; NaN if it is undefined."""
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        """Return whether there is an interval."""
        return not math.isnan(self.low)

    @property
    def alike(self) -> bool:
        """Return whether several values are all the same, from which no interval follows."""
        return self.n > 1 and not self.known and not math.isnan(self.mean)

    @property
    def cut(self) -> bool:
        """Return whether an end of the interval was cut off at a bound of what was measured (see `within`)."""
        # A t interval is symmetric about its mean, so one that is not was cut.
        return self.known and not math.isclose(self.high - self.mean, self.mean - self.low, rel_tol=1e-6)

    def within(self, low: float, high: float) -> Interval:
        """Return the interval cut at the bounds of the quantity, or at the mean if that lies beyond a bound."""
        # `max` and `min` return their first argument if that is NaN, so unknown bounds stay unknown.
        return Interval(self.n, self.mean, max(self.low, min(low, self.mean)), min(self.high, max(high, self.mean)))

    def scaled(self, factor: float) -> Interval:
        """Return the same interval in another unit, e.g. factor 100 from a fraction to percent."""
        return Interval(self.n, self.mean * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class PairedTest:
    """Mean of the paired differences, with the two-sided p of the t test and of the exact sign-flip test."""

    difference: Interval
    p_t: float
    p_sign_flip: float


def half_width(n: ArrayLike, sd: ArrayLike) -> NDArray[np.float64]:
    """Return the half-width of the t interval of a mean, t(n-1) * sd / sqrt(n), for arrays of one shape.

    `sd` is the sample standard deviation (ddof=1). NaN where n < 2, and where sd is 0: neither one value nor equal
    ones say anything about spread.
    Normal quantiles (1.96) or a percentile bootstrap are too narrow at five seeds, hence t.
    """
    count = np.asarray(n, dtype=float)
    # NaN passes through all that follows without a warning, unlike a division by 0.
    count = np.where(count > 1, count, np.nan)
    deviation = np.asarray(sd, dtype=float)
    quantile = special.stdtrit(count - 1, 0.5 + LEVEL / 2)
    return np.asarray(quantile * np.where(deviation > 0, deviation, np.nan) / np.sqrt(count))


def without_rounding(sd: ArrayLike, mean: ArrayLike) -> NDArray[np.float64]:
    """Return sample deviations, 0 for those that are nothing but rounding of equal values."""
    deviation = np.asarray(sd, dtype=float)
    # 1e-12 of the mean is above the rounding of 64-bit floats (1e-16 per step) and below any real spread of runs.
    return np.where(deviation <= 1e-12 * np.abs(np.asarray(mean, dtype=float)), 0.0, deviation)


def mean_interval(values: ArrayLike) -> Interval:
    """Return the mean of a sample and its Student-t interval; NaN values (unfinished runs) are left out.

    With one value, and with equal ones, the bounds are NaN, with none the mean is NaN too.
    """
    sample = np.asarray(values, dtype=float)
    sample = sample[~np.isnan(sample)]
    n = len(sample)
    mean = float(sample.mean()) if n else np.nan
    half = float(half_width(n, _spread(sample))) if n > 1 else np.nan
    return Interval(n, mean, mean - half, mean + half)


def paired_test(ours: ArrayLike, theirs: ArrayLike, bounds: tuple[float, float] = (-math.inf, math.inf)) -> PairedTest:
    """Compare two optimizers seed by seed: mean of ours - theirs, its t interval and two p values.

    Both arguments have shape (seeds,), seeds in the same order; one that is NaN on either side is left out. `bounds`
    are those of a difference, at which its interval is cut. Raises ValueError if the shapes differ.
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired samples need one value per seed on both sides, got {a.shape} and {b.shape}")
    # The difference is NaN where either side is, so both sides lose the same seeds.
    differences = (a - b)[~np.isnan(a - b)]
    interval = mean_interval(differences).within(*bounds)
    return PairedTest(interval, paired_t_p(differences), sign_flip_p(differences))


def paired_t_p(differences: ArrayLike) -> float:
    """Return the two-sided p of the paired t test, from differences of shape (n,).

    NaN for n < 2, and where the differences have no spread beyond rounding: t is then undefined, and the
    p = 0 that a division by 1e-17 would give is not evidence of anything.
    """
    sample = np.asarray(differences, dtype=float)
    n = len(sample)
    if n < 2:
        return np.nan
    if (sd := _spread(sample)) == 0:
        return np.nan
    t = float(sample.mean()) / (sd / np.sqrt(n))
    # The lower tail, since 1 - cdf(|t|) rounds to 0 for a large t.
    return float(2 * special.stdtr(n - 1, -abs(t)))


def sign_flip_p(differences: ArrayLike) -> float:
    """Return the exact two-sided p of the sign-flip test, from differences of shape (n,).

    It is the share of all 2^n sign patterns whose |mean| is at least the observed one. It assumes only that the
    differences are symmetric about 0 under the null (Fisher, The Design of Experiments, 1935, section 21). NaN for
    n = 0 and for n > 20, where the enumeration would be too large.
    """
    sample = np.asarray(differences, dtype=float)
    if not 0 < len(sample) <= MAX_EXACT_N:
        return np.nan
    sums = sample[:1]  # a pattern and its mirror image have equal |sum|, so the first sign stays fixed
    for value in sample[1:]:
        sums = np.concatenate([sums + value, sums - value])
    tolerance = 1e-12 * float(np.abs(sample).sum())  # the same sum taken in another order must still count
    return float(np.mean(np.abs(sums) >= abs(sample.sum()) - tolerance))


def smallest_sign_flip_p(n: int) -> float:
    """Return the smallest p that the sign-flip and the Wilcoxon test can reach with n pairs: 2 / 2^n on any data."""
    return 2.0 ** (1 - n)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the exact two-sided p of the signed-rank test of differences of shape (n,).

    It is the sign-flip test of the ranks (Wilcoxon, Biometrics Bulletin 1, 1945); differences of 0 are left out as
    there, tied ones share their mean rank. scipy's is exact without ties only. NaN where none is left or more than 20.
    """
    from scipy.stats import rankdata

    sample = np.asarray(differences, dtype=float)
    sample = sample[sample != 0]
    # Rounded, so that equal differences of which one was computed another way tie.
    return sign_flip_p(np.sign(sample) * rankdata(np.round(np.abs(sample), 12)))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return p values of shape (k,) corrected for their number by Holm's step-down method, not counting NaN values.

    Keeps the chance of even one false finding among them at the level (Holm, Scandinavian Journal of Statistics 6,
    1979).
    """
    # statsmodels' multipletests does the same, and collects all garbage at each call: half the time of all tables.
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN ones come last
    corrected = np.full_like(values, np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def effect_size(differences: ArrayLike) -> float:
    """Return Hedges' g of paired differences of shape (n,): d_z, mean over deviation, corrected for small n.

    d_z as in Lakens, Frontiers in Psychology 4:863, 2013, eq. 6; the correction, with n - 1 degrees of freedom, is the
    exact one of Hedges, Journal of Educational Statistics 6, 1981, eq. 6e: 0.80 at n=5. It counts in deviations of the
    difference between two runs of one seed, so it is not to be compared with a d of independent samples. NaN for n < 3
    and where there is no spread.
    """
    sample = np.asarray(differences, dtype=float)
    free = len(sample) - 1
    # With one degree of freedom the correction would divide by gamma(0), which is infinite.
    if free < 2 or (sd := _spread(sample)) == 0:
        return np.nan
    correction = np.exp(special.gammaln(free / 2) - special.gammaln((free - 1) / 2)) / np.sqrt(free / 2)
    return float(correction * sample.mean() / sd)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Return the probability that one run of ours scores higher than one of theirs, whatever their seeds.

    Ties count half. The probability is over all pairs of values of shapes (n,) and (m,), NaN values left out (Agarwal
    et al. 2021, arXiv:2108.13264, section 4.3: the Mann-Whitney statistic over n m). NaN if either is empty.
    """
    a, b = (np.asarray(values, dtype=float) for values in (ours, theirs))
    # Every run of one side meets every run of the other: here seeds are not paired.
    signs = np.sign(a[~np.isnan(a)][:, None] - b[~np.isnan(b)][None, :])
    return float(np.mean((signs + 1) / 2)) if signs.size else np.nan


def smallest_detectable(differences: ArrayLike) -> float:
    """Return the smallest true mean difference that the paired t test finds at this n with the power `POWER`.

    In the unit of the differences, of shape (n,); their observed deviation stands for the true one (Cohen 1988, section
    2.4, by statsmodels). NaN for n < 2 and where there is no spread.
    """
    sample = np.asarray(differences, dtype=float)
    if len(sample) < 2 or (sd := _spread(sample)) == 0:
        return np.nan
    return float(sd * _detectable_effect(len(sample)))


@functools.cache
def _detectable_effect(n: int) -> float:
    """Return the smallest effect size that the t test finds at n; solving for it takes 10 ms, and most n are alike."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=n, alpha=1 - LEVEL, power=POWER))


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """Return the bounds of a share measured on this many examples: what another test set of this size could give.

    The score interval of Wilson, JASA 22, 1927 (method 3 of Newcombe, Statistics in Medicine 17, 1998). NaN without
    any.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not trials:
        return np.nan, np.nan
    low, high = proportion_confint(hits, trials, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def examples(shares: ArrayLike) -> int | None:
    """Return the smallest number of examples that makes each share a whole count; None if over a million.

    Shares of shape (k,), as stored: exact to rounding. A few accuracies on a test set give its size, which may be
    understated, but is never overstated.
    """
    values = np.unique(np.asarray(shares, dtype=float))
    fractions = [Fraction(float(value)).limit_denominator(MOST_EXAMPLES) for value in values[~np.isnan(values)]]
    # 50 of 100 reduces to 1/2 and hides a factor of the size; the other shares bring it back into the multiple.
    count = math.lcm(*(fraction.denominator for fraction in fractions))
    # np.unique puts NaN last, so the shorter list of fractions still meets its own values.
    exact = all(abs(float(fraction) - value) < 1e-12 for fraction, value in zip(fractions, values, strict=False))
    return count if exact and 1 < count <= MOST_EXAMPLES else None


def on_front(costs: ArrayLike, values: ArrayLike, *, higher_is_better: bool) -> NDArray[np.bool_]:
    """Flag the points that no other point dominates: one that is at least as cheap and as good, and better in one.

    Both arguments have shape (points,). Points equal in both do not dominate each other; NaN is never on the front.
    The Pareto front of the means: whether two neighbours on it differ is for their intervals to say.
    """
    cost = np.asarray(costs, dtype=float)
    loss = -np.asarray(values, dtype=float) if higher_is_better else np.asarray(values, dtype=float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [i, j]: i is no worse than j
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    # Comparisons with NaN are all false: nothing would dominate such a point, so it is taken out here.
    return np.asarray(~(no_worse & better).any(axis=0) & ~np.isnan(cost + loss))


def _spread(sample: NDArray[np.float64]) -> float:
    """Return the sample standard deviation, or 0 if it is only rounding error."""
    sd = float(sample.std(ddof=1))
    return 0.0 if sd <= 1e-12 * float(np.abs(sample).max()) else sd
