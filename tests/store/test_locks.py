"""Claims: one process a run, on one machine by the system's lock, across hosts by a lock file that is kept fresh."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.store import locks
from bench.store.run_folder import RunFolder, RunLocked, Store, live

HOLD = """
import sys, time
from pathlib import Path
from bench.store.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).claim("cuda:1"):
    print("held", flush=True)
    time.sleep(1200)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "runs" / "0123456789ab")


@pytest.fixture
def hold() -> Iterator[Callable[[RunFolder], subprocess.Popen[str]]]:
    """hold(folder): a process that holds the run for as long as it lives."""
    holders: list[subprocess.Popen[str]] = []

    def start(folder: RunFolder) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(folder.path)]
        holders.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout is not None
        assert holders[-1].stdout.readline() == "held\n"
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def forge(folder: RunFolder, age: float, **changes: Any) -> Path:
    """A lock file as another host left it, its last sign of life `age` seconds ago by the file system's clock."""
    lock = folder.path / "lock"
    folder.path.mkdir(parents=True, exist_ok=True)
    who = {"host": "node7", "pid": 4711, "boot": "another", "process": "1", "device": "cuda:0", "slurm_job": None}
    lock.write_text(json.dumps(who | {"slurm_task": "0", "started": 1e9} | changes))
    now = lock.stat().st_mtime
    os.utime(lock, (now - age, now - age))
    return lock


# ---- one machine ---------------------------------------------------------------------------------------------


def test_the_lock_file_says_who_holds_the_run_and_nothing_afterwards(folder: RunFolder) -> None:
    assert folder.holder() is None
    with folder.claim("cpu"):
        who = folder.holder()
        assert who is not None
        assert (who["host"], who["pid"], who["device"]) == (os.uname().nodename, os.getpid(), "cpu")
        assert abs(who["started"] - time.time()) < 1200
    assert folder.holder() is None
    assert (folder.path / "lock").read_text() == ""


def test_a_claim_of_this_machine_ends_with_its_process_however_fresh_its_word(folder: RunFolder, hold: Any) -> None:
    holder = hold(folder)
    assert folder.status() == "running"
    assert (folder.holder() or {})["pid"] == holder.pid
    with pytest.raises(RunLocked, match=rf"another process \(pid {holder.pid} on .*, cuda:1\)"), folder.claim():
        raise AssertionError("claimed twice")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (folder.path / "lock").read_text(), "its word is still there"
    assert folder.status() == "missing"
    with folder.claim():
        assert (folder.holder() or {})["pid"] == os.getpid()


def test_of_many_that_want_a_run_one_gets_it(folder: RunFolder) -> None:
    code = """
import sys, time
from pathlib import Path
from bench.store.run_folder import RunLocked, RunFolder
try:
    with RunFolder(Path(sys.argv[1])).claim():
        print("held", flush=True)
        sys.stdin.read()
except RunLocked:
    print("claimed", flush=True)
"""
    command = [sys.executable, "-c", code, str(folder.path)]
    many = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    words = [one.stdout.readline().strip() for one in many if one.stdout]
    for one in many:
        one.communicate()
    assert sorted(words) == ["claimed"] * 5 + ["held"]


# ---- other hosts, where the lock does not reach -------------------------------------------------------------


def test_a_live_claim_of_another_host_is_respected(folder: RunFolder) -> None:
    lock = forge(folder, age=60)
    before = lock.read_text()
    assert folder.status() == "running"
    with pytest.raises(RunLocked, match=r"pid 4711 on node7, cuda:0"), folder.claim():
        raise AssertionError("claimed twice")
    assert lock.read_text() == before
    assert sorted(path.name for path in folder.path.iterdir()) == ["lock"], "no probe of the clock is left"


def test_a_stale_claim_of_another_host_is_taken_over(folder: RunFolder) -> None:
    forge(folder, age=locks.STALE + 5)
    assert folder.status() == "missing"
    with folder.claim():
        assert (folder.holder() or {})["pid"] == os.getpid()


