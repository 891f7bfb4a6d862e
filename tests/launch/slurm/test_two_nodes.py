"""Runs of two processes on two nodes, by `bench run` and by hand: the bits of two processes on one machine."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.config.file import load
from bench.core.spec import RunSpec
from tests.launch.slurm.cluster import Cluster
from tests.launch.slurm.conftest import Queue, Site, pids_of, queue_of

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(bool(Cluster.missing()), reason=Cluster.missing() or "it is there"),
]


@pytest.fixture(scope="module")
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
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=1200, check=False
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


# ---- bench run ------------------------------------------------------------------------------------------------

TOML = """
task = "digits"
model = "touchy"
plugins = ["touchy.py"]
baseline = "sam"
seeds = 2
[train]
epochs = 6
batch_size = 128
processes = 2
[optimizers.sam]
base = "sgd"
lr = 0.05
rho = 0.1
"""
ON_BOTH = ("--nodes", "2", "--runs-per-job", "2")


@pytest.fixture
def queue(two_nodes: Cluster) -> Iterator[Queue]:
    yield from queue_of(two_nodes)


@pytest.fixture
def site(two_nodes: Cluster, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", two_nodes.environment, TOML)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that the runs end with in two processes of this machine."""
    site = Site(tmp_path_factory.mktemp("local") / "site", dict(os.environ), TOML)
    status, output = site.bench("run", "--jobs", "1")
    assert status == 0, output
    assert len(site.weights()) == 2
    return site.weights()


def ranks(site: Site) -> dict[str, int]:
    """The processes of runs that are at work, by the node that they are on."""
    found: dict[str, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode().split("\0")
            environment = (path / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if "bench.distributed" in command and any(str(site.path) in word for word in command):
            found |= {word.partition("=")[2]: int(path.name) for word in environment if "SLURMD_NODENAME=" in word}
    return found


def test_runs_over_two_nodes_end_with_the_bits_of_one_machine(
    site: Site, queue: Queue, undisturbed: dict[str, str]
) -> None:
    output = site.submit(*ON_BOTH, "--wait")
    assert "Submitted 2 runs in 1 job:" in output
    assert site.weights() == undisturbed
    (job,) = site.job_ids()
    assert queue.wait_until_over([job]) == ["COMPLETED"]  # its runs were over a moment before
    assert ranks(site) == {}
    assert "NodeList=n[1-2]" in queue.cluster.call("scontrol", "show", "job", job)
    assert "Job completed successfully" in next(site.results.glob("slurm/*/*_1_log.out")).read_text()


@pytest.mark.parametrize("how", ["preempted", "a node fails"])
def test_over_two_nodes_a_job_that_must_go_comes_back_and_goes_on(
    site: Site, queue: Queue, undisturbed: dict[str, str], how: str
) -> None:
    """Preempted, it is told before and saves; where a node fails, it goes on from what was saved before."""
    site.slow(True)
    site.submit(*ON_BOTH, *(() if how == "preempted" else ("--checkpoint-minutes", "0")))
    queue.wait_for(site.working)
    (job,) = site.job_ids()
    assert set(ranks(site)) == {"n1", "n2"}
    if how == "preempted":
        queue.preempt()
    else:
        queue.cluster.call("scontrol", "update", "nodename=n2", "state=down", "reason=test")
        queue.wait_for(lambda: queue.states([job]) == ["PENDING"])
        back = ["scontrol", "update", "nodename=n2", "state=resume"]
        queue.cluster.call(*back, check=False)  # it may be back by itself
    queue.wait_for(lambda: site.notes()[0]["starts"] == 2)
    site.slow(False)
    site.submit(*ON_BOTH, "--wait")
    assert site.weights() == undisturbed
    assert site.resumes() == 1
    assert site.job_ids() == [job]


def test_a_process_that_is_killed_on_the_other_node_is_named_and_the_run_can_be_repeated(
    site: Site, queue: Queue, undisturbed: dict[str, str]
) -> None:
    site.slow(True)
    site.submit(*ON_BOTH, "--seeds", "1")
    queue.wait_for(site.working)
    os.kill(ranks(site)["n2"], signal.SIGKILL)
    assert queue.wait_until_over(site.job_ids()) == ["FAILED"]
    assert "process 1 of the 2 of this run was killed by signal 9 (SIGKILL)" in site.bench("status", "--seeds", "1")[1]
    site.slow(False)
    site.submit(*ON_BOTH, "--seeds", "1", "--retry-failed", "--wait")
    assert site.weights().items() <= undisturbed.items()
    assert len(site.weights()) == 1


def test_a_node_that_is_lost_ends_the_job_on_both_and_the_next_launch_completes_it(
    site: Site, queue: Queue, undisturbed: dict[str, str]
) -> None:
    site.slow(True)
    for module in ("bench.launch.slurm.node", "bench.launch.slurm.node_helper"):  # of the first node, and the other one
        site.submit(*ON_BOTH, "--seeds", "1", "--checkpoint-minutes", "0")
        queue.wait_for(lambda: len(ranks(site)) == 2 and site.working())
        job = site.job_ids()[-1]
        for pid in pids_of(job, module):
            os.kill(pid, signal.SIGKILL)
        assert queue.wait_until_over([job]) == ["FAILED"]
        queue.wait_for(lambda: not ranks(site))
    site.slow(False)
    site.submit(*ON_BOTH, "--seeds", "1", "--wait")
    assert site.weights().items() <= undisturbed.items()
    assert (len(site.weights()), site.resumes()) == (1, 1)
