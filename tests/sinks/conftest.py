"""A run as a sink sees it while it goes on, and sinks whose tools are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.sinks.run import LoggedRun
from bench.sinks.sink import Sink, opened
from tests.sinks.read_back import KILLED, Shown, needs, read

SETTINGS = {"lr": 0.1, "rho": 0.05, "method": "sam", "base": "sgd", "epochs": 4, "deterministic": False}
ABOUT = {"experiment": "tiny", "task": "digits", "model": "mlp", "optimizer": "sam/m", "config": "rho=0.05", "seed": 3}


def logged(done: int = 0, status: str = "running", run_id: str = "0123456789ab", **about: Any) -> LoggedRun:
    """A run of which so many epochs are over."""
    curve = [
        {"epoch": epoch, "passes": 10 * epoch, "train_seconds": 0.5 * epoch, "lr": 0.1, "val_acc": 0.2 * epoch}
        for epoch in range(1, done + 1)
    ]
    ended = status in ("done", "diverged", "failed")
    final = (
        {"val_acc": 0.2 * done, "selected_epoch": 2, "train_seconds": 0.5 * done, "eval_seconds": 0.25} if ended else {}
    )
    environment = {"device": "a CPU", "torch": "2.13.0", "finished_at": "2026-01-01T10:00:00+00:00"} if ended else {}
    return LoggedRun(run_id, {**ABOUT, **about}, SETTINGS, environment, curve, final, status)


@pytest.fixture(params=["tensorboard", "mlflow", "wandb"])
def tool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each sink in turn, as a user has it who has neither logged in nor named a server."""
    name = str(request.param)
    needs(name)
    for variable in [variable for variable in os.environ if variable.startswith(("WANDB_", "MLFLOW_TRACKING"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", os.devnull)
    return name


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's file without runs: to make one takes seconds."""
    needs("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    opened(["mlflow"], folder)
    return folder / "logs" / "mlflow.db"


@pytest.fixture
def results(tool: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of all results, in which the sink has not been used yet."""
    folder = tmp_path / "results"
    (folder / "logs").mkdir(parents=True)
    if tool == "mlflow":
        shutil.copy(request.getfixturevalue("empty_store"), folder / "logs" / "mlflow.db")
    return folder


@pytest.fixture
def launch(tool: str, results: Path) -> Iterator[Callable[[], Sink]]:
    """launch(): the sink as a new launch opens it, whatever became of the one before."""
    sinks: list[Sink] = []

    def end() -> None:
        if tool == "wandb":
            import wandb

            wandb.teardown(KILLED)  # whose service keeps runs that are not finished for itself

    def open_it() -> Sink:
        end()
        sinks.extend(opened([tool], results))
        return sinks[-1]

    yield open_it
    for file in [file for sink in sinks for file in getattr(sink, "files", {}).values()]:
        file.close()
    end()


@pytest.fixture
def shown(tool: str, results: Path) -> Callable[[], dict[str, Shown]]:
    """shown(): what the tool's own reader finds."""

    def look() -> dict[str, Shown]:
        if tool == "wandb":
            import wandb

            wandb.teardown(KILLED)  # its service, which writes files from time to time only
        return read(tool, results / "logs")

    return look