def test_ages_are_told_by_the_clock_of_the_file_system_not_by_ours(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_offsets", {})
    ours = time.time
    monkeypatch.setattr(locks.time, "time", lambda: ours() + 3600)  # type: ignore[attr-defined]
    forge(folder, age=60)
    assert folder.status() == "running"
    forge(folder, age=locks.STALE + 5)
    assert folder.status() == "missing"


def test_a_requeued_job_takes_its_claim_back_at_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    forge(folder, age=0, slurm_job="98")
    assert folder.status() == "running"
    forge(folder, age=0, slurm_job="99", slurm_task="3")  # a sibling on another node of the same job
    assert folder.status() == "running"
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "alpha")
    forge(folder, age=0, slurm_job="99", slurm_cluster="beta")  # another cluster's job of the same number
    assert folder.status() == "running"
    forge(folder, age=0, slurm_job="99", slurm_cluster="alpha")
    assert folder.status() == "missing"
    with folder.claim():
        assert (folder.holder() or {})["slurm_job"] == "99"


def test_a_lock_file_that_cannot_be_understood_counts_while_it_is_fresh(folder: RunFolder) -> None:
    lock = forge(folder, age=0)
    lock.write_text('{"host": "no')
    with pytest.raises(RunLocked), folder.claim():
        raise AssertionError("claimed twice")
    os.utime(lock, (1, 1))
    with folder.claim():
        pass


def test_a_holder_keeps_its_claim_fresh_and_notices_when_it_is_lost(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with folder.claim() as claim:
        lock = folder.path / "lock"
        os.utime(lock, (1, 1))
        wait_until(lambda: lock.stat().st_mtime > 1000)
        assert not claim.lost
        forge(folder, age=0)
        wait_until(lambda: claim.lost)
    assert "node7" in lock.read_text(), "the other's word was wiped out"


def test_where_the_file_system_has_no_locks_the_life_of_the_process_counts(
    folder: RunFolder, hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = hold(folder)

    def no_locks(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert folder.status() == "running"
    with pytest.raises(RunLocked), folder.claim():
        raise AssertionError("claimed twice")
    holder.kill()
    holder.wait()
    assert folder.status() == "missing"
    with folder.claim():
        pass


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 1200
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---- watching ------------------------------------------------------------------------------------------------


def test_a_run_is_watched_from_outside(folder: RunFolder, hold: Any) -> None:
    assert live(folder, "acc") is None
    holder = hold(folder)
    seen = live(folder, "acc")
    assert seen is not None
    assert (seen["epochs_done"], seen["epochs"], seen["score"]) == (0, None, None)
    assert (seen["host"], seen["pid"], seen["device"]) == (os.uname().nodename, holder.pid, "cuda:1")
    assert abs(seen["since"] - time.time()) < 1200
    folder.write_start(json.dumps({"train": {"epochs": 30}}), {})
    for epoch in range(1, 200):
        folder.append_curve({"epoch": epoch, "val_acc": epoch / 1000, "long": "x" * 200})
    with open(folder.path / "curve.jsonl", "a") as file:
        file.write('{"epoch": 200, "val_a')  # being written
    seen = live(folder, "acc")
    assert seen is not None
    assert (seen["epochs_done"], seen["epochs"], seen["score"]) == (199, 30, 0.199)


def test_the_status_of_many_runs_takes_one_look_at_their_folder(tmp_path: Path, monkeypatch: Any) -> None:
    store = Store(tmp_path)
    ids = [f"{number:012x}" for number in range(50)]
    (store.run(ids[7]).path).mkdir(parents=True)
    store.run(ids[7]).checkpoint.write_text("")
    store.run(ids[9]).path.mkdir()
    (store.run(ids[9]).path / "result.json").write_text("{")
    looked: list[str] = []
    status = RunFolder.status

    def look(folder: RunFolder) -> str:
        looked.append(folder.run_id)
        return status(folder)

    monkeypatch.setattr(RunFolder, "status", look)
    found = {folder.run_id: state for folder, state in store.statuses(ids)}
    assert looked == [ids[7], ids[9]]
    assert found[ids[7]] == "partial"
    assert "is damaged" in str(found[ids[9]])
    assert {found[run_id] for run_id in ids if run_id not in looked} == {"missing"}
