"""Weights & Biases: a run per run, grouped by optimizer; in its offline mode unless the user has logged in."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Read by wandb when it is imported; the user's own values count.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb

from bench.sinks.run import ENDED, LoggedRun, Point
from bench.sinks.sink import COMPLETE, Sink, check_writable
from bench.store.run_folder import FINISHED, write_atomic


class WandB(Sink):
    """A project named as the experiment, or WHERE: "PROJECT", "TEAM/PROJECT"; tables and figures are an artifact."""

    def __init__(self, where: str | None, folder: Path) -> None:
        self.folder, self.where = folder / "wandb", where
        check_writable(self.folder)
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder.resolve()))
        # Without a login nothing leaves this machine until the user calls `wandb sync`.
        self.mode: Any = os.environ.get("WANDB_MODE")
        self.mode = self.mode or ("online" if wandb.login(prompt=False, verify=False) else "offline")
        self.address = f"wandb ({self.mode}), with files in {self.folder}"
        self.runs: dict[str, wandb.Run] = {}

    def begin(self, run: LoggedRun) -> float:
        if self._ended(run).exists():
            return COMPLETE
        kind, group = run.about.get("phase", "run"), run.about["optimizer"]
        there = self._run(run.about["experiment"], run.run_id, name=run.name, group=group, job_type=kind)
        there.config.update({**run.settings, **run.about}, allow_val_change=True)  # type: ignore[no-untyped-call]
        self.runs[run.run_id] = there
        # The step that comes next, which a server knows; offline the run is written anew.
        return max(0, there.step - 1)

    def add(self, run: LoggedRun, points: Sequence[Point]) -> None:
        for point in points:
            self.runs[run.run_id].log(dict(point), step=int(point["epoch"]), commit=True)

    def end(self, run: LoggedRun) -> None:
        there = self.runs.pop(run.run_id)
        there.summary.update({**run.final, "status": run.status})
        there.config.update({"environment": dict(run.environment)}, allow_val_change=True)  # type: ignore[no-untyped-call]
        if run.status not in ENDED:
            there.mark_preempting()
        there.finish(exit_code=int(run.status not in FINISHED))
        if run.status in FINISHED:
            write_atomic(self._ended(run), "")

    def add_files(self, experiment: str, files: Mapping[str, Path]) -> None:
        artifact = wandb.Artifact("results", type="results")
        for name, path in files.items():
            artifact.add_file(str(path), name)
        with self._run(experiment, "results", name="results", job_type="results") as there:
            there.log_artifact(artifact)
            there.log({name: wandb.Image(str(path)) for name, path in files.items() if path.suffix == ".png"})

    def _ended(self, run: LoggedRun) -> Path:
        """Return the file that says that a run is complete, since offline nobody can be asked."""
        return Path(self.folder, run.about["experiment"], "ended", run.run_id)

    def _run(self, experiment: str, run_id: str, **settings: Any) -> wandb.Run:
        if self.mode == "offline":
            # What wandb had not written when it was killed is lost: without these folders everything is sent again.
            for old in (self.folder / experiment).glob(f"wandb/offline-run-*-{run_id}"):
                shutil.rmtree(old)
        entity, _, project = (self.where or re.sub(r"[/\\#?%:]", "-", experiment)).rpartition("/")
        quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
        (self.folder / experiment).mkdir(exist_ok=True)
        place = {"entity": entity or None, "project": project, "dir": str(self.folder / experiment), "mode": self.mode}
        return wandb.init(id=run_id, resume="allow", reinit="create_new", settings=quiet, **place, **settings)


SINK = WandB
