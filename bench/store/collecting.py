"""Finished runs of an experiment and the sources of their numbers, collected into tables.

A run is finished where its folder says so or, wherever it was done, where the records hold it as they were written.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.core.errors import BenchError, counted
from bench.core.meta import Meta
from bench.store.columns import CIRCUMSTANCES, COSTS, COUNTS, PLACE, PROGRESS, SPLITS, metric_columns, setting_columns
from bench.store.contract import finite
from bench.store.file_set import path_of
from bench.store.files import to_json
from bench.store.records import Results, finished, read
from bench.store.run_folder import FINISHED, RunFolder, Status, Store, reason_in

if TYPE_CHECKING:  # pandas takes longer to import than most commands take to run
    import pandas as pd

    from bench.core.experiment import PlannedRun


# ---- what there is of a run -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """The finished runs that an experiment's records hold, wherever they were done.

    Attributes:
        meta: experiment.json; empty where there are no records.
        rows: their rows of records.csv by run_id, without the cells that are missing.
        settings: the columns of `rows` that are settings.
        curves: their rows of curves.csv, each run once: run_id and what was measured.
    """

    meta: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    settings: Sequence[str] = ()
    curves: pd.DataFrame | None = None


NOTHING = Held()


def held(store: Store) -> Held:
    """Return the runs in the records; damaged records count as empty if all of their runs are finished here.

    Raises:
        BenchError: the records are not as they were written, and hold runs that are nowhere else.
    """
    there = store.present()
    if not any(path_of(store.folder, name).exists() for name in ("experiment.json", "records.csv")):
        return NOTHING
    try:
        return _held(read(store.folder))
    except BenchError as error:
        elsewhere = {run_id for run_id in finished(store.folder) if not is_finished(store.run(run_id), there)}
        if not elsewhere:
            return NOTHING
        raise BenchError(
            f"{error}\n  {counted(len(elsewhere), 'finished run')} in records.csv without a folder here cannot be "
            "collected again: restore the files, or delete experiment.json and records.csv to repeat those runs"
        ) from error


def is_finished(folder: RunFolder, there: set[str]) -> bool:
    """Return whether a run is finished in its folder, `there` being the runs that have one."""
    try:
        return folder.run_id in there and folder.result() is not None
    except BenchError:
        return False


def _held(results: Results) -> Held:
    # A run that stands at several places of the experiment has a row for each; one is enough here.
    done = results.records[results.records["status"].isin(FINISHED)].drop_duplicates("run_id")
    rows = {row["run_id"]: _present(row) for row in done.to_dict("records")}
    curves = results.curves[results.curves["run_id"].isin(rows)].drop_duplicates(["run_id", "epoch"])
    settings = setting_columns(map(str, results.records))
    # Without their place: `collect` joins them to the places that the run has in the experiment now.
    return Held(results.meta, rows, settings, curves.drop(columns=["experiment", *PLACE], errors="ignore"))


def _present(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the cells with a value; counts become integers again, since pandas makes them floats beside a NaN."""
    there = {name: value for name, value in row.items() if value == value and value is not None}
    return there | {name: int(there[name]) for name in COUNTS if name in there and there[name] % 1 == 0}


@dataclass(frozen=True)
class Found:
    """The existing files and numbers of a run.

    Attributes:
        status: where it stands.
        row: what records.csv says of it beside its place and its settings.
        curve: the evaluated epochs of its folder.
        faults: what of its folder is damaged.
        held: it is in the records, and they are what counts.
    """

    status: Status
    row: dict[str, Any] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    held: bool = False


def look(folder: RunFolder, held: Held, there: set[str], *, whole: bool = True) -> Found:
    """Return a run's status and numbers: from its folder if it is finished there, else from the records.

    Args:
        there: the runs that have a folder (`Store.present`).
        whole: read its curve and its environment too.
    """
    looked = _in_folder(folder, whole=whole) if folder.run_id in there else Found("missing")
    row = held.rows.get(folder.run_id)
    if row is None or looked.status in FINISHED:
        return looked
    faults = [f"{fault}; until then its row in the records counts" for fault in looked.faults]
    return Found(row["status"], row, faults=faults, held=True)


