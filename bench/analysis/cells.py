"""How rows and numbers of any table become text."""

from __future__ import annotations

import numpy as np

from bench.analysis.render import DAGGER, EMPTY
from bench.analysis.stats import Interval
from bench.analysis.summary import Row


def named(row: Row) -> str:
    """The name of a choice, marked if it lacks runs."""
    return row.name if row.complete else row.name + DAGGER


def counted(row: Row) -> str:
    """How many runs finished, and of how many if not all did."""
    return str(row.done) if row.complete else f"{row.done}/{row.planned}"


def plain(interval: Interval, form: str) -> str:
    """An interval in its own unit, as mean ± half-width; the mean alone where there is no interval."""
    mean = number(interval.mean, form)
    return mean if interval.n < 2 else f"{mean} ± {interval.half_width:{form}}"


def number(value: float, form: str, unit: str = "") -> str:
    return EMPTY if np.isnan(value) else f"{value:z{form}}{unit}"


def p_value(value: float) -> str:
    return EMPTY if np.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float) -> str:
    """A time with three digits or more: "4.93 s", "1,230 s"."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return number(value, f",.{digits}f", " s")
