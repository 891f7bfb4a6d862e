"""Numbers over several rows of the atlas: random-effects means, prediction intervals and rank correlations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from bench.analysis.stats import LEVEL, Interval

FEWEST_POOLED = 2
FEWEST_PREDICTED = 3  # a prediction interval has k - 2 degrees of freedom
FEWEST_RANKED = 5


@dataclass(frozen=True)
class Pooled:
    """A random-effects mean of several differences.

    Attributes:
        k: the number of differences.
        mean: with the interval of Hartung, Knapp, Sidik and Jonkman; of one difference that one.
        predicted: where the difference of one more task of this kind would lie, 19 times in 20; NaN for fewer than 3.
        i2: share of the variation between differences that chance does not explain, from 0 to 1; NaN for one.
    """

    k: int
    mean: Interval
    predicted: tuple[float, float]
    i2: float


def pooled(differences: Sequence[Interval]) -> Pooled:
    """Return the random-effects mean of independent differences, each a mean over seeds with its t interval.

    Between-task variance by Paule and Mandel (1982, Journal of Research of the NBS 87), standard error by Hartung and
    Knapp (2001, Statistics in Medicine 20), both by statsmodels; the standard error is never below the usual one
    (Röver et al. 2015, BMC Medical Research Methodology 15:99). Prediction interval: Higgins et al. 2009, Journal of
    the Royal Statistical Society A 172, eq. 12. I2: Higgins & Thompson 2002, Statistics in Medicine 21.
    """
    from statsmodels.stats.meta_analysis import combine_effects

    known = [one for one in differences if one.known]
    if not known:
        return Pooled(0, Interval(0, math.nan, math.nan, math.nan), (math.nan, math.nan), math.nan)
    if len(known) < FEWEST_POOLED:
        return Pooled(1, known[0], (math.nan, math.nan), math.nan)
    effects = np.array([one.mean for one in known])
    errors = np.array([one.half_width / special.stdtrit(one.n - 1, 0.5 + LEVEL / 2) for one in known])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single samples' intervals, which we have already
        found = combine_effects(effects, errors**2, method_re="iterated", use_t=True)
    k, mean = len(known), _told(float(found.mean_effect_re))
    error = max(float(found.sd_eff_w_re_hksj), float(found.sd_eff_w_re))
    half = _told(float(special.stdtrit(k - 1, 0.5 + LEVEL / 2)) * error)
    tau2 = max(0.0, float(found.tau2))
    reach = math.nan
    if k >= FEWEST_PREDICTED:
        reach = _told(float(special.stdtrit(k - 2, 0.5 + LEVEL / 2)) * math.sqrt(tau2 + error**2))
    i2 = max(0.0, _told(found.i2))
    return Pooled(k, Interval(k, mean, mean - half, mean + half), (mean - reach, mean + reach), i2)


def _told(value: float) -> float:
    """Return a number to ten significant digits: beyond those it depends on the processor's vector instructions."""
    return float(f"{value:.10g}")


def rank_correlation(x: ArrayLike, y: ArrayLike) -> Interval:
    """Return Spearman's rank correlation of two samples of shape (n,) with its interval; NaN pairs are left out.

    By Fisher's z with the standard error of Bonett & Wright 2000, Psychometrika 65, eq. 6. NaN for fewer than 5 pairs,
    and where one side is constant.
    """
    a, b = (np.asarray(values, dtype=float) for values in (x, y))
    kept = ~np.isnan(a + b)
    a, b = a[kept], b[kept]
    n = len(a)
    if n < FEWEST_RANKED or len({*a}) < 2 or len({*b}) < 2:
        return Interval(n, math.nan, math.nan, math.nan)
    r = _told(stats.spearmanr(a, b).statistic)
    if abs(r) > 1 - 1e-12:
        return Interval(n, r, math.nan, math.nan)  # of a perfect order no spread follows
    half = special.ndtri(0.5 + LEVEL / 2) * math.sqrt((1 + r**2 / 2) / (n - 3))
    low, high = (math.tanh(math.atanh(r) + side * half) for side in (-1, 1))
    return Interval(n, r, low, high)
