"""Rows as numbers for a CSV: unrounded, and in the unit that their column names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis.stats import Interval, PairedTest
from bench.analysis.summary import Row, interval_columns
from bench.core.meta import MetricMeta

Numbers = Mapping[str, Any]
"""Columns of a CSV with the values of one line."""

NOT_COMPARED = PairedTest(Interval(0, np.nan, np.nan, np.nan), np.nan, np.nan)
# The columns behind the label, in this order; "config" is no count, but it belongs to the name of the line.
COUNTS = ("config", "planned", "done", "diverged", "failed", "unfinished")


def bounds(name: str, interval: Interval, unit: str = "") -> Numbers:
    """Return an interval as three numbers: "test_acc_mean [%]", "test_acc_low [%]" and "test_acc_high [%]"."""
    suffix = f" [{unit}]" if unit else ""
    return {f"{name}_{part}{suffix}": getattr(interval, part) for part in ("mean", "low", "high")}


def condition(row: Row) -> Numbers:
    """Return the name and the values of a row's condition; {} if nothing is varied."""
    return {"condition": row.condition, **row.varied} if row.varied else {}


def identity(row: Row) -> Numbers:
    """Return the label and the configuration of a row, and how many of its runs are planned and how they ended."""
    return {"optimizer": row.label, **{field: getattr(row, field) for field in COUNTS}}


def measured(metric: MetricMeta, *fields: str) -> Callable[[Row], Numbers]:
    """Return a function that gives fields of a row as numbers.

    An interval is named after its column in the records: "val_loss_mean", "_low" and "_high". Metrics are in the unit
    in which they are shown, losses and seconds as they are stored.
    """
    columns = interval_columns(metric["key"])

    def numbers(row: Row) -> Numbers:
        line: dict[str, Any] = {}
        for field in fields:
            value = getattr(row, field)
            # Counts, means and words have no column of their own in the records: they keep the name of the field.
            if field not in columns:
                line[field] = value
            # Only metrics change their unit for tables, so only they are scaled and name the unit.
            elif field.endswith("_metric"):
                line |= bounds(columns[field], value.scaled(metric["scale"]), metric["unit"])
            else:
                line |= bounds(columns[field], value)
        return line

    return numbers


def compared(metric: MetricMeta) -> Callable[[Row], Numbers]:
    """Return a function that gives a row's paired difference to the baseline in the unit shown, n and both p values."""

    def numbers(row: Row) -> Numbers:
        # The baseline's own line has the same columns, with empty cells.
        test = row.difference or NOT_COMPARED
        return {
            **bounds("difference", test.difference.scaled(metric["scale"]), metric["unit"]),
            "difference_n": test.difference.n,
            "p_paired_t": test.p_t,
            "p_sign_flip": test.p_sign_flip,
        }

    return numbers


def frame(rows: Sequence[Row], *parts: Callable[[Row], Numbers]) -> pd.DataFrame:
    """Return a line per row: its condition, its identity and what the parts give."""
    return pd.DataFrame(
        [{key: value for part in (condition, identity, *parts) for key, value in part(row).items()} for row in rows]
    )
