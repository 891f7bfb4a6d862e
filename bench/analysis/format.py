"""Text of rows and numbers, the same in all tables."""

from __future__ import annotations

import numpy as np

from bench.analysis.render.table import DAGGER, EMPTY, SECTION
from bench.analysis.stats import Interval
from bench.analysis.summary import Row

ALIKE = " (all equal)"


def named(row: Row) -> str:
    """Return the name of a choice with its marks."""
    return row.name + marks(row)


def marks(row: Row) -> str:
    """Return a dagger for a row that lacks runs, and a section sign for a degenerate row."""
    return DAGGER * (not row.complete) + SECTION * bool(row.degenerate)


def counted(row: Row) -> str:
    """Return how many runs finished with a score, and of how many if not all did."""
    return str(row.scored) if row.scored == row.planned else f"{row.scored}/{row.planned}"


def plain(interval: Interval, form: str) -> str:
    """Return an interval in its own unit: mean ± half-width, or [low, high] if one end was cut off.

    Without an interval it is the mean alone, with a remark if several values are all equal.
    """
    mean = number(interval.mean, form)
    if not interval.known:
        return mean + ALIKE * interval.alike
    # "±" would claim two equal halves, which an interval that was cut does not have.
    return f"{mean} {_bracketed(interval, form)}" if interval.cut else f"{mean} ± {interval.half_width:{form}}"


def signed_bounds(difference: Interval, form: str) -> str:
    """Return the bounds of a difference, e.g. "[+0.31, +1.33]", or a text that says that there are none."""
    return _bracketed(difference, f"+z{form}") if difference.known else ALIKE.strip() if difference.alike else EMPTY


def _bracketed(interval: Interval, form: str) -> str:
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def number(value: float, form: str, unit: str = "") -> str:
    # "z" writes a small negative number that rounds to 0 as 0.00, not as -0.00.
    return EMPTY if np.isnan(value) else f"{value:z{form}}{unit}"


def p_value(value: float) -> str:
    # A p of 0.000 would claim certainty.
    return EMPTY if np.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def seconds(value: float) -> str:
    """Return a time with at least three digits: "4.93 s", "1,230 s"."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return number(value, f",.{digits}f", " s")
