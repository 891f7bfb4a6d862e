"""MLflow: a run per run, on a server or in an SQLite file that needs no network."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

# Read by MLflow when it is imported; the user's own values count.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a line or two per run

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from bench.sinks.run import LoggedRun, Point
from bench.sinks.sink import COMPLETE, Sink

MOST = 1000
"""Metrics that MLflow takes at once."""


class MLflow(Sink):
    """An experiment of the same name, whose runs have the tag run_id; tables and figures are its run "results"."""

    def __init__(self, where: str | None, folder: Path) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self.address = where or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve()}/mlflow.db"
        self.artifacts = None
        if self.address.startswith("sqlite:///"):
            file = Path(self.address.removeprefix("sqlite:///"))
            file.parent.mkdir(parents=True, exist_ok=True)
            # MLflow itself tries for minutes to open what cannot be opened.
            sqlite3.connect(file).execute("pragma schema_version")
            self.artifacts = (file.resolve().parent / "mlflow-artifacts").as_uri()
        self.client, self.ids = MlflowClient(self.address), dict[str, str]()
        self.client.search_experiments(max_results=1)

    def begin(self, run: LoggedRun) -> float:
        there = self._run(run.about["experiment"], run.run_id, run.name, run.seconds())
        if there.info.status == "FINISHED":
            return COMPLETE
        self.ids[run.run_id] = there.info.run_id
        self.client.update_run(there.info.run_id, "RUNNING")
        params = [Param(name, str(value)) for name, value in run.settings.items()]
        self.client.log_batch(there.info.run_id, params=params, tags=_tags(run.about))
        return float(there.data.metrics.get("epoch", 0))

    def add(self, run: LoggedRun, points: Sequence[Point]) -> None:
        metrics = [
            Metric(name, value, round(1000 * run.seconds(point)), int(point["epoch"]))
            for point in points
            for name, value in point.items()
        ]
        for first in range(0, len(metrics), MOST):
            self.client.log_batch(self.ids[run.run_id], metrics[first : first + MOST])

    def end(self, run: LoggedRun) -> None:
        run_id, status = self.ids[run.run_id], {"done": "FINISHED", "diverged": "FINISHED", "failed": "FAILED"}
        if run.final and run.curve:
            self.add(run, [{**run.final, "epoch": run.curve[-1]["epoch"]}])
        self.client.log_batch(run_id, tags=_tags({"status": run.status, **run.environment}))
        self.client.set_terminated(run_id, status.get(run.status, "KILLED"), round(1000 * run.seconds()))

    def add_files(self, experiment: str, files: Mapping[str, Path]) -> None:
        run_id = self._run(experiment, "results", "results").info.run_id
        for name, path in files.items():
            self.client.log_artifact(run_id, str(path), None if name == path.name else str(Path(name).parent))
        self.client.set_terminated(run_id)

    def _run(self, experiment: str, run_id: str, name: str, seconds: float | None = None) -> Run:
        """Return the run of MLflow that has the tag run_id, a new one if there is none."""
        known = self.client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self.client.create_experiment(experiment, self.artifacts)
        there = self.client.search_runs([where], f"tags.run_id = '{run_id}'", max_results=1)
        start = None if seconds is None else round(1000 * seconds)
        return there[0] if there else self.client.create_run(where, start, {"run_id": run_id}, name)


def _tags(row: Mapping[str, object]) -> list[RunTag]:
    return [RunTag(name, str(value)) for name, value in row.items()]


SINK = MLflow
