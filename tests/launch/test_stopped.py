"""What a launch prints once it is stopped: little, before anything has come of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.launch import run as launch
from bench.launch.outcome import Outcome

Bench = Callable[..., Any]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch is stopped by Ctrl-C before a worker has started."""

    def run_local(*arguments: Any, **settings: Any) -> Outcome:
        return Outcome(interrupted=True)

    monkeypatch.setattr(launch, "run_local", run_local)


@pytest.mark.usefixtures("stopped")
def test_stopped_before_any_run_has_ended_it_says_so_and_no_more(bench: Bench, tmp_path: Path) -> None:
    said = bench("run", "digits_noise", "--out", tmp_path)
    assert said.status == 130
    assert said.out == ""
    assert said.err.splitlines()[1:] == ["Stopped. Run the same command again to continue."]


@pytest.mark.usefixtures("stopped", "without_report")
def test_stopped_after_a_run_has_ended_it_shows_the_tables(bench: Bench, tmp_path: Path) -> None:
    planned = launch.plan("digits_noise", out=tmp_path)
    folder = planned.store.run(planned.ids[0])
    folder.path.mkdir(parents=True)
    (folder.path / "error.txt").write_text("OSError: no space\n")
    said = bench("run", "digits_noise", "--out", tmp_path)
    assert "sgd (lr=0.003)" in said.out
    assert "Stopped. Run the same command again to continue." in said.err