def _in_folder(folder: RunFolder, *, whole: bool) -> Found:
    try:
        status, result = _standing(folder)
        curve = folder.whole_curve(result) if whole and result else []
    except BenchError as error:
        return Found("failed", {"error": str(error)}, faults=[str(error)])
    if result is None:
        return Found(status, {"error": reason_in(folder.error() or "")} if status == "failed" else {})
    environments, faults = _environments(folder) if whole else ([{}], [])
    # Only what is known to be there: a hyperparameter of a plug-in may be called as anything else is.
    row = {name: value for name, value in environments[-1].items() if name in CIRCUMSTANCES}
    row |= {name: value for name, value in result.items() if name in (*COSTS, *CIRCUMSTANCES)}
    metrics, not_finite = finite(result["metrics"])
    row |= {"environments": len(environments), "not_finite": not_finite, **metrics}
    return Found(status, row, [finite(point)[0] for point in curve], faults)


def _standing(folder: RunFolder) -> tuple[Status, dict[str, Any] | None]:
    """Return a run's status from its folder and, if it is finished, its result."""
    result = folder.result()
    status: Status = folder.status() if result is None else result["status"]
    if result is None and status in FINISHED:  # it was finished between the two reads
        result = folder.result()
    return status, result


def _environments(folder: RunFolder) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the environments of a finished run, and a remark if they are lost."""
    try:
        environments, fault = folder.environments(), "is missing or empty"
    except BenchError as error:
        environments, fault = [], str(error)
    path = folder.path / "environment.json"
    if environments:
        return environments, []
    return [{}], [f"{path}: {fault}; the run counts, on unknown hardware and versions"]


# ---- collecting ----------------------------------------------------------------------------------------------


def collect(
    store: Store,
    meta: Meta,
    runs: Sequence[PlannedRun],
    known: Held | None = None,
    changed: Collection[str] | None = None,
) -> Results:
    """Return the records and the curves of every planned run as two frames; unfinished runs have a row too.

    A run whose folder is damaged counts as failed, and `damaged` of the results says why. A run of which only
    environment.json is damaged still counts.

    Args:
        known: what the records hold; default: they are read.
        changed: the runs whose folders are looked into although the records hold them; default: all.

    Raises:
        BenchError: see `held`.
    """
    import pandas as pd

    known = held(store) if known is None else known
    metrics = metric_columns(meta["metric"]["key"])
    hyperparameters: dict[str, None] = {}
    looked: dict[str, Found] = {}
    rows, places = [], []
    there = store.present()
    for run in runs:
        settings, run_id = run.spec.hyperparameters(), run.spec.run_id
        hyperparameters |= dict.fromkeys(settings)
        if run_id not in looked:
            # With no folders to look into, `look` takes the run from the records.
            skip = changed is not None and run_id in known.rows and run_id not in changed
            looked[run_id] = look(store.run(run_id), known, set() if skip else there)
        place = [run_id, run.condition_text, run.phase, run.label, run.config_text, run.spec.seed]
        places.append(dict(zip(("run_id", *PLACE), place, strict=True)))
        about = {"experiment": meta["name"], "task": run.spec.task.name, "model": run.spec.model.name}
        # The order matters: later tables overwrite the old place, settings and status of a row from the records.
        rows.append({**looked[run_id].row, **about, **settings, **places[-1], "status": looked[run_id].status})
    measured = _measured(looked, known)
    # What tasks measure beside their metric: other scores, other test sets.
    more = [name for name in measured if name not in {"run_id", *PROGRESS, *metrics}]
    columns = [
        *("experiment", "task", "model", *PLACE, "status", "error"),
        *hyperparameters,
        *metrics,
        *more,
        *COSTS,
        *CIRCUMSTANCES,
        "run_id",
    ]
    curve_columns = ["run_id", *PLACE, *PROGRESS, *(name for name in metrics if name.startswith(SPLITS)), *more]
    curves = pd.DataFrame(places, columns=["run_id", *PLACE]).merge(measured, on="run_id")
    damaged = tuple(dict.fromkeys(fault for one in looked.values() for fault in one.faults))
    frames = pd.DataFrame(rows, columns=columns), curves.reindex(columns=curve_columns)
    # As it will be read from experiment.json, so that what is made of it now and later is the same to the byte.
    return Results(json.loads(to_json(meta)), *frames, damaged=damaged)


def _measured(looked: Mapping[str, Found], held: Held) -> pd.DataFrame:
    """Return the evaluated epochs of all runs, from run folders or records: run_id and the measured columns."""
    import pandas as pd

    points = [{"run_id": run_id, **point} for run_id, one in looked.items() for point in one.curve]
    frames = [pd.DataFrame(points)] if points else []
    if held.curves is not None:
        old = held.curves[held.curves["run_id"].isin([run_id for run_id, one in looked.items() if one.held])]
        # Columns without any value are dropped, so that they do not decide the types of the joined frame.
        frames = [old.dropna(axis="columns", how="all"), *frames] if len(old) else frames
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["run_id"])
