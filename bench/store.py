"""Run folders on disk: atomic writes, who works on what, and what is finished.

results/<experiment>/runs/<run_id>/
    spec.json           what was asked
    environment.json    versions, commit, hardware of every machine that worked on the run, in order
    curve.jsonl         one line an evaluated epoch
    checkpoint.pt       while the run is unfinished
    error.txt           if it failed: the traceback
    result.json         appears last and atomically: it *is* "done"
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from bench.errors import BenchError

Status = Literal["done", "diverged", "failed", "running", "partial", "missing"]
FINISHED: tuple[Status, ...] = ("done", "diverged")


class StorageError(BenchError):
    """The disk refused: full, read-only, not ours. Whatever was there before is untouched."""


class Claimed(BenchError):
    """Another process works on this run right now."""


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: beside its place, to the disk, then renamed over it.

    Raises:
        StorageError: the disk is full or refuses; the old file is as it was.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; on a clean exit it is renamed over `path`, else removed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        with suppress(OSError):  # gone already, if all went well
            temporary.unlink()


def storage_error(path: Path, error: OSError) -> StorageError:
    hint = {
        errno.ENOSPC: "free some space, then run the same command again: it goes on where it stopped",
        errno.EDQUOT: "free some of your quota, then run the same command again: it goes on where it stopped",
        errno.EACCES: "choose a folder you may write to with --out DIR",
        errno.EPERM: "choose a folder you may write to with --out DIR",
        errno.EROFS: "choose a folder you may write to with --out DIR",
        errno.EEXIST: "a file is where a folder should be; choose another place with --out DIR",
        errno.ENOTDIR: "a part of that path is a file, not a folder; choose another with --out DIR",
    }.get(error.errno or 0, "nothing was changed there")
    return StorageError(f"cannot write {path}: {error.strerror or error}; {hint}")


def read_json(path: Path) -> Any:
    """The content of a JSON file that this package wrote.

    Raises:
        BenchError: the file cannot be read or is not whole.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is damaged ({error}); delete it to have it made again") from error


def reason_in(error: str) -> str:
    """The line of error.txt that says what happened: the last of a traceback, the first of a message of ours."""
    lines = error.strip().split("\n")
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def to_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


class RunFolder:
    """One run's folder. Reading needs no claim; writing is the claim holder's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def _error(self) -> Path:
        return self.path / "error.txt"

    @property
    def _result(self) -> Path:
        return self.path / "result.json"

    # ---- reading ---------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where the run stands.

        Raises:
            BenchError: result.json is damaged or belongs to another run.
        """
        if result := self.result():
            status: Status = result["status"]
            return status
        if not self.path.is_dir():
            return "missing"
        if self._is_claimed():
            return "running"
        if self._error.exists():
            return "failed"
        return "partial" if self.checkpoint.exists() else "missing"

    def result(self) -> dict[str, Any] | None:
        """The content of result.json, None while the run is not finished."""
        if not self._result.exists():
            return None
        result = read_json(self._result)
        if not isinstance(result, dict) or result.get("status") not in FINISHED:
            raise BenchError(f"{self._result} is not the result of a run; delete it to run this one again")
        if result.get("run_id") != self.run_id:
            raise BenchError(
                f"{self._result} belongs to run {result.get('run_id')}, not {self.run_id}; "
                "delete it to run this one again"
            )
        return result

    def environments(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        return list(read_json(path)) if path.exists() else []

    def curve(self) -> list[dict[str, Any]]:
        """The evaluated epochs so far; a line cut short by a killed process does not count."""
        path = self.path / "curve.jsonl"
        if not path.exists():
            return []
        points = []
        for line in path.read_text().splitlines():
            try:
                points.append(json.loads(line))
            except ValueError:
                break
        return points

    def error(self) -> str | None:
        """The traceback of a failed run; its last line says what happened."""
        return self._error.read_text(errors="replace") if self._error.exists() else None

    # ---- writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run, so that no other process works on it; the system lets go if this process dies.

        Raises:
            Claimed: another process holds it.
            StorageError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / "lock", "w")  # noqa: SIM115 - closed by the `with` below
        except OSError as error:
            raise storage_error(self.path, error) from error
        with lock:
            for attempt in range(5):  # `status` holds the lock for an instant, to see whether it is free
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if attempt == 4:
                        raise Claimed(f"run {self.run_id} is being worked on by another process") from None
                    time.sleep(0.02)
            for left_over in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                left_over.unlink(missing_ok=True)
            yield

    def _is_claimed(self) -> bool:
        try:
            with open(self.path / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def write_start(self, spec_json: str, environment: dict[str, Any]) -> None:
        """Record what is asked and on which machine the work begins, or goes on."""
        environments = self.environments()
        if environment not in environments[-1:]:
            environments.append(environment)
        write_atomic(self.path / "spec.json", spec_json)
        write_atomic(self.path / "environment.json", to_json(environments))
        self._error.unlink(missing_ok=True)

    def write_curve(self, points: list[dict[str, Any]]) -> None:
        write_atomic(self.path / "curve.jsonl", "".join(json.dumps(point) + "\n" for point in points))

    def append_curve(self, point: dict[str, Any]) -> None:
        """Add a line for whoever watches; the checkpoint holds the curve that counts."""
        path = self.path / "curve.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(point) + "\n")
        except OSError as error:
            raise storage_error(path, error) from error

    def write_result(self, result: dict[str, Any], curve: list[dict[str, Any]]) -> None:
        """Finish the run: from here on it is done and never repeated."""
        self.write_curve(curve)
        write_atomic(self._result, to_json(result))
        self.checkpoint.unlink(missing_ok=True)

    def write_error(self, traceback: str) -> None:
        write_atomic(self._error, traceback)


class Store:
    """The folder of one experiment's results: the runs, and what is collected from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / run_id)

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Held while records are collected and written, so that of two launches that end together the later one,
        which sees more, has the last word."""
        path = self.folder / "runs" / "lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(path, "w")  # noqa: SIM115 - closed by the `with` below
        except OSError as error:
            raise storage_error(path, error) from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def check_writable(self) -> None:
        """Fail before any work starts if the folder cannot be written.

        Raises:
            StorageError: it cannot.
        """
        probe = self.folder / ".writable"
        write_atomic(probe, "")
        probe.unlink(missing_ok=True)
