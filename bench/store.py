"""Run folders on disk: atomic writes, who works on what, and what is finished.

results/<experiment>/runs/<run_id>/
    spec.json           what was asked
    environment.json    versions, commit, hardware of every machine that worked on the run, in order
    curve.jsonl         one line an evaluated epoch
    checkpoint.pt       while the run is unfinished
    weights.safetensors the final weights, if `bench run --keep-weights` asked for them
    error.txt           if it failed: the traceback
    result.json         appears last and atomically: it *is* "done"
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from bench import claims
from bench.claims import Claim
from bench.claims import Claimed as Claimed
from bench.errors import BenchError

Status = Literal["done", "diverged", "failed", "running", "partial", "missing"]
FINISHED: tuple[Status, ...] = ("done", "diverged")
TAIL = 16_384
"""Bytes at the end of a curve in which its last line is looked for."""

KEEP_WEIGHTS = "BENCH_KEEP_WEIGHTS"
"""Set in the environment, where workers and their processes find it: runs leave their final weights in their folders.
It is no part of a run, since no number hangs on it."""

_NOTHING: Any = object()


class StorageError(BenchError):
    """The disk refused: full, read-only, not ours. Whatever was there before is untouched."""


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


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a lock file, made if missing, and hold it; the system lets go if this process dies.

    Raises:
        StorageError: its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")  # noqa: SIM115 - closed by the `with` below
    except OSError as error:
        raise storage_error(path, error) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


def read_json(path: Path, missing: Any = _NOTHING) -> Any:
    """The content of a JSON file that this package wrote.

    Args:
        missing: what is returned if there is no such file, where that is no fault.

    Raises:
        BenchError: the file cannot be read or is not whole.
    """
    try:
        with open(path, "rb") as file:
            return json.loads(file.read())
    except FileNotFoundError as error:
        if missing is not _NOTHING:
            return missing
        raise BenchError(f"{path} is missing") from error
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
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

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
        if self.holder() is not None:
            return "running"
        if self._error.exists():
            return "failed"
        return "partial" if self.checkpoint.exists() else "missing"

    def result(self) -> dict[str, Any] | None:
        """The content of result.json, None while the run is not finished."""
        absent: dict[str, Any] = {}
        result = read_json(self._result, missing=absent)
        if result is absent:
            return None
        if not isinstance(result, dict) or result.get("status") not in FINISHED:
            raise BenchError(f"{self._result} is not the result of a run; delete it to run this one again")
        if result.get("run_id") != self.run_id:
            raise BenchError(
                f"{self._result} belongs to run {result.get('run_id')}, not {self.run_id}; "
                "delete it to run this one again"
            )
        return result

    def environments(self) -> list[dict[str, Any]]:
        return list(read_json(self.path / "environment.json", missing=[]))

    def curve(self) -> list[dict[str, Any]]:
        """The evaluated epochs so far; a line cut short by a killed process does not count."""
        try:
            with open(self.path / "curve.jsonl", "rb") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        points = []
        for line in lines:
            try:
                points.append(json.loads(line))
            except ValueError:
                break
        return points

    def error(self) -> str | None:
        """The traceback of a failed run; its last line says what happened."""
        return self._error.read_text(errors="replace") if self._error.exists() else None

    def holder(self) -> dict[str, Any] | None:
        """Who works on the run: host, pid, device, slurm_job, started (seconds since 1970); None if nobody does."""
        return claims.holder(self.path / "lock")

    def last_point(self) -> dict[str, Any]:
        """The newest evaluated epoch, read from the end of the curve; {} if there is none yet."""
        try:
            with open(self.path / "curve.jsonl", "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                lines = file.read().splitlines()
        except OSError:
            return {}
        for line in reversed(lines):
            with suppress(ValueError):  # cut short: it is being written, or we began in the middle of it
                point = json.loads(line)
                return point if isinstance(point, dict) else {}
        return {}

    # ---- writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, device: str | None = None) -> Iterator[Claim]:
        """Hold the run, so that no other process works on it; the system lets go if this process dies.

        Args:
            device: where the work is done, for those who look.

        Raises:
            Claimed: another process holds it, on this machine or on another.
            StorageError: the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                claim = stack.enter_context(claims.held(self.path / "lock", device))
            except OSError as error:
                raise storage_error(self.path, error) from error
            for left_over in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                left_over.unlink(missing_ok=True)
            yield claim

    def write_start(self, spec_json: str, environment: dict[str, Any]) -> None:
        """Record what is asked and on which machine the work begins, or goes on."""
        environments = self.environments()
        if environment not in environments[-1:]:
            environments.append(environment)
        write_atomic(self.path / "spec.json", spec_json)
        write_atomic(self.path / "environment.json", to_json(environments))
        self._error.unlink(missing_ok=True)

    def write_curve(self, points: list[dict[str, Any]]) -> None:
        path = self.path / "curve.jsonl"
        if points or path.exists():  # a write to the disk takes milliseconds
            write_atomic(path, "".join(json.dumps(point) + "\n" for point in points))

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

    def present(self) -> set[str]:
        """The run_ids that have a folder: one look, where thousands may have none."""
        try:
            return set(os.listdir(self.folder / "runs"))
        except OSError:
            return set()

    def statuses(self, run_ids: Iterable[str]) -> Iterator[tuple[RunFolder, Status | BenchError]]:
        """Where each run stands, or what is wrong with it."""
        there = self.present()
        for run_id in run_ids:
            folder = self.run(run_id)
            try:
                yield folder, folder.status() if run_id in there else "missing"
            except BenchError as error:
                yield folder, error

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Held while records are collected and written, so that of two launches that end together the later one,
        which sees more, has the last word."""
        with locked(self.folder / "runs" / "lock"):
            self._tidy()
            yield

    def _tidy(self) -> None:
        """Remove what processes left that were killed between two steps of finishing a run, or of collecting."""
        for file in ("records.csv", "curves.csv", "experiment.json"):  # written under this lock only
            for left_over in self.folder.glob(f".{file}.*.tmp"):
                left_over.unlink(missing_ok=True)
        for left_over in self.folder.glob("runs/*/checkpoint.pt"):
            if left_over.with_name("result.json").exists():
                left_over.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Fail before any work starts if the folder cannot be written.

        Raises:
            StorageError: it cannot.
        """
        probe = self.folder / ".writable"
        write_atomic(probe, "")
        probe.unlink(missing_ok=True)


def live(folder: RunFolder, metric: str | None = None) -> dict[str, Any] | None:
    """What a run is doing now, for whoever watches from outside; None if nobody works on it.

    Args:
        metric: the key of the task's score ("acc", as in experiment.json).

    Returns:
        epochs_done: as of the last evaluation.
        epochs: of how many; None before the run has begun to set up.
        score: the validation score of that epoch; None before the first one.
        host, pid, device, slurm_job: who does it; None where unknown.
        since: when it was begun, or gone on with, in seconds since 1970.
    """
    holder = folder.holder()
    if holder is None:
        return None
    point = folder.last_point()
    spec = read_json(folder.path / "spec.json", missing={})
    return {
        "epochs_done": point.get("epoch", 0),
        "epochs": spec.get("train", {}).get("epochs"),
        "score": point.get(f"val_{metric}"),
        **{name: holder.get(name) for name in ("host", "pid", "device", "slurm_job")},
        "since": holder.get("started"),
    }
