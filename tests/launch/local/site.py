"""A folder with an experiment of some seconds, and the `bench` command in it: for tests of launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.prefork import HANGS, WITHOUT_REPORT, Popen

PLUGIN = '''
"""An MLP that counts its births, and misbehaves on request."""
import inspect, os, resource, signal
from bench import register_model
from bench.models.mlp import mlp

@register_model("touchy")
def touchy(task, *, width: int = 16):
    folder = os.environ["TOUCHY"]
    if any(frame.function in ("measure_speed", "rehearse") for frame in inspect.stack()):
        if os.path.exists(os.path.join(folder, "die_measured")):
            os.kill(os.getpid(), signal.SIGKILL)
        return mlp(task, width=width, depth=1, dropout=0.1)
    with open(os.path.join(folder, "births"), "a") as file:
        file.write("born\\n")
    if os.path.exists(os.path.join(folder, "raise")):
        raise RuntimeError("no good\\nin two lines")
    if os.path.exists(os.path.join(folder, "die")):
        os.kill(os.getpid(), signal.SIGKILL)
    model = mlp(task, width=width, depth=1, dropout=0.1)
    if os.path.exists(os.path.join(folder, "full")):
        model.register_forward_hook(fill_the_disk)
    return model

def fill_the_disk(model, inputs, outputs, seen=[]):
    """After the run has begun, the kernel refuses every file that is larger than so many bytes."""
    seen.append(1)
    if len(seen) == 30:
        limit = int(open(os.path.join(os.environ["TOUCHY"], "full")).read())
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
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
epochs = 24
batch_size = 32
[optimizers.sgd]
lr = 0.05
[optimizers.sam]
base = "sgd"
lr = 0.05
rho = 0.1
"""
TIMES = {
    *("setup_seconds", "train_seconds", "train_cpu_seconds", "eval_seconds", "finished_at", "peak_memory_mb"),
    *("resumes", "curve_sha256"),
}
RUNS = 6


class Site:
    """A folder with an experiment, and the `bench` command in it."""

    def __init__(self, path: Path, batch_size: int = 32) -> None:
        """Write the experiment; large batches make it short, for tests that disturb no run."""
        self.path = path
        self.results = path / "results" / "touchy"
        (path / "touchy.py").write_text(PLUGIN)
        (path / "touchy.toml").write_text(TOML.replace("batch_size = 32", f"batch_size = {batch_size}"))
        self.environment = os.environ | {"TOUCHY": str(path), "COLUMNS": "120"}

    def start(self, *options: str, report: bool = False, **more: Any) -> subprocess.Popen[str]:
        """`bench run`; figures and page are left out, which take most of its time, unless a `report` is asked for."""
        command = [sys.executable, "-m", "bench", "run", "touchy.toml", "--jobs", "2", "--checkpoint-minutes", "0.001"]
        return Popen(
            [*command, *options],
            cwd=self.path,
            env=self.environment if report else self.environment | {WITHOUT_REPORT: "yes"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **more,
        )

    def run(self, *options: str, **more: Any) -> tuple[int, str]:
        process = self.start(*options, **more)
        output, _ = process.communicate(timeout=HANGS)
        return process.returncode, output

    def births(self) -> int:
        path = self.path / "births"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def numbers(self) -> dict[str, Any]:
        """What every finished run measured, without what the clock says."""
        found = {}
        for path in sorted((self.results / "runs").glob("*/result.json")):
            result = json.loads(path.read_text())
            curve = [json.loads(line) for line in (path.parent / "curve.jsonl").read_text().splitlines()]
            points = [{key: value for key, value in point.items() if key not in TIMES} for point in curve]
            found[path.parent.name] = ({key: value for key, value in result.items() if key not in TIMES}, points)
        return found

    def litter(self) -> list[Path]:
        return [path for path in self.results.rglob("*") if path.name.endswith(".tmp")]

    def wait_for(self, pattern: str, count: int = 1) -> None:
        deadline = time.monotonic() + HANGS
        while len(list(self.results.glob(pattern))) < count:
            assert time.monotonic() < deadline, f"no {count} of {pattern}"
            time.sleep(0.01)


def workers_of(launcher: int) -> list[int]:
    """Process ids of the workers: children of the launcher's fork server."""

    def children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    try:
        return [worker for child in children(launcher) for worker in children(child)]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
