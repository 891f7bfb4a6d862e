"""This checkout beside another one: `make perf BESIDE=PATH` prints what SAM's step costs in both, and whole commands.

Each round runs a command four times in the order A B B A, each time into a new folder, and gives two ratios. Processor
seconds count every process of a command; on a machine that others use, too, they say more than seconds on the wall.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from bench.core.errors import nearest  # noqa: E402 - after the path to it

SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl: orphans become children of this process, which then learns what they cost."""

TINY = """
task = "digits"
model = { name = "mlp", width = 8, depth = 1 }
baseline = "sgd"
seeds = 1
[train]
epochs = 1
batch_size = 256
[optimizers.sgd]
lr = 0.1
"""

COMMANDS = ("tiny", "quickstart", "cifar10_smoke", "glue_smoke")

STEPS = {"mlp-200": "200 layers of 16", "resnet18": "ResNet-18, batch 64"}
"""Cases of `sam_step.py`: one in which all is overhead, and one in which passes are."""


@dataclass(frozen=True)
class Cost:
    """What a command took, in seconds: on the wall, and of processors in all of its processes."""

    wall: float
    cpu: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--beside", type=Path, required=True, metavar="PATH", help="the other checkout")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of four runs (default: 1)")
    parser.add_argument("--with", dest="further", default="", metavar="OPTIONS", help='of `bench run`: "--jobs 1"')
    options = parser.parse_args(arguments)
    for name in options.commands:
        if name not in COMMANDS:
            parser.error(f"{name}: {nearest(name, COMMANDS)}")
    further = shlex.split(options.further)
    beside = options.beside.resolve()
    adopt_orphans()
    print(f"This checkout beside {beside}, whole commands, {options.rounds} x A B B A {options.further}".rstrip())
    if not options.commands:
        for case, title in STEPS.items():
            compare_steps(title, partial(step_of, case=case), beside, max(3, options.rounds))
    for name in options.commands or COMMANDS:
        compare(name, beside, options.rounds, partial(cost_of, name=name, further=further))


def compare(name: str, beside: Path, rounds: int, cost: Callable[[Path], Cost]) -> None:
    """Run a command of both checkouts in turn; print medians, and how many times as much the other one costs."""
    pairs: list[tuple[Cost, Cost]] = []
    for _ in range(rounds):
        first, second, third, fourth = (cost(root) for root in (ROOT, beside, beside, ROOT))
        pairs += [(first, second), (fourth, third)]
    print(f"{name}")
    for what in ("cpu", "wall"):
        ours, theirs = ([getattr(pair[side], what) for pair in pairs] for side in (0, 1))
        ratios = sorted(other / our for our, other in zip(ours, theirs, strict=True))
        middle, spread = statistics.median(ratios), f"[{ratios[0]:.3f}, {ratios[-1]:.3f}]"
        medians = f"{statistics.median(ours):9.2f} s, {statistics.median(theirs):9.2f} s there"
        print(f"  {what:<5} {medians}   x {middle:.3f}  {spread}", flush=True)


def compare_steps(title: str, measured: Callable[[Path], dict[str, float]], beside: Path, rounds: int) -> None:
    """Measure SAM's step of both checkouts in turn; print what it takes beside its passes, and its memory."""
    found: dict[Path, list[dict[str, float]]] = {ROOT: [], beside: []}
    for _ in range(rounds):
        for root in (ROOT, beside, beside, ROOT):
            found[root].append(measured(root))
    print(f"SAM's step beside its two passes, {title}")
    for root, ones in found.items():
        over = sorted(one["overhead"] for one in ones)
        copies = statistics.median(one["copies"] for one in ones)
        spread = f"[{over[0]:+.2f}, {over[-1]:+.2f}]"
        place = "here" if root == ROOT else "there"
        print(f"  {place:<6} {statistics.median(over):+7.2f} %  {spread}  {copies:.2f} copies", flush=True)


def step_of(root: Path, case: str) -> dict[str, float]:
    """Measure SAM's step of a checkout by this one's clockwork: per cent of two passes, copies of the parameters."""
    command = [str(python_of(root)), str(Path(__file__).with_name("one_step.py")), case]
    done = subprocess.run(
        command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{root}: a step of SAM failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def python_of(root: Path) -> Path:
    """Return the Python of a checkout: that of its .venv, or else this one."""
    python = root / ".venv" / "bin" / "python"
    return python if python.exists() else Path(sys.executable)


def cost_of(root: Path, name: str, further: Sequence[str]) -> Cost:
    """Run a command of a checkout into a new folder, and return what it took."""
    with tempfile.TemporaryDirectory() as place:
        tiny = Path(place) / "tiny.toml"
        tiny.write_text(TINY)
        experiment = {"tiny": str(tiny), "quickstart": "digits_noise"}.get(name, name)
        command = [str(python_of(root)), "-m", "bench", "run", experiment]
        before, started = processor_seconds(), time.perf_counter()
        done = subprocess.run([*command, "--out", place, *further], cwd=root, capture_output=True, text=True)
        wall = time.perf_counter() - started
        wait_for_orphans()
        if done.returncode:
            sys.exit(f"{root}: bench run {experiment} failed:\n{done.stderr}")
        return Cost(wall, processor_seconds() - before)


def adopt_orphans() -> None:
    """Make this process the parent of processes whose parent ends before them, where the system can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def wait_for_orphans() -> None:
    """Wait until no process is left that a command has started: the fork server, which outlives it by a moment."""
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def processor_seconds() -> float:
    """Return the processor seconds, user and system, of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
