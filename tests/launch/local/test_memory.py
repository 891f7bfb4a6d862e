"""Memory that is short: told from other failures, tried once more alone, and then a failure that says so."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import BenchError
from bench.launch.local.memory import out_of_memory
from tests import prefork

pytestmark = pytest.mark.slow

PLUGIN = '''
"""An MLP; of width 64 one that finds no memory as long as another run of the sweep is at work, or never does."""
import inspect, json, os, time
from pathlib import Path
import torch
from bench import register_model
from bench.models.mlp import mlp

HERE = Path(os.environ["HUNGRY"])

def others() -> list[str]:
    found = [path.read_text() for path in HERE.glob("results/*/runs/*/lock")]
    return [text for text in found if text and json.loads(text)["pid"] != os.getpid()]

def note(what: str) -> None:
    with open(HERE / "notes", "a") as file:
        file.write(json.dumps([what, os.getpid(), len(others())]) + "\\n")

@register_model("hungry")
def hungry(task, *, width: int = 8):
    model = mlp(task, width=width, depth=1, dropout=0.1)
    if width != 64 or any(frame.function == "measure_speed" for frame in inspect.stack()):
        return model
    first = not (HERE / "notes").exists()
    for _ in range(1000 * first):
        if others():
            break
        time.sleep(0.02)
    note("born")
    if others() or (HERE / "never").exists():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\\nGPU 0 has ...")
    model.register_forward_hook(lambda module, inputs, outputs: note("step") if module.training else None)
    return model
'''
TOML = """
task = "digits"
model = "hungry"
plugins = ["hungry.py"]
baseline = "sgd"
seeds = 1
[vary]
model.width = [64, 8, 9, 10, 11]
[train]
epochs = 12
batch_size = 64
[optimizers.sgd]
lr = 0.01
"""


def sweep(path: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "bench", "run", "hungry.toml", "--jobs", "2", *options]
    environment = os.environ | {"HUNGRY": str(path), "COLUMNS": "120", prefork.WITHOUT_REPORT: "yes"}
    done = prefork.run(command, cwd=path, env=environment)
    return done.returncode, done.stderr


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "hungry.py").write_text(PLUGIN)
    (tmp_path / "hungry.toml").write_text(TOML)
    return tmp_path


def notes(site: Path) -> list[tuple[str, int, int]]:
    """What the hungry run saw: "born" or "step", its process, how many other runs were at work."""
    return [tuple(json.loads(line)) for line in (site / "notes").read_text().splitlines()]


def test_a_run_out_of_memory_is_done_once_more_alone_in_a_new_process(site: Path) -> None:
    status, output = sweep(site)
    assert status == 0, output
    message = (
        r"width=64 sgd seed 0: out of memory: CUDA out of memory\. Tried .* GiB\.; "
        r"retrying once, alone on this\s+machine"
    )
    assert re.search(message, output), output
    assert "FAILED" not in output
    (first, old, crowd), (second, new, nobody), *steps = notes(site)
    assert (first, second) == ("born", "born")
    assert (crowd, nobody) == (1, 0)
    assert old != new
    assert len(steps) > 100
    assert {others for _, _, others in steps} == {0}, "another run was at work beside it"
    assert len(list(site.glob("results/*/runs/*/result.json"))) == 5
    assert not list(site.glob("results/*/runs/*/error.txt"))


def test_a_run_that_memory_is_short_for_even_alone_has_failed_and_says_so(site: Path) -> None:
    (site / "never").touch()
    status, output = sweep(site)
    assert status == 1
    reason = "out of memory: CUDA out of memory. Tried to allocate 20.00 GiB."
    assert f"FAILED: {reason}" in output
    assert [others for _, _, others in notes(site)] == [1, 0], "it was tried twice, once alone"
    (error,) = site.glob("results/*/runs/*/error.txt")
    first, *rest = error.read_text().splitlines()
    assert first == reason
    assert "Traceback (most recent call last):" in rest
    assert len(list(site.glob("results/*/runs/*/result.json"))) == 4
    assert f"failed,{reason}" in (site / "results" / "hungry" / "records.csv").read_text()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "out of memory: CUDA out of memory. Tried"),
        (MemoryError(), "out of memory: MemoryError"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: [enf"),
        (RuntimeError("CUDA error: out of memory"), "out of memory: CUDA"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory: [Errno 12]"),
        (RuntimeError("shapes cannot be multiplied"), None),
        (OSError(errno.ENOSPC, "No space left on device"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_what_says_that_memory_was_short(error: Exception, line: str | None) -> None:
    assert (out_of_memory(error) or "").startswith(line or "")
    assert (out_of_memory(error) is None) == (line is None)


def test_an_error_raised_from_one_of_memory_is_one() -> None:
    outer: Any = BenchError("the model cannot be compiled")
    outer.__cause__ = MemoryError("no")
    assert out_of_memory(outer) == "out of memory: no"


def test_torch_itself_says_so_on_this_machine() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert "out of memory" in (out_of_memory(caught.value) or "")
