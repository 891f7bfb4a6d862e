"""Bounds of the possible values of a measured number; intervals are cut there."""

from __future__ import annotations

import math

from bench.core.meta import MetricMeta

Bounds = tuple[float, float]
"""Lowest and highest possible value as stored (accuracy: 0 and 1); infinite if there is no bound."""

UNBOUNDED: Bounds = (-math.inf, math.inf)
POSITIVE: Bounds = (0.0, math.inf)


def of_metric(metric: MetricMeta) -> Bounds:
    """Return the bounds of a metric; records of older versions have bounds for accuracy only."""
    accuracy = (0.0, 1.0) if metric["key"] == "acc" else (None, None)
    low, high = metric.get("lowest", accuracy[0]), metric.get("highest", accuracy[1])
    # JSON has no infinity: in experiment.json null stands for a side without a bound.
    return -math.inf if low is None else low, math.inf if high is None else high


def of_difference(metric: MetricMeta) -> Bounds:
    """Return the bounds of a difference of two values of a metric: a gap, or one run's minus another's."""
    low, high = of_metric(metric)
    return low - high, high - low


def of_rows(metric: MetricMeta) -> dict[str, Bounds]:
    """Return, by field, the bounds of those fields of a `summary.Row` whose values are bounded."""
    # Fields that are not listed, as all losses, keep their intervals uncut.
    levels = ("test_metric", "val_metric", "train_metric", "noisy_metric", "selected_metric")
    return {**dict.fromkeys(levels, of_metric(metric)), "gap_metric": of_difference(metric), "train_seconds": POSITIVE}
