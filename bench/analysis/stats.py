"""Means with honest intervals, and paired tests between optimizers that share their seeds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special  # scipy.stats would do as well, at ten times the import time

LEVEL = 0.95
MAX_EXACT_N = 20  # 2^19 signed sums, 4 MiB; beyond it the t test is as good


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values and the bounds of its confidence interval (NaN where n < 2)."""

    n: int
    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval; NaN where it is undefined."""
        return (self.high - self.low) / 2

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit, e.g. factor 100 from a fraction to percent."""
        return Interval(self.n, self.mean * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class PairedTest:
    """Mean of the paired differences, with the two-sided p of the t test and of the exact sign-flip test."""

    difference: Interval
    p_t: float
    p_sign_flip: float


def half_width(n: ArrayLike, sd: ArrayLike, level: float = LEVEL) -> NDArray[np.float64]:
    """Half-width of the Student-t interval of a mean, t(n-1) * sd / sqrt(n), for arrays of any one shape.

    `sd` is the sample standard deviation (ddof=1). NaN where n < 2: one value says nothing about spread.
    Normal quantiles (1.96) or a percentile bootstrap are too narrow at five seeds, hence t.
    """
    count = np.asarray(n, dtype=float)
    count = np.where(count > 1, count, np.nan)
    quantile = special.stdtrit(count - 1, 0.5 + level / 2)
    return np.asarray(quantile * np.asarray(sd, dtype=float) / np.sqrt(count))


def mean_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Mean of a sample and its Student-t interval; NaN values (unfinished runs) are left out.

    With one value the bounds are NaN, with none the mean is NaN too.
    """
    sample = np.asarray(values, dtype=float)
    sample = sample[~np.isnan(sample)]
    n = len(sample)
    mean = float(sample.mean()) if n else np.nan
    half = float(half_width(n, sample.std(ddof=1), level)) if n > 1 else np.nan
    return Interval(n, mean, mean - half, mean + half)


def paired_test(ours: ArrayLike, theirs: ArrayLike, level: float = LEVEL) -> PairedTest:
    """Compare two optimizers seed by seed: mean of ours - theirs, its t interval and two p values.

    Both arguments have shape (seeds,), seeds in the same order; one that is NaN on either side is left out.
    Raises ValueError if the shapes differ.
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape:
        raise ValueError(f"paired samples need one value per seed on both sides, got {a.shape} and {b.shape}")
    differences = (a - b)[~np.isnan(a - b)]
    return PairedTest(mean_interval(differences, level), paired_t_p(differences), sign_flip_p(differences))


def paired_t_p(differences: ArrayLike) -> float:
    """Two-sided p of the paired t test, from differences of shape (n,).

    NaN for n < 2, and where the differences have no spread beyond rounding: t is then undefined, and the
    p = 0 that a division by 1e-17 would give is not evidence of anything.
    """
    sample = np.asarray(differences, dtype=float)
    n = len(sample)
    if n < 2:
        return np.nan
    sd = float(sample.std(ddof=1))
    if sd <= 1e-12 * float(np.abs(sample).max()):
        return np.nan
    t = float(sample.mean()) / (sd / np.sqrt(n))
    return float(2 * special.stdtr(n - 1, -abs(t)))


def sign_flip_p(differences: ArrayLike) -> float:
    """Exact two-sided p of the sign-flip test: the share of all 2^n sign patterns with as large a mean.

    Assumes only that the differences are symmetric about 0 under the null (Fisher, The Design of Experiments,
    1935, section 21). NaN for n = 0 and for n > 20, where the enumeration would be too large.
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
    """The smallest p that the sign-flip test can reach with n pairs, 2 / 2^n, whatever the data."""
    return 2.0 / 2.0**n
