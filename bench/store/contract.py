"""Rules that collected tables must obey, whoever wrote them, and how to read them: all results rely on these rules."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bench.core.errors import nearest, shown
from bench.core.meta import Meta, MetricMeta
from bench.store.columns import COSTS, SPLITS, metric_columns
from bench.store.run_folder import FINISHED

if TYPE_CHECKING:  # pandas takes longer to import than most commands take to run
    import pandas as pd

STATUSES = (*FINISHED, "failed", "running", "partial", "missing")
MEASURED_TEXT = (
    *("run_id", "condition", "phase", "optimizer", "config", "recorded_sha256", "weights_sha256", "weights"),
    *("precision", "device", "torch", "direction"),
)
"""Columns of measures and directions that are no numbers."""

DERIVED = ("gap_", "selected_")
"""Prefixes of the names of numbers that are computed from other numbers."""

LARGEST = 2.0**63
"""No seed, count or size is larger. Measured values may be anything that a float is."""


# ---- the tables --------------------------------------------------------------------------------------------------


def fault(name: str, frame: pd.DataFrame, meta: Meta) -> str:
    """Return the first thing in a collected table that is not as `bench` writes it; "" if there is none."""
    # The checks are generators: the first fault ends the work.
    return next(_FAULTS[name](frame, meta), "")


def _of_records(frame: pd.DataFrame, meta: Meta) -> Iterator[str]:
    metrics = metric_columns(meta["metric"]["key"])
    swept = [key for keys in meta["sweeps"].values() for key in keys]
    text = ("run_id", "optimizer", "config", "status", "task", "model", "device", "torch", "python", "commit")
    numbers = ("seed", "epochs", "threads", *COSTS)
    needed = ("run_id", "optimizer", "seed", "status", "task", "epochs", "train_seconds", "passes", "dirty", "threads")
    # Missing columns come first: all later checks look columns up by name.
    yield from _columns(frame, (*needed, *text, "precision", *metrics, *swept, *(meta.get("vary") or ())))
    yield from _cells(frame, meta)
    conditions = frame["condition"].fillna("") if "condition" in frame else [""] * len(frame)
    # Planned runs have rows too, so every optimizer must be there under every condition, finished or not.
    there = {*zip(conditions, frame["optimizer"], strict=True)}
    for place in itertools.product(meta.get("conditions") or [""], meta["labels"]):
        if place not in there:
            yield f"no line has {' '.join(filter(None, place))}"
    # Line 1 of the file is the header, so the rows count from 2, as in an editor.
    for line, status in enumerate(frame["status"], start=2):
        if status not in STATUSES:
            yield f"line {line}: status is {shown(status)}; {nearest(str(status), STATUSES)}"
    yield from _numbers(frame, [*numbers, *metrics, *_reported(meta)])
    yield from _whole(frame, ("seed", "epochs"))
    if "phase" in frame:
        yield from _among(frame, "phase", ("tune", "final") if meta.get("phases") else ())
    elif meta.get("phases"):
        yield "column phase is missing"
    # Two rows at one place of the experiment would count one run twice.
    key = [column for column in ("condition", "phase", "optimizer", "config", "seed") if column in frame]
    for line, again in enumerate(frame.duplicated(key), start=2):
        if again:
            yield f"line {line}: {', '.join(key)} are those of an earlier line"
    # A run may stand at several places of the experiment, but it has one seed. Runs that no part of a merge has planned
    # are missing, and share an id.
    seeds = dict(zip(frame["run_id"], frame["seed"], strict=True))
    for line, (run_id, seed, status) in enumerate(zip(frame["run_id"], frame["seed"], frame["status"], strict=True), 2):
        if seeds[run_id] != seed and status != "missing":
            yield f"line {line}: run_id {shown(run_id)} is that of another seed, too"


def _of_curves(frame: pd.DataFrame, meta: Meta) -> Iterator[str]:
    measured = [column for column in metric_columns(meta["metric"]["key"]) if column.startswith(SPLITS)]
    about = ("run_id", "optimizer", "config", "seed", "epoch", "passes", "train_seconds")
    yield from _columns(frame, (*about, *measured))
    yield from _cells(frame, meta)
    numbers = ("seed", "epoch", "passes", "train_seconds", "lr", "batch_loss")
    yield from _numbers(frame, [*numbers, *measured, *_reported(meta)])
    yield from _whole(frame, ("seed", "epoch"))


def _of_measures(frame: pd.DataFrame, meta: Meta) -> Iterator[str]:
    yield from _columns(frame, ("run_id", "optimizer", "config", "seed"))
    yield from _cells(frame, meta)
    yield from _numbers(frame, [column for column in frame.columns if column not in MEASURED_TEXT])
    yield from _whole(frame, ("seed",))


_FAULTS = {
    "records.csv": _of_records,
    "curves.csv": _of_curves,
    "measures.csv": _of_measures,
    "directions.csv": _of_measures,
}


def _reported(meta: Meta) -> Iterator[str]:
    for task in (meta.get("tasks") or {}).values():
        yield from task["reported"]


def _columns(frame: pd.DataFrame, needed: Iterator[str] | tuple[str, ...]) -> Iterator[str]:
    for column in needed:
        if column not in frame:
            yield f"column {column} is missing"


def _cells(frame: pd.DataFrame, meta: Meta) -> Iterator[str]:
    """Yield the faults of rows that do not match experiment.json."""
    yield from _among(frame, "optimizer", meta["labels"])
    if conditions := meta.get("conditions"):
        # An experiment that varies nothing has the one condition "" and needs no column for it.
        if "condition" not in frame:
            if conditions != [""]:
                yield "column condition is missing"
        else:
            yield from _among(frame, "condition", conditions)
    for line, missing in enumerate(frame["run_id"].isna(), start=2):
        if missing:
            yield f"line {line}: run_id is missing"


def _among(frame: pd.DataFrame, column: str, valid: tuple[str, ...] | list[str]) -> Iterator[str]:
    known = {*valid}
    for line, value in enumerate(frame[column].fillna(""), start=2):
        # Without valid values (no phases, for example) only an empty cell is right.
        if value not in known and (known or value):
            yield f"line {line}: {column} is {shown(value)}; {nearest(str(value), known)}"


def _numbers(frame: pd.DataFrame, columns: list[str]) -> Iterator[str]:
    for column in frame.columns.intersection(columns):
        # pandas reads numbers as another type only if a cell is no number, or one that 64 bits cannot hold.
        if frame[column].dtype.kind not in "iuf":
            for line, value in enumerate(frame[column], start=2):
                if not _reads_as_number(value):
                    yield f"line {line}: {column} is {shown(value)}, not a number"
            if frame[column].notna().any():
                yield f"column {column} has a value that does not fit 64 bits"


def _whole(frame: pd.DataFrame, columns: tuple[str, ...]) -> Iterator[str]:
    for column in columns:
        for line, value in enumerate(frame[column], start=2):
            # A missing cell is NaN, for which every comparison is false.
            if not (0 <= value < LARGEST and value == int(value)):
                yield f"line {line}: {column} is {shown(value)}, not a whole number"


def _reads_as_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return not isinstance(value, bool)


# ---- reading ----------------------------------------------------------------------------------------------------


def read_csv(content: bytes, **options: Any) -> pd.DataFrame:
    """Return a table that this package wrote: only an empty cell is a missing value, "NA" and "null" are words.

    Raises:
        ValueError: it is no table.
    """
    import pandas as pd

    # low_memory would guess the type chunk by chunk, so that one column could get several types.
    frame: pd.DataFrame = pd.read_csv(
        io.BytesIO(content), keep_default_na=False, na_values=[""], low_memory=False, **options
    )
    # pandas says nothing about cells beyond the header: it takes the first column for an index.
    if not isinstance(frame.index, pd.RangeIndex):
        raise ValueError("rows have more cells than the header")
    return frame


def finite(measured: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Return numbers with NaN for those that are not finite, and these in words: "test_loss inf, test_r2 -inf".

    A mean over an infinite score is no number that anyone can compare, and no axis has room for one.
    """
    odd = {name: value for name, value in measured.items() if isinstance(value, float) and not math.isfinite(value)}
    said = ", ".join(f"{name} {value}" for name, value in odd.items() if not name.startswith(DERIVED))
    return {**measured, **dict.fromkeys(odd, math.nan)}, said or None


def gap_towards_worse(records: pd.DataFrame, metric: MetricMeta) -> pd.DataFrame:
    """Return records whose gap is positive where the test set is worse: it once was train - test for every metric."""
    key = metric["key"]
    if metric["higher_is_better"] or f"gap_{key}" not in records:
        return records
    return records.assign(**{f"gap_{key}": records[f"test_{key}"] - records[f"train_clean_{key}"]})


def without_infinities(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with infinite numbers made missing and named in "not_finite", as `collect` does: see `finite`.

    Earlier versions wrote infinite numbers into the files.
    """
    numbers: Any = frame.select_dtypes("float")
    infinite = numbers.isin([math.inf, -math.inf])
    if not infinite.to_numpy().any():
        return frame
    # NaN is the only value that differs from itself: this leaves missing cells out.
    measured = ({name: value for name, value in row.items() if value == value} for row in numbers.to_dict("records"))
    said: Any = [finite(row)[1] for row in measured]
    whole = frame.assign(not_finite=said)
    whole[numbers.columns] = numbers.mask(infinite)
    return whole
