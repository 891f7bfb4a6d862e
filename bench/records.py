"""What is collected from the runs of an experiment, and all that tables and plots ever read.

results/<experiment>/
    experiment.json    title, baseline, labels, metric, and the sha256 of the files below
    records.csv        one row a planned run, finished or not
    curves.csv         one row a run and evaluated epoch
    measures.csv       one row a measured run, if `bench measure` was called: sharpness, calibration, what they cost
    directions.csv     loss along directions in weight space, of the same runs
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError, nearest
from bench.store import FINISHED, RunFolder, Status, Store, read_json, reason_in, to_json, write_atomic

if TYPE_CHECKING:  # pandas takes longer to import than most commands take to run
    import pandas as pd

    from bench.spec import PlannedRun

SPLITS = ("train", "train_clean", "train_noisy", "val", "test")
COSTS = ("setup_seconds", "train_seconds", "eval_seconds", "passes", "examples", "tokens", "peak_memory_mb")
CIRCUMSTANCES = (
    *("device", "threads", "torch", "python", "commit", "dirty", "data_fingerprint", "data_verified", "environments"),
    *("sequences", "truncated", "max_tokens"),
    *("resumes", "skipped_steps", "initial_weights_sha256", "weights_sha256"),
)
COLLECTED = ("records.csv", "curves.csv")
MEASURED = ("measures.csv", "directions.csv")
STATUSES = (*FINISHED, "failed", "running", "partial", "missing")
TEXT_COLUMNS = (
    *("experiment", "task", "model", "condition", "phase", "optimizer", "config", "status", "error", "method", "base"),
    *("schedule", "precision", "device", "torch", "python", "commit", "data_fingerprint", "initial_weights_sha256"),
    "weights_sha256",
    "run_id",
)


@dataclass(frozen=True)
class Results:
    """An experiment's results.

    Attributes:
        meta: experiment.json.
        records: one row a planned run; metrics are fractions, losses in nats, times in seconds.
        curves: one row a run and evaluated epoch.
        measures: one row a measured run; None if none was.
        directions: losses along directions, one row a point; None if none were measured.
    """

    meta: dict[str, Any]
    records: pd.DataFrame
    curves: pd.DataFrame
    measures: pd.DataFrame | None = None
    directions: pd.DataFrame | None = None


def metric_columns(key: str) -> list[str]:
    """The measured columns of a task whose score is called `key`, in the order of records.csv."""
    measured = [f"{split}_{what}" for split in SPLITS for what in ("loss", key)]
    return [*measured, "gap_loss", f"gap_{key}", "selected_epoch", f"selected_test_{key}"]


# ---- collecting from run folders -----------------------------------------------------------------------------


def collect(store: Store, meta: dict[str, Any], runs: Sequence[PlannedRun]) -> Results:
    """Read every planned run's folder into two frames. A run that is not finished has a row all the same.

    Raises:
        BenchError: a result.json is damaged or foreign.
    """
    import pandas as pd

    metrics = metric_columns(meta["metric"]["key"])
    about = [
        "run_id",
        "condition",
        "phase",
        "optimizer",
        "config",
        "seed",
        "epoch",
        "passes",
        "train_seconds",
        "lr",
        "batch_loss",
    ]
    rows, points = [], []
    hyperparameters: dict[str, None] = {}
    further: dict[str, None] = {}
    there = store.present()
    for run in runs:
        settings = run.spec.hyperparameters()
        hyperparameters |= dict.fromkeys(settings)
        row, curve = _collect_run(store, run, settings, there)
        rows.append({"experiment": meta["name"], **row})
        points.extend(curve)
        further |= dict.fromkeys(name for point in curve[-1:] for name in point)
    # What tasks measure beside their metric: other scores, other test sets.
    more = [name for name in further if name not in {*about, *metrics}]
    columns = [
        *("experiment", "task", "model", "condition", "phase", "optimizer", "config", "seed", "status", "error"),
        *hyperparameters,
        *metrics,
        *more,
        *COSTS,
        *CIRCUMSTANCES,
        "run_id",
    ]
    curve_columns = [*about, *(name for name in metrics if name.startswith(SPLITS)), *more]
    return Results(meta, pd.DataFrame(rows, columns=columns), pd.DataFrame(points, columns=curve_columns))


def _collect_run(
    store: Store, run: PlannedRun, settings: dict[str, Any], there: set[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    spec = run.spec
    folder = store.run(spec.run_id)
    status, result = standing(folder) if folder.run_id in there else ("missing", None)
    place: dict[str, Any] = {"condition": run.condition_text, "optimizer": run.label, "config": run.config_text}
    place |= {"phase": run.phase, "seed": spec.seed, "run_id": folder.run_id}
    row = {**place, "task": spec.task.name, "model": spec.model.name, "status": status}
    row |= settings
    if result is None:
        if status == "failed":
            row["error"] = reason_in(folder.error() or "")
        return row, []
    environments = folder.environments()
    row |= environments[-1] | {"environments": len(environments)}
    row |= {name: value for name, value in result.items() if name not in ("metrics", "protocol")}
    row |= result["metrics"]
    return row, [{**place, **point} for point in folder.curve()]


def standing(folder: RunFolder) -> tuple[Status, dict[str, Any] | None]:
    """Where a run stands, and its result if it is finished, read once."""
    result = folder.result()
    status: Status = folder.status() if result is None else result["status"]
    if result is None and status in FINISHED:  # at this very moment
        result = folder.result()
    return status, result


# ---- the committed files -------------------------------------------------------------------------------------


def finished(folder: Path) -> set[str]:
    """Ids of the finished runs that records.csv holds, wherever they were made; none if there is no such file.

    Raises:
        BenchError: records.csv cannot be read as a table.
    """
    import pandas as pd

    path = folder / "records.csv"
    if not path.exists():
        return set()
    try:
        records = pd.read_csv(path, usecols=["run_id", "status"], dtype=str)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is no table of records ({error}); restore or remove it") from error
    return set(records.loc[records.status.isin(FINISHED), "run_id"])


def publish(results: Results, folder: Path) -> None:
    """Write experiment.json, records.csv and curves.csv, each whole or not at all. Measures that are there stay.

    Raises:
        StorageError: the folder cannot be written.
    """
    records = results.records.to_csv(index=False, lineterminator="\n")
    curves = results.curves.to_csv(index=False, lineterminator="\n")
    before = read_json(folder / "experiment.json", missing={}).get("sha256", {})
    sha256 = {name: before[name] for name in MEASURED if name in before}
    sha256 |= {"records.csv": _sha256(records.encode()), "curves.csv": _sha256(curves.encode())}
    write_atomic(folder / "records.csv", records)
    write_atomic(folder / "curves.csv", curves)
    write_atomic(folder / "experiment.json", to_json({**results.meta, "sha256": sha256}))


def publish_measures(measures: pd.DataFrame, directions: pd.DataFrame, folder: Path) -> None:
    """Write measures.csv and directions.csv beside what `publish` wrote, each whole or not at all.

    Raises:
        BenchError: there is no experiment.json.
        StorageError: the folder cannot be written.
    """
    meta = read_json(folder / "experiment.json")
    for name, frame in zip(MEASURED, (measures, directions), strict=True):
        content = frame.to_csv(index=False, lineterminator="\n")
        write_atomic(folder / name, content)
        meta["sha256"][name] = _sha256(content.encode())
    write_atomic(folder / "experiment.json", to_json(meta))


def files(folder: Path) -> list[str]:
    """The files that `read` reads, experiment.json first."""
    return ["experiment.json", *COLLECTED, *(name for name in MEASURED if (folder / name).exists())]


def read(folder: Path) -> Results:
    """Read what `publish` wrote.

    Raises:
        BenchError: nothing is there yet, or a file is not as it was written (edited by hand, cut short).
    """
    import pandas as pd

    if not (folder / "experiment.json").exists():
        raise BenchError(f"{folder} holds no results yet; `bench run` makes them")
    meta = read_json(folder / "experiment.json")
    frames = []
    for name in (*COLLECTED, *(name for name in MEASURED if (folder / name).exists())):
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BenchError(f"cannot read {path}: {error.strerror}") from error
        intact = _sha256(content) == meta["sha256"].get(name)
        try:
            frame = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), low_memory=False)
            fault = "" if intact else _first_fault(frame, meta["metric"]["key"])
        except ValueError as error:
            fault = str(error)
        if not intact:
            again = "delete it, and `bench measure" if name in MEASURED else "have it collected anew with `bench run"
            raise BenchError(
                f"{path} is not as it was written: {fault}. Records are collected from runs, never edited: "
                f"restore the file, or {again} {meta['name']}`"
            )
        frames.append(frame)
    del meta["sha256"]
    return Results(meta, *frames)


def _first_fault(frame: pd.DataFrame, metric: str) -> str:
    """Where a hand made itself felt, if it can be told."""
    for column in ("run_id", "optimizer", "seed"):
        if column not in frame:
            return f"column {column} is missing"
    if "status" in frame:
        for line, status in enumerate(frame["status"], start=2):
            if status not in STATUSES:
                return f"line {line}: status is {status!r}; {nearest(str(status), STATUSES)}"
    for column in frame.columns.intersection(["seed", *metric_columns(metric), *COSTS]):
        for line, value in enumerate(frame[column], start=2):
            try:
                float(value)
            except ValueError:
                return f"line {line}: {column} is {value!r}, not a number"
    return "its sha256 differs from the one in experiment.json"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
