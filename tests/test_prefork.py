"""A fork of the stem is what the command would be that it stands for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import conftest, prefork

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is forked")


def started(kind: type[subprocess.Popen[Any]], folder: Path, **options: Any) -> tuple[dict[str, Any], str, int]:
    """What a process of `tests.probe` found, what it wrote to stderr, and its status."""
    command = [sys.executable, "-m", "tests.probe", "one", "two words"]
    pipe = subprocess.PIPE
    options |= {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, "cwd": ROOT}
    with kind(command, env=os.environ | {"PROBE": str(folder)}, **options) as process:
        output, errors = process.communicate("some\nlines\n", timeout=prefork.HANGS)
    return json.loads(output), errors, process.returncode


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}], ids=["plain", "session"])
def test_a_fork_is_started_with_all_that_a_command_is(tmp_path: Path, options: dict[str, Any]) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        ordinary, fork = (started(kind, tmp_path, **options) for kind in (subprocess.Popen, prefork.Popen))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert fork == ordinary
    assert fork[1:] == ("to stderr\n", 7)
    assert fork[0]["leads a session"] is bool(options)
    assert signal.SIGUSR1 in fork[0]["blocked"]


def test_a_mistake_is_told_as_by_the_command_itself() -> None:
    command = [sys.executable, "-m", "bench", "lisst"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=prefork.HANGS)
    fork = prefork.run(command)
    assert (fork.returncode, fork.stdout, fork.stderr) == (done.returncode, done.stdout, done.stderr)
    assert fork.returncode == 2


def test_a_fork_is_a_child_of_the_test_and_dies_by_a_signal() -> None:
    with prefork.Popen([sys.executable, "-m", "tests.probe"], stdin=subprocess.PIPE) as process:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[1]) == os.getpid()
        process.kill()
        assert process.wait(timeout=prefork.HANGS) == -signal.SIGKILL


@pytest.mark.parametrize("kind", [subprocess.Popen, prefork.Popen])
def test_tests_that_are_started_deaf_to_ctrl_c_start_commands_that_hear_it(
    kind: type[subprocess.Popen[Any]], tmp_path: Path
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        conftest.pytest_configure()
        handlers = started(kind, tmp_path)[0]["handlers"]
    finally:
        signal.signal(signal.SIGINT, before)
    assert "default_int_handler" in handlers["SIGINT"]


@pytest.mark.parametrize(
    "given",
    [
        {"args": [sys.executable, "-c", "pass"]},
        {"args": [sys.executable, "-m", "torch.distributed.run"]},
        {"args": "python -m bench", "shell": True},
        {"preexec_fn": os.getpid},
        {"env": {"OMP_NUM_THREADS": "97"}},
        {"env": {"LD_PRELOAD": "/lib/another.so"}},
        {"env": {"PYTHONPATH": "/another/bench"}},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_depends_on_how_python_starts_is_not_forked(given: dict[str, Any]) -> None:
    usual = {"args": [sys.executable, "-m", "bench"], "preexec_fn": None, "shell": False, "close_fds": True}
    environment = prefork.STEM.environment
    assert prefork._can_fork(usual, environment | {"XDG_CACHE_HOME": "/elsewhere", "TOUCHY": "1"})
    assert not prefork._can_fork(usual | given, environment | given.get("env", {}))
