"""The condition of a run (its task, model and data) and its name in words.

What `[vary]` of an experiment lists makes conditions, one for every combination of the values. Optimizers are chosen,
paired and compared within a condition only. An experiment that varies nothing has one condition, called "".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from bench.core.meta import Meta

KEY = ["condition", "optimizer", "config"]
"""The columns that tell one configuration from all others, in records and in curves."""

MANY = 6  # so many conditions are still named one by one,
MANY_LONG = 3  # so many of those that vary several things


def varied(meta: Meta) -> dict[str, list[Any]]:
    """Return the varied columns of records, each with its values in order; {} if nothing is varied."""
    return meta.get("vary") or {}


def conditions(meta: Meta) -> list[str]:
    """Return every condition in order, as the column "condition" names it; [""] if nothing is varied."""
    return meta.get("conditions") or [""]


def keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """Return records or curves with text as condition and config: "" for empty cells and missing columns."""
    return frame.assign(**{column: _text(frame, column) for column in ("condition", "config")})


def _text(frame: pd.DataFrame, column: str) -> Any:
    if column not in frame:
        return ""
    # As objects, because a column without any value is one of floats, into which no text goes.
    return frame[column].astype(object).where(frame[column].notna(), "")


def names(columns: Collection[str]) -> list[str]:
    """Return the short names of varied columns: "augment" for "task.augment", unless two columns share the name."""
    short = [column.rpartition(".")[2].replace("_", " ") for column in columns]
    return [name if short.count(name) == 1 else column for name, column in zip(short, columns, strict=True)]


def value_text(value: Any) -> str:
    """Return a varied value as a person writes it: 0.2, 50000, cifar10."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else f"{value:g}"
    return str(value)


def under(names: Collection[str], among: Collection[str]) -> str:
    """Return where something holds, as part of a sentence: " under label_noise=0.2 and 0.4"; "" if everywhere."""
    if len(names) == len(among):
        return ""
    long = any(", " in name for name in names)
    if len(names) > (MANY_LONG if long else MANY):
        return f" under {len(names)} of {len(among)} conditions"
    if long:
        return f" under {' and '.join(f'({name})' for name in names)}"
    # Any name would do: the names have the same key, since only one thing is varied here.
    key = min(names).partition("=")[0]
    *others, last = (name.partition("=")[2] for name in names)
    return f" under {key}={', '.join(others)}{' and ' if others else ''}{last}"


def first_few(parts: Sequence[str]) -> str:
    """Return parts as a list of which only the first five are named: "a; b; c; d; e; and 3 more"."""
    more = [f"and {len(parts) - 5} more"] if len(parts) > 5 else []
    return "; ".join([*parts[:5], *more])


def merged(notes: Iterable[tuple[str, str, str]], among: Collection[str]) -> Iterator[str]:
    """Yield notes of (condition, subject, text), each text once for all conditions in which the text holds."""
    holds: dict[tuple[str, str], dict[str, None]] = {}
    for condition, subject, said in notes:
        # A dict serves as a set that keeps the order of the conditions.
        holds.setdefault((subject, said), {})[condition] = None
    for (subject, said), names in holds.items():
        yield f"{subject}{under(names, among)}{said}"
