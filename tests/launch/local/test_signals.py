"""Signals that stop a launch: a burst of them is one, and none disturbs the end."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.launch.local import signals
from bench.launch.local.signals import Interrupts
from tests.launch.local.site import Site
from tests.prefork import HANGS


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0
    slept = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep))
    return clock


def test_signals_within_a_second_are_one_and_a_later_one_counts(clock: Clock) -> None:
    with Interrupts():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        clock.now += 0.02
        signal.raise_signal(signal.SIGTERM)
        clock.now += 0.9
        signal.raise_signal(signal.SIGINT)
        clock.now += 0.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_after_close_none_counts_and_the_rest_of_a_burst_is_waited_for(clock: Clock) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        interrupts.close()
        clock.now += 0.25
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert clock.slept == 0.75
    assert signal.getsignal(signal.SIGTERM) is before
    clock.slept = 0.0
    with Interrupts():
        pass
    assert clock.slept == 0.0  # nothing came: nothing is waited for


class Freed:
    """Something that a signal comes upon while Python frees it: what is raised there goes no further."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_dropped_counts_at_the_next_look(clock: Clock) -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        Freed()
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.heard()
        interrupts.check()


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_three_signals_within_60_ms_have_a_launch_save_and_stop(tmp_path: Path) -> None:
    """As wrappers and containers send them, here to all processes of the launch; only the stop saves anything."""
    site = Site(tmp_path)
    toml = tmp_path / "touchy.toml"
    toml.write_text(toml.read_text().replace("epochs = 24", "epochs = 2000"))
    process = site.start("--checkpoint-minutes", "60")
    site.wait_for("runs/*/curve.jsonl", count=2)
    pause = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
        pause.wait(0.02)
    output, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 130, output
    assert "Stopped. Run the same command again to continue." in output
    assert "Traceback" not in output
    assert len(list((tmp_path / "results").glob("*/runs/*/checkpoint.pt"))) == 2
    assert not list((tmp_path / "results").rglob("*.tmp"))
