"""The fork server starts before torch is imported by the launcher, and Ctrl-C never reaches it."""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.core.errors import BenchError
from bench.launch.local import server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The signals that were blocked at each start of a fork server; none is really started."""
    found: list[set[int]] = []

    def start() -> None:
        resource_tracker.ensure_running()  # as the real one does, which unblocks SIGINT where it has to start it
        found.append({int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])})

    monkeypatch.setattr(forkserver, "ensure_running", start)
    return found


def test_ctrl_c_is_blocked_in_the_server_and_not_in_the_launcher(started: list[set[int]]) -> None:
    server.start_fork_server()
    assert signal.SIGINT in started[0]
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize(("there", "starts"), [(False, 1), (True, 0)])
def test_it_starts_before_anything_is_planned_unless_perhaps_nothing_is_left_to_do(
    there: bool, starts: int, started: list[set[int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def plan(*_: object, **__: object) -> None:
        raise BenchError(f"started: {len(started)}")

    monkeypatch.setattr("bench.launch.run.plan", plan)
    if there:
        (tmp_path / "digits_noise").mkdir()
    done = CliRunner().invoke(cli, ["run", "digits_noise", "--out", str(tmp_path)])
    assert str(done.exception) == f"started: {starts}"
