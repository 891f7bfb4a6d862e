"""A real one-machine SLURM for these tests, and sites: folders with an experiment and a copy of the package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.launch.slurm.queue import expanded
from tests.launch.slurm.cluster import Cluster
from tests.prefork import WITHOUT_REPORT, Popen

ROOT = Path(__file__).parents[3]

PLUGIN = '''
"""An MLP that is slow, or fails, as long as a file says so."""
import os, time
from pathlib import Path
from bench import register_model
from bench.models.mlp import mlp

@register_model("touchy")
def touchy(task, *, width: int = 16):
    here = Path(__file__).parent
    if (here / "raise").exists():
        raise RuntimeError("no good")
    model = mlp(task, width=width, depth=1, dropout=0.1)

    def wait(module, inputs):
        if (here / "slow").exists():
            time.sleep(0.1)
        while (here / "stuck").exists():
            time.sleep(1)

    model.register_forward_pre_hook(wait)
    return model
'''
TOML = """
task = "digits"
model = "touchy"
plugins = ["touchy.py"]
baseline = "sgd"
seeds = 3
[data]
label_noise = 0.2
[train]
epochs = 12
batch_size = 128
[optimizers.sgd]
lr = 0.05
[optimizers.sam]
base = "sgd"
lr = 0.05
rho = 0.1
"""
RUNS = 6


class Site:
    """A folder with an experiment and a copy of the package, and the `bench` command in it."""

    def __init__(self, path: Path, environment: dict[str, str], toml: str = TOML) -> None:
        self.path = path
        self.results = path / "results" / "touchy"
        path.mkdir(parents=True, exist_ok=True)
        (path / "touchy.py").write_text(PLUGIN)
        (path / "touchy.toml").write_text(toml)
        shutil.copytree(ROOT / "bench", path / "bench")
        own = {"PYTHONPATH": str(path), "XDG_CONFIG_HOME": str(path), "COLUMNS": "120"}
        self.environment = environment | own
        self.changed = False
        """Whether the copy is no longer the code of these tests."""

    def start(self, command: str, *options: str) -> subprocess.Popen[str]:
        """A command, which leaves out figures and page, unless the code is `changed`."""
        return Popen(
            [sys.executable, "-m", "bench", command, "touchy.toml", *options],
            same_code=not self.changed,
            cwd=self.path,
            env=self.environment | {WITHOUT_REPORT: "yes"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def bench(self, command: str, *options: str) -> tuple[int, str]:
        process = self.start(command, *options)
        try:
            output, _ = process.communicate(timeout=1200)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            raise AssertionError(f"bench {command} hangs: {output}") from None
        return process.returncode, output

    def change_code(self) -> None:
        with open(self.path / "bench" / "step.py", "a") as file:
            file.write("# changed\n")
        self.changed = True

    def submit(self, *options: str) -> str:
        """`bench run --on slurm`: what it says."""
        status, output = self.bench("run", "--on", "slurm", "--checkpoint-minutes", "10", *options)
        assert status == 0, output
        return output

    def weights(self) -> dict[str, str]:
        """The fingerprints of all finished runs, by run id."""
        results = [json.loads(path.read_text()) for path in self.results.glob("runs/*/result.json")]
        return {result["run_id"]: result["weights_sha256"] for result in results}

    def resumes(self) -> int:
        """How many runs went on from a checkpoint."""
        results = [json.loads(path.read_text()) for path in self.results.glob("runs/*/result.json")]
        return sum(result["resumes"] > 0 for result in results)

    def slow(self, on: bool) -> None:
        (self.path / "slow").touch() if on else (self.path / "slow").unlink(missing_ok=True)

    def working(self) -> bool:
        """Whether a run is at work and has finished an epoch."""
        return any(path.stat().st_size for path in self.results.glob("runs/*/curve.jsonl"))

    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.results.glob("slurm/*/job-*.json"))]

    def job_ids(self) -> list[str]:
        paths = sorted(self.results.glob("slurm/*/submission.json"))
        return [job for path in paths for job in json.loads(path.read_text())["job_ids"]]


class Queue:
    """The queue of the test's SLURM."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def states(self, job_ids: list[str]) -> list[str]:
        listed = self.cluster.call("squeue", "--array", "--noheader", "--states=all", "--format=%i|%T")
        lines = [line.split("|") for line in listed.splitlines()]
        states = {job: state for jobs, state in lines for job in expanded(jobs)}
        return [states.get(job) or states[job.partition("_")[0]] for job in job_ids]

    def wait_for(self, ready: Callable[[], object], seconds: float = 1200) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert time.monotonic() < deadline, self.cluster.call("squeue", "--array", "--states=all")
            time.sleep(0.1)

    def wait_until_over(self, job_ids: list[str]) -> list[str]:
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.wait_for(lambda: set(self.states(job_ids)) <= over)
        return self.states(job_ids)

    def preempt(self) -> None:
        """A job of high priority takes the whole machine for a second."""
        all_of_it = ["--exclusive", f"--nodes={len(self.cluster.nodes)}"]
        self.cluster.call("sbatch", "--partition=high", *all_of_it, "--output=/dev/null", "--wrap", "sleep 1")


def pids_of(job: str, module: str) -> list[int]:
    """Processes of a job that run a module."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().decode().split("\0")
            environment = (path / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        array, _, task = job.partition("_")
        ids = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"} if task else {f"SLURM_JOB_ID={array}"}
        if module in command and "python" in command[0] and ids <= set(environment):
            found.append(int(path.name))
    return found


def queue_of(cluster: Cluster) -> Iterator[Queue]:
    """The queue, for a test; empty again after it."""
    yield Queue(cluster)
    cluster.call("scancel", "--user=root")
    left = ["squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING"]
    Queue(cluster).wait_for(lambda: not cluster.call(*left).strip())


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := Cluster.missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # sockets lie in it: pytest's folders have too long names
    with Cluster(folder) as cluster:
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def queue(cluster: Cluster) -> Iterator[Queue]:
    yield from queue_of(cluster)


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    return Site(tmp_path / "site", cluster.environment)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The weights that all runs end with on this machine, without SLURM, on one thread each as in the jobs."""
    site = Site(tmp_path_factory.mktemp("local") / "site", dict(os.environ))
    status, output = site.bench("run", "--jobs", "2")
    assert status == 0, output
    assert len(site.weights()) == RUNS
    return site.weights()
