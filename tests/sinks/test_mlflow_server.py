"""A run on MLflow's own server, asked by its REST API."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.core.errors import BenchError
from bench.sinks.sink import opened
from tests.sinks.conftest import logged
from tests.sinks.test_sinks import feeder

pytestmark = pytest.mark.slow


@pytest.fixture
def server(empty_store: Path, tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("flask", reason="needs Flask, on which MLflow's server runs")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    command = [sys.executable, "-W", "ignore", "-m", "tests.sinks.mlflow_server", str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.kill()


def ask(server: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def test_a_server_shows_runs_curves_and_files(server: str, tmp_path: Path) -> None:
    assert server.startswith("http://127.0.0.1:")
    sink = opened([f"mlflow={server}"], tmp_path)[0]
    feed = feeder(sink)
    feed.send(logged(2), over=False)
    (place,) = [
        one["experiment_id"]
        for one in ask(server, "experiments/search", max_results=10)["experiments"]
        if one["name"] == "tiny"
    ]
    (run,) = ask(server, "runs/search", experiment_ids=[place])["runs"]
    assert run["info"]["status"] == "RUNNING"
    feed.send(logged(3, "done"), over=True)
    (tmp_path / "report.html").write_text("<p>all of it")
    sink.add_files("tiny", {"report.html": tmp_path / "report.html"})
    runs = ask(server, "runs/search", experiment_ids=[place], filter="tags.optimizer = 'sam/m'")["runs"]
    assert [one["info"]["status"] for one in runs] == ["FINISHED"]
    data = {kind: {one["key"]: one["value"] for one in runs[0]["data"][kind]} for kind in ("params", "tags", "metrics")}
    assert data["params"]["rho"] == "0.05"
    assert (data["tags"]["seed"], data["tags"]["device"], data["tags"]["status"]) == ("3", "a CPU", "done")
    assert data["metrics"]["selected_epoch"] == 2
    history = f"metrics/get-history?run_id={runs[0]['info']['run_id']}&metric_key=lr"
    with urllib.request.urlopen(f"{server}/api/2.0/mlflow/{history}", timeout=600) as answer:
        assert sorted(one["step"] for one in json.load(answer)["metrics"]) == [1, 2, 3]
    assert [path.read_text() for path in (tmp_path / "artifacts").rglob("report.html")] == ["<p>all of it"]


def test_a_server_that_is_not_there_is_one_line(empty_store: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"^mlflow=http://127.0.0.1:9: ") as error:
        opened(["mlflow=http://127.0.0.1:9"], tmp_path)
    assert "\n" not in str(error.value)
