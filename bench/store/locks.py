"""Claims on runs: a system lock, and its holder's name in the lock file for hosts that do not see the lock.

On one machine `flock` is the truth: it is held as long as the process lives, and gone with it. Some shared file systems
do not carry it to other hosts; there the word of the lock file counts as long as its holder refreshes the file's time.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import BenchError
from bench.store.files import open_regular

BEAT = 20.0
"""Seconds between two signs of life of a holder."""
STALE = 120.0
"""Seconds without a sign of life after which a holder on another host counts as dead."""
FIRST_BEAT = 2.0
"""Seconds until a holder looks for the first time whether the claim is still its own."""

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Error codes of a file system without `flock`."""

LOOKS, LOOKS_AT_A_HOLDER = 100, 4
"""How often a taken lock is tried, 0.02 s apart: if the file names no living holder, and if it names one."""


class RunLocked(BenchError):
    """Another process works on this run right now."""


class RunLock:
    """A run that this process holds.

    Attributes:
        lost: another host took this claim for dead (this machine slept, or was cut off) and works on the run now.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self.lost = False
        self._content = content
        self._over = threading.Event()

    def beat(self) -> None:
        """Refresh the lock file's time for as long as the claim lasts and is ours."""
        pause = min(FIRST_BEAT, BEAT)
        while not self._over.wait(pause):
            pause = BEAT
            with suppress(OSError):  # a file server that is away for a moment, or a folder that was deleted
                # Another name in the file: a host that took this holder for dead has the run now.
                if self.path.read_bytes() != self._content:
                    self.lost = True
                    return
                os.utime(self.path)

    def end(self) -> None:
        self._over.set()


@contextmanager
def held(path: Path, device: str | None) -> Iterator[RunLock]:
    """Hold a lock file that names this process as its holder; the system releases the lock if this process dies.

    Args:
        path: the lock file; made if missing.
        device: where the work is done, for those who look.

    Raises:
        RunLocked: another process holds it, on this machine or on another.
        OSError: the file cannot be opened or written.
    """
    descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
    try:
        _take(descriptor, path)
        content = json.dumps(_myself(device)).encode() + b"\n"
        _write(descriptor, content)
        claim = RunLock(path, content)
        thread = threading.Thread(target=claim.beat, name="claim", daemon=True)
        thread.start()
        try:
            yield claim
        finally:
            claim.end()
            thread.join(timeout=5)  # it may be waiting for a file server
            if not claim.lost:
                with suppress(OSError):
                    _write(descriptor, b"")  # empty: other hosts see that the run is free
    finally:
        os.close(descriptor)


def holder(path: Path) -> dict[str, Any] | None:
    """Return the holder of a lock file: host, pid, device, started (seconds since 1970), slurm_job, and more; or None.

    A holder that has not written its name yet is `{}`.
    """
    try:
        descriptor = open_regular(path)
    except OSError:
        return None
    try:
        # Holders have an exclusive lock, so a shared one is refused exactly as long as one of them lives.
        lock = _lock(descriptor, fcntl.LOCK_SH)
        return _content(descriptor) or {} if lock == "taken" else _living(descriptor, path, lock)
    except OSError:
        return None
    finally:
        os.close(descriptor)


# ---- the lock ------------------------------------------------------------------------------------------------


def _take(descriptor: int, path: Path) -> None:
    for attempt in range(LOOKS):  # `holder` has the lock for an instant, longer where the machine is busy
        if (lock := _lock(descriptor, fcntl.LOCK_EX)) != "taken":
            break
        who = _content(descriptor)
        is_held = who is not None and "host" in who and (who.get("boot") != _boot() or _is_alive(who))
        if attempt == LOOKS - 1 or (is_held and attempt >= LOOKS_AT_A_HOLDER):
            raise _locked_by(path, who)
        time.sleep(0.02)
    if (other := _living(descriptor, path, lock)) is not None:
        raise _locked_by(path, other)


