"""One run in two processes on two nodes, started by srun: the numbers of two processes on one machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.experiment import load
from bench.spec import RunSpec
from tests.slurm.cluster import Cluster

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(Cluster.missing()), reason=Cluster.missing() or "it is there"),
]


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder), cpus=1, nodes=2) as cluster:
        yield cluster


def distributed(command: list[str], spec: RunSpec, place: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Do a run with `python -m bench.distributed`, started by a command; its result."""
    folder = place / spec.run_id
    folder.mkdir(parents=True)
    (place / "asked.json").write_text(spec.model_dump_json())
    arguments = [sys.executable, "-m", "bench.distributed", str(place / "asked.json"), str(folder), "--threads", "1"]
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.parametrize("m", [None, 32])
def test_two_nodes_give_what_two_processes_of_one_machine_do(
    two_nodes: Cluster, tmp_path: Path, write_experiment: Callable[..., Path], m: int | None
) -> None:
    sam = {"base": "sgd", "lr": 0.05, "rho": 0.1, **({"m": m} if m else {})}
    document = {
        "task": "digits",
        "model": {"name": "mlp", "width": 16},
        "baseline": "sam",
        "seeds": 1,
        "train": {"epochs": 2, "batch_size": 64, "processes": 2},
        "optimizers": {"sam": sam},
    }
    (planned,) = load(write_experiment(document)).runs
    alone = distributed([], planned.spec, tmp_path / "one", dict(os.environ))
    srun = ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=1"]
    environment = two_nodes.environment | {"MASTER_ADDR": "127.0.0.1"}
    together = distributed(srun, planned.spec, tmp_path / "two", environment)
    for name in ("weights_sha256", "metrics", "passes", "examples"):
        assert together[name] == alone[name], name
    jobs = two_nodes.call("squeue", "--states=all", "--noheader", "--format=%T %D")
    assert re.search(r"COMPLET(ED|ING) 2", jobs)
