"""Run folders: whole files or none, one worker a run, and no belief in files that are not ours."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.core.errors import BenchError
from bench.store.run_folder import RunFolder, RunLocked, StorageError, Store, atomic_path, write_atomic


def folder_with(path: Path, **files: str) -> RunFolder:
    folder = RunFolder(path / "0123456789ab")
    folder.path.mkdir()
    for name, content in files.items():
        (folder.path / name.replace("_", ".")).write_text(content)
    return folder


def result(**changes: object) -> str:
    return json.dumps({"run_id": "0123456789ab", "status": "done", "metrics": {}} | changes)


# ---- writing -------------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"cannot write .*result\.json: No space left on device; free some space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_real_full_device_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "curve.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left on device"):
        folder.append_curve({"epoch": 1})


def test_a_file_size_limit_hit_in_a_checkpoint_keeps_the_old_one(tmp_path: Path) -> None:
    """The kernel itself refuses in the middle of torch's write, as a full disk does."""
    code = f"""
import resource, torch
from pathlib import Path
from bench.training import checkpoint
from bench.store.run_folder import RunFolder, StorageError
folder = RunFolder(Path({str(tmp_path)!r}))
state = dict.fromkeys(checkpoint.StateDict.__annotations__)
checkpoint.save(folder, state | {{"run_id": "old"}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, state | {{"run_id": "new", "model": torch.zeros(1_000_000)}})
except StorageError as error:
    print(error)
print(checkpoint.load(folder.checkpoint, "old")["run_id"], sorted(p.name for p in folder.path.iterdir()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message, state = done.stdout.strip().splitlines()
    assert message.startswith(f"cannot write {tmp_path}/checkpoint.pt: File too large")
    assert state == "old ['checkpoint.pt']"


def test_an_unwritable_results_folder_stops_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file in the way")
    with pytest.raises(StorageError, match="--out DIR"):
        Store(tmp_path / "results" / "x").check_writable()
    Store(tmp_path / "fine").check_writable()
    assert list((tmp_path / "fine").iterdir()) == []


# ---- reading -------------------------------------------------------------------------------------------------


def test_status_follows_what_is_on_disk(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0123456789ab")
    assert folder.status() == "missing"
    folder.path.mkdir()
    assert folder.status() == "missing"
    folder.checkpoint.write_text("")
    assert folder.status() == "partial"
    folder.write_error("Traceback ...\nValueError: no\n")
    assert folder.status() == "failed"
    with folder.claim():
        assert folder.status() == "running"
    (folder.path / "result.json").write_text(result(status="diverged"))
    assert folder.status() == "diverged"
    folder.write_result(json.loads(result()), [{"epoch": 1}])
    assert folder.status() == "done"
    assert not folder.checkpoint.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"run_id": "01234', r"result\.json is damaged .*; delete it"),
        ("", r"result\.json is damaged"),
        ("[]", "is not the result of a run"),
        (result(status="splendid"), "is not the result of a run"),
        (result(run_id="ffffffffffff"), "belongs to run ffffffffffff, not 0123456789ab"),
    ],
)
def test_a_truncated_or_foreign_result_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        folder_with(tmp_path, result_json=content).status()


def test_a_curve_cut_short_ends_before_the_cut(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, curve_jsonl='{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert folder.curve() == [{"epoch": 1}, {"epoch": 2}]


def test_every_environment_that_worked_on_a_run_is_kept_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0123456789ab")
    for host in ("a", "a", "b", "a"):
        folder.write_start("{}", {"host": host})
    assert [environment["host"] for environment in folder.environments()] == ["a", "b", "a"]


# ---- claiming ------------------------------------------------------------------------------------------------


def test_a_run_is_claimed_once_and_free_again_when_the_holder_dies(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0123456789ab")
    code = (
        "import sys, time; from pathlib import Path; from bench.store.run_folder import RunFolder\n"
        f"with RunFolder(Path({str(folder.path)!r})).claim():\n"
        "    print('held', flush=True); time.sleep(1200)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked), folder.claim():
            raise AssertionError("claimed twice")
    finally:
        holder.kill()
        holder.communicate()
    with folder.claim():
        assert folder.status() == "running"


def test_a_look_at_the_status_does_not_cost_a_worker_its_claim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0123456789ab")
    with folder.claim():
        pass
    with open(folder.path / "lock") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        import threading

        threading.Timer(0.3, lambda: fcntl.flock(looking, fcntl.LOCK_UN)).start()
        with folder.claim():  # waits as long as a look takes on a busy machine
            pass


def test_a_claim_sweeps_up_what_a_killed_process_left(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder.path / ".checkpoint.pt.4711.tmp").write_text("half")
    with folder.claim():
        assert [path.name for path in folder.path.iterdir()] == ["lock"]