def _lock(descriptor: int, how: int) -> Literal["ours", "taken", "none here"]:
    """Try to take the system lock; on a file system without locks only the lock file's content counts."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return "taken"
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return "none here"
    return "ours"


def _locked_by(path: Path, who: dict[str, Any] | None) -> RunLocked:
    return RunLocked(f"run {path.parent.name} is being worked on by another process{in_words(who)}")


def in_words(who: dict[str, Any] | None) -> str:
    """Return a claim's holder as the end of a sentence: " (pid 4711 on node7, cuda:0)"."""
    if not who or "host" not in who:
        return ""
    device = f", {who['device']}" if who.get("device") else ""
    return f" (pid {who.get('pid')} on {who['host']}{device})"


# ---- the word of the lock file -------------------------------------------------------------------------------


def _living(descriptor: int, path: Path, lock: str) -> dict[str, Any] | None:
    """Return the holder named in a lock file that is free for us, if that holder, on another host, is still alive."""
    who = _content(descriptor)
    if who is None:
        return None
    # The same boot is the same machine: its own lock is the truth, unless this file system has no locks.
    if who.get("boot") == _boot():
        return who if lock == "none here" and _is_alive(who) else None
    job = os.environ.get("SLURM_JOB_ID")
    ours = {"slurm_job": job, "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME")}  # clusters count alike
    ours["slurm_task"] = os.environ.get("SLURM_PROCID", "0")
    if job and all(who.get(key) == value for key, value in ours.items()):
        return None  # this very job before it was requeued
    age = _time_there(path.parent) - os.fstat(descriptor).st_mtime
    return who if age < STALE else None


def _content(descriptor: int) -> dict[str, Any] | None:
    """Return the content of the lock file: None if it is empty, {} if it cannot be parsed (it is being written)."""
    content = os.pread(descriptor, 4096, 0)
    if not content.strip():
        return None
    try:
        who = json.loads(content)
    except ValueError:
        return {}
    return who if isinstance(who, dict) else {}


def _write(descriptor: int, content: bytes) -> None:
    """Write without leaving the file empty in between, which another host would take for a free run."""
    if content:
        os.pwrite(descriptor, content, 0)
    os.ftruncate(descriptor, len(content))


def _myself(device: str | None) -> dict[str, Any]:
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "boot": _boot(),
        "process": _process_start(os.getpid()),
        "device": device,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "slurm_cluster": os.environ.get("SLURM_CLUSTER_NAME"),
        "slurm_task": os.environ.get("SLURM_PROCID", "0"),
        "started": round(time.time(), 1),
    }


@functools.cache
def _boot() -> str:
    """Return an id unique to this boot of this machine's kernel, or the host's name if no such id can be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()


def _process_start(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks: a later process may have its number, but not this time."""
    try:
        # The program's name, in brackets, may hold spaces; the start time is the 20th field after it (proc(5)).
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_alive(who: dict[str, Any]) -> bool:
    started = _process_start(who.get("pid", 0))
    return started is not None and started == who.get("process")


# ---- the file server's clock ---------------------------------------------------------------------------------

_offsets: dict[int, tuple[float, float]] = {}
"""For every file system: when its clock was read, and by how much it is ahead of ours."""


def _time_there(folder: Path) -> float:
    """Return the time by the clock that stamps files in a folder, or by our clock if the folder is not writable."""
    place = os.stat(folder).st_dev
    read_at, offset = _offsets.get(place, (float("-inf"), 0.0))
    # The offset is measured at most once per beat, since measuring writes a file.
    if time.monotonic() - read_at > BEAT:
        with suppress(OSError):
            offset = _touch(folder) - time.time()
        _offsets[place] = time.monotonic(), offset
    return time.time() + offset


def _touch(folder: Path) -> float:
    probe = folder / f".clock.{os.getpid()}.tmp"
    try:
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
