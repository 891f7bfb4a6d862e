"""The records collected from an experiment's runs, the only input of tables and plots.

results/<experiment>/
    experiment.json    title, baseline, labels, metric, and the sha256 of the files below
    records.csv        one row per planned run, finished or not
    curves.csv         one row per run and evaluated epoch
    measures.csv       one row per measured run, if `bench measure` was called: sharpness, calibration, what they cost
    directions.csv     loss along directions in weight space, of the same runs
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from bench.core.errors import BenchError
from bench.core.meta import Meta
from bench.store import contract
from bench.store.columns import PLACE, TEXT, setting_columns
from bench.store.file_set import path_of, replace_all
from bench.store.files import read_bytes, read_json, to_json
from bench.store.run_folder import FINISHED

if TYPE_CHECKING:  # pandas takes longer to import than most commands take to run
    import pandas as pd


COLLECTED = ("records.csv", "curves.csv")
MEASURED = ("measures.csv", "directions.csv")


@dataclass(frozen=True, eq=False)  # frames cannot be compared for equality
class Results:
    """An experiment's results.

    Attributes:
        meta: experiment.json.
        records: one row per planned run; metrics are fractions, losses in nats, times in seconds. A number that is not
            finite is missing there and in the other frames; the records' column "not_finite" names those of a run.
        curves: one row per run and evaluated epoch.
        measures: one row per measured run; None if none was.
        directions: losses along directions, one row per point; None if none were measured.
    """

    meta: Meta
    records: pd.DataFrame
    curves: pd.DataFrame
    measures: pd.DataFrame | None = None
    directions: pd.DataFrame | None = None
    damaged: tuple[str, ...] = field(default=(), kw_only=True)
    """One sentence per run that could not be collected in full, with the file at fault."""


# ---- the committed files -------------------------------------------------------------------------------------


def finished(folder: Path) -> set[str]:
    """Return the ids of the finished runs in records.csv, wherever they were made; none if there is no such file.

    Raises:
        BenchError: records.csv cannot be read as a table.
    """
    path = path_of(folder, "records.csv")
    try:
        # Only these two columns are parsed: this must work where `read` refuses the table (see `collecting.held`).
        records = contract.read_csv(read_bytes(path), usecols=["run_id", "status"], dtype=str)
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is not a table of records ({error}); restore or remove it") from error
    return set(records.loc[records.status.isin(FINISHED), "run_id"].dropna())


def publish(results: Results, folder: Path) -> None:
    """Write experiment.json, records.csv and curves.csv, and measures that the results have, all or none.

    Measures that are there stay, where the results have none.

    Raises:
        StorageError: the folder cannot be written.
    """
    frames = {"records.csv": results.records, "curves.csv": results.curves}
    # Measures and directions are one pair: both files are written, or both stay as they are.
    if results.measures is not None and results.directions is not None:
        frames |= dict(zip(MEASURED, (results.measures, results.directions), strict=True))
    # The same line ends on every system, since the sha256 of the bytes is recorded.
    contents = {name: frame.to_csv(index=False, lineterminator="\n") for name, frame in frames.items()}
    try:
        before = read_json(path_of(folder, "experiment.json"), missing={}).get("sha256", {})
    except BenchError:  # measures are then not known to be as they were written, and `read` will say so
        before = {}
    # Hashes of measures that stay are carried over; without them `read` would call these files changed.
    sha256 = {name: before[name] for name in MEASURED if name in before}
    sha256 |= {name: _sha256(content.encode()) for name, content in contents.items()}
    replace_all(folder, {**contents, "experiment.json": to_json({**results.meta, "sha256": sha256})})


def publish_measures(measures: pd.DataFrame, directions: pd.DataFrame, folder: Path) -> None:
    """Write measures.csv and directions.csv beside what `publish` wrote, both or none.

    Raises:
        BenchError: there is no experiment.json.
        StorageError: the folder cannot be written.
    """
    meta = read_json(path_of(folder, "experiment.json"))
    contents = {}
    for name, frame in zip(MEASURED, (measures, directions), strict=True):
        contents[name] = frame.to_csv(index=False, lineterminator="\n")
        meta["sha256"][name] = _sha256(contents[name].encode())
    replace_all(folder, {**contents, "experiment.json": to_json(meta)})


def forget(run_ids: Collection[str], folder: Path) -> None:
    """Remove finished runs from the records: their rows stay, with the status "missing".

    Raises:
        BenchError: the records are not as they were written.
        StorageError: the folder cannot be written.
    """
    gone = finished(folder) & {*run_ids}
    if not gone:
        return
    results = read(folder)
    frame, which = results.records, results.records["run_id"].isin(gone)
    # What says which run a row is of stays; whatever the run measured is emptied.
    kept = {"experiment", "task", "model", "run_id", *PLACE, *setting_columns(map(str, frame))}
    measured = [name for name in frame.columns if name not in kept]
    rows = frame.copy()
    rows[measured] = frame[measured].mask(which)
    rows["status"] = frame["status"].mask(which, "missing")
    publish(replace(results, records=rows, curves=results.curves[~results.curves["run_id"].isin(gone)]), folder)


def files(folder: Path) -> dict[str, bytes]:
    """Return the files that `read` reads, experiment.json first, as one process wrote them.

    Raises:
        BenchError: one cannot be read.
    """
    while True:
        # One pass could read some files before they are replaced and the others after it.
        contents = _files(folder)
        if _files(folder) == contents:  # else another process has written them anew meanwhile
            return contents


def _files(folder: Path) -> dict[str, bytes]:
    contents = {}
    for name in ("experiment.json", *COLLECTED, *MEASURED):
        path = path_of(folder, name)
        try:
            contents[name] = read_bytes(path)
        except OSError as error:
            # Measures may be missing; every other file must be there.
            if name not in MEASURED or not isinstance(error, FileNotFoundError):
                raise BenchError(f"cannot read {path}: {error.strerror}") from error
    return contents


def read(folder: Path) -> Results:
    """Read what `publish` wrote.

    Raises:
        BenchError: nothing is there yet, or a file is not as it was written (edited by hand, cut short).
    """
    # Imported only here, because it imports pydantic, which takes longer than making tables.
    from bench.store.meta_rules import read_meta

    if not path_of(folder, "experiment.json").exists():
        raise BenchError(f"{folder} holds no results yet; `bench run` makes them")
    contents = files(folder)
    meta = read_meta(folder / "experiment.json", contents.pop("experiment.json"))
    # In the order of COLLECTED and MEASURED, which is also that of the fields of `Results`.
    frames = []
    for name, content in contents.items():
        intact = _sha256(content) == meta["sha256"].get(name)
        fault = "its sha256 differs from the one in experiment.json"
        try:
            frame = contract.without_infinities(contract.read_csv(content, dtype=dict.fromkeys(TEXT, str)))
            # The contract is also checked where the sha256 is wrong: its message says more about what happened.
            fault = contract.fault(name, frame, meta) or fault * (not intact)
        except (ValueError, OverflowError) as error:
            fault = str(error)
        if not intact:
            again = "delete it, and `bench measure" if name in MEASURED else "collect it again with `bench run"
            raise BenchError(
                f"{folder / name} is not as it was written: {fault}. Records are collected from runs, never edited: "
                f"restore the file, or {again} {meta['name']}`"
            )
        if fault:
            raise BenchError(f"{folder / name} is not what `bench` writes: {fault}")
        frames.append(frame)
    rest = cast(Meta, {key: value for key, value in meta.items() if key != "sha256"})
    # Files that an earlier version collected may have the gap with the other sign.
    return Results(rest, contract.gap_towards_worse(frames[0], meta["metric"]), *frames[1:])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
