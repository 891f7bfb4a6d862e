"""A sweep that is killed all the time, or has no room left, ends with the same bits as one that was left in peace."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.launch.local.site import Site, alive, workers_of
from tests.prefork import HANGS

pytestmark = pytest.mark.slow

KILLS = 20
LAUNCHERS = 0.25
"""Share of the kills that hit the launcher; each of those costs its start anew."""
LONG = ("--set", "train.epochs=60", "--retry-failed")
"""Work that outlasts the kills; a run whose worker is killed twice within one launch has failed."""


@pytest.fixture
def sites(tmp_path: Path) -> tuple[Site, Site]:
    """Two folders with the same experiment: one to be left in peace, one to be disturbed."""
    for name in ("peace", "war"):
        (tmp_path / name).mkdir()
    return Site(tmp_path / "peace"), Site(tmp_path / "war")


def results(site: Site) -> dict[Path, tuple[int, int]]:
    """Every result.json with what tells it from a later one of the same content."""
    found = {}
    for path in site.path.glob("results/*/runs/*/result.json"):
        about = path.stat()
        found[path] = (about.st_ino, about.st_mtime_ns)
    return found


def end_of(pids: list[int]) -> None:
    deadline = time.monotonic() + HANGS
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "workers outlived the launcher"
        time.sleep(0.02)


def disturb(process: subprocess.Popen[str], dice: random.Random, kills: int) -> int:
    """Kill workers of a launch, or it itself, at random moments: until it is dead, done, or `kills` were had."""
    killed = 0
    while killed < kills and process.poll() is None:
        workers = workers_of(process.pid)
        time.sleep(dice.uniform(0.0, 0.6) if workers else 0.02)
        if not workers:
            continue
        if dice.random() < LAUNCHERS:
            process.kill()
            process.communicate()
            end_of(workers)
            return killed + 1
        victim = dice.choice(workers)
        if alive(victim):
            os.kill(victim, signal.SIGKILL)
            killed += 1
    return killed


def test_a_sweep_killed_twenty_times_ends_with_the_bits_of_one_left_in_peace(sites: tuple[Site, Site]) -> None:
    peace, war = sites
    assert peace.run(*LONG)[0] == 0
    dice, killed, launches = random.Random(4), 0, 0
    finished: dict[Path, tuple[int, int]] = {}
    while True:
        process = war.start(*LONG)
        launches += 1
        killed += disturb(process, dice, KILLS - killed)
        output, _ = process.communicate(timeout=HANGS)
        now = results(war)
        assert finished.items() <= now.items(), "a finished run was done again"
        finished = now
        if process.returncode == 0:
            break
        assert process.returncode in (1, -signal.SIGKILL), output
        assert launches < 2 * KILLS
    assert killed == KILLS, "the sweep was over before it was killed often enough"
    assert launches > 1
    assert all_numbers(war) == all_numbers(peace)
    assert names(war) == names(peace), "something was left behind, or is missing"


def all_numbers(site: Site) -> dict[str, Any]:
    (site.results,) = (site.path / "results").iterdir()
    numbers = site.numbers()
    assert len(numbers) == 6
    return numbers


def names(site: Site) -> set[str]:
    return {str(path.relative_to(site.path)) for path in site.path.rglob("*") if path.name != "births"}


# ---- no room -------------------------------------------------------------------------------------------------


def test_room_that_runs_out_for_a_result_changes_no_number(sites: tuple[Site, Site]) -> None:
    """The kernel refuses files above a size, from the thirtieth step of a run on, as a full disk would. Of checkpoints
    see test_local.py."""
    peace, war = sites
    options = ("--seeds", "1", "--set", "train.eval_every=24", "--checkpoint-minutes", "5")
    assert peace.run(*options)[0] == 0
    (war.path / "full").write_text("750")  # between a curve of one point and a result
    status, output = war.run(*options)
    assert status == 1
    assert output.count("Error: cannot write") == 1
    assert "result.json: File too large" in output
    assert not results(war)
    (war.path / "full").unlink()
    status, output = war.run(*options)
    assert status == 0, output
    (war.results,) = (war.path / "results").iterdir()
    (peace.results,) = (peace.path / "results").iterdir()
    assert war.numbers() == peace.numbers()
    assert len(war.numbers()) == 2
    assert names(war) == names(peace)
