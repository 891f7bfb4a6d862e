"""A launch that is killed by force under its sinks: the same runs go on in every tool, with the same numbers."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.launch.local.site import RUNS, Site
from tests.prefork import HANGS
from tests.sinks.read_back import needs, read

pytestmark = pytest.mark.slow
EPOCHS = [*range(1, 25)]


def test_a_launch_killed_under_its_sinks_goes_on_in_each(tmp_path: Path, empty_store: Path) -> None:
    tools = ("tensorboard", "mlflow", "wandb")
    for name in tools:
        needs(name)
    (tmp_path / "plain").mkdir()
    (tmp_path / "logged").mkdir()
    plain, logged = Site(tmp_path / "plain"), Site(tmp_path / "logged")
    assert plain.run()[0] == 0
    (logged.path / "results" / "logs").mkdir(parents=True)
    shutil.copy(empty_store, logged.path / "results" / "logs" / "mlflow.db")
    keys = [name for name in logged.environment if name.startswith(("WANDB_", "MLFLOW_"))]
    logged.environment = {key: text for key, text in logged.environment.items() if key not in keys}
    logged.environment["NETRC"] = os.devnull
    options = [text for name in tools for text in ("--log", name)]
    process = logged.start(*options)
    logged.wait_for("runs/*/checkpoint.pt", count=2)
    deadline = time.monotonic() + HANGS
    while not [*logged.path.glob("results/logs/tensorboard/touchy/*/*/events.*")]:
        assert time.monotonic() < deadline, "nothing was logged while runs went on"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, output = logged.run(*options)
    assert status == 0, output
    assert "Not logged" not in output
    assert logged.numbers() == plain.numbers()
    for name in tools:
        shown = read(name, logged.path / "results" / "logs")
        assert {*shown} == {"results", *logged.numbers()}, name
        assert len(shown) == RUNS + 1
        for run_id, (_, curve) in logged.numbers().items():
            run = shown[run_id]
            assert (name, run.status) == (name, "done")
            assert [*dict(run.points["val_acc"])] == EPOCHS
            if name != "tensorboard":  # which has the last one once more, as all final metrics
                assert len(run.points["lr"]) == len(EPOCHS)
            assert dict(run.points["val_acc"]) == {
                point["epoch"]: pytest.approx(point["val_acc"], abs=1e-6) for point in curve
            }
