"""Run folders on disk: atomic writes, who works on what, and what is finished.

results/<experiment>/runs/<run_id>/
    spec.json           what was asked
    environment.json    versions, commit, hardware of every machine that worked on the run, in order
    curve.jsonl         one line per evaluated epoch
    checkpoint.pt       while the run is unfinished
    checkpoint.before.pt  the one before it, for the case that it is damaged
    weights.safetensors the final weights, if `bench run --keep-weights` asked for them
    error.txt           if it failed: the traceback
    result.json         appears last and atomically: it *is* "done"
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from bench.core.errors import BenchError, clipped, shown
from bench.store import locks
from bench.store.files import StorageError as StorageError
from bench.store.files import atomic_path as atomic_path
from bench.store.files import locked as locked
from bench.store.files import open_regular, read_bytes
from bench.store.files import read_json as read_json
from bench.store.files import storage_error as storage_error
from bench.store.files import to_json as to_json
from bench.store.files import write_atomic as write_atomic
from bench.store.locks import RunLock
from bench.store.locks import RunLocked as RunLocked

Status = Literal["done", "diverged", "failed", "running", "partial", "missing"]
FINISHED: tuple[Status, ...] = ("done", "diverged")
TAIL = 16_384
"""Bytes at the end of a curve in which its last line is looked for."""


def reason_in(error: str) -> str:
    """Return the line of error.txt that gives the reason: the last of a traceback, the first of our own message."""
    lines = error.strip().split("\n")
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _number(value: Any) -> bool:
    """Return whether a value of a JSON file is a number in the range of a float, or null."""
    # `type(...) is int` leaves out true and false; an integer of 1024 bits or more fits no float.
    return value is None or isinstance(value, float) or (type(value) is int and value.bit_length() < 1024)


def _plain(value: Any) -> bool:
    return isinstance(value, str | bool) or _number(value)


def _point(line: bytes) -> dict[str, Any]:
    """Return the point that a line of a curve holds, or {} if the line is damaged."""
    try:
        point = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    whole = isinstance(point, dict) and type(point.get("epoch")) is int and all(map(_plain, point.values()))
    return point if whole else {}


def _lines(points: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(point) + "\n" for point in points)


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting for a reader at its other end."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


class RunFolder:
    """One run's folder. Reading needs no claim; writing is the claim holder's."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = path.name

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def checkpoint_before(self) -> Path:
        return self.path / "checkpoint.before.pt"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that are there, the newest first."""
        return [path for path in (self.checkpoint, self.checkpoint_before) if path.exists()]

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    @property
    def _curve(self) -> Path:
        return self.path / "curve.jsonl"

    @property
    def _error(self) -> Path:
        return self.path / "error.txt"

    @property
    def _result(self) -> Path:
        return self.path / "result.json"

    # ---- reading ---------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Return the run's status.

        Raises:
            BenchError: result.json is damaged or belongs to another run.
        """
        # result.json is asked first: it makes the run done, whatever else is left in the folder.
        if result := self.result():
            status: Status = result["status"]
            return status
        if not self.path.is_dir():
            return "missing"
        # Before error.txt and checkpoints, which an earlier attempt may have left.
        if self.holder() is not None:
            return "running"
        if self._error.exists():
            return "failed"
        return "partial" if self.checkpoints() else "missing"

    def result(self) -> dict[str, Any] | None:
        """Return the content of result.json, or None while the run is not finished."""
        # An object of its own tells a missing file from a file that holds {}.
        absent: dict[str, Any] = {}
        content = read_json(self._result, missing=absent, kind=object)
        if content is absent:
            return None
        result: dict[str, Any] = content if isinstance(content, dict) else {}
        metrics = result.get("metrics")
        if (
            result.get("status") not in FINISHED
            or not isinstance(metrics, dict)
            or not all(map(_number, metrics.values()))
        ):
            raise BenchError(f"{self._result} is not the result of a run; delete it to run this one again")
        if result.get("run_id") != self.run_id:
            raise BenchError(
                f"{self._result} belongs to run {clipped(str(result.get('run_id')))}, not {self.run_id}; "
                "delete it to run this one again"
            )
        return result

    def environments(self) -> list[dict[str, Any]]:
        """Return every machine that worked on the run, in order; [] if that is lost.

        Raises:
            BenchError: environment.json is damaged.
        """
        path = self.path / "environment.json"
        environments: list[dict[str, Any]] = read_json(path, missing=[], kind=list)
        if not all(isinstance(one, dict) and all(map(_plain, one.values())) for one in environments):
            raise BenchError(f"{path} is damaged (holds {shown(environments)}); delete it")
        return environments

    def curve(self) -> list[dict[str, Any]]:
        """Return the evaluated epochs so far; a line cut short by a killed process does not count."""
        points = map(_point, self._curve_content().splitlines())
        # Points after a damaged line are left out, so that the curve has no gap.
        return list(itertools.takewhile(bool, points))

    def whole_curve(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the evaluated epochs of a finished run.

        Args:
            result: the content of result.json.

        Raises:
            BenchError: the curve is not as it was when the run ended. Runs of earlier versions left no sha256 of the
                curve: theirs must reach the last epoch.
        """
        content = self._curve_content()
        points = [_point(line) for line in content.splitlines()]
        if "curve_sha256" in result:
            intact = hashlib.sha256(content).hexdigest() == result["curve_sha256"]
        else:
            last = points[-1].get("epoch") if points else None
            intact = result["status"] != "done" or last == result.get("epochs_done", last)
        if not intact or not all(points):
            raise BenchError(f"{self._curve} is damaged; delete {self.path} to do this run again")
        return points

    def _curve_content(self) -> bytes:
        try:
            return read_bytes(self._curve)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise BenchError(
                f"{self._curve} is damaged ({error.strerror}); delete {self.path} to do this run again"
            ) from error

    def error(self) -> str | None:
        """Return the traceback of a failed run, whose last line says what happened, or None without a traceback."""
        try:
            return read_bytes(self._error).decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self._error} cannot be read: {error.strerror}"

    def holder(self) -> dict[str, Any] | None:
        """Return who works on the run (host, pid, device, slurm_job, started in seconds since 1970), or None."""
        return locks.holder(self.path / "lock")

    def last_point(self) -> dict[str, Any]:
        """Return the newest evaluated epoch, read from the end of the curve; {} before the first evaluation."""
        try:
            with open(open_regular(self._curve), "rb") as file:
                size = file.seek(0, os.SEEK_END)
                # Only the end is read: the curve grows with the run, and observers ask again and again.
                file.seek(max(0, size - TAIL))
                lines = file.read().splitlines()
        except OSError:
            return {}
        # A line that is none was cut short: it is being written, or we began in the middle of it.
        return next(filter(None, map(_point, reversed(lines))), {})

    # ---- writing ---------------------------------------------------------------------------------------------

    @contextmanager
    def claim(self, device: str | None = None) -> Iterator[RunLock]:
        """Claim the run, so that no other process works on it; the system releases the claim if this process dies.

        Args:
            device: where the work is done, for those who look.

        Raises:
            RunLocked: another process holds it, on this machine or on another.
            StorageError: the folder cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                claim = stack.enter_context(locks.held(self.path / "lock", device))
            except OSError as error:
                raise storage_error(self.path, error) from error
            for left_over in self.path.glob(".*.tmp"):  # of a process that was killed while writing
                left_over.unlink(missing_ok=True)
            yield claim

    def write_start(self, spec_json: str, environment: dict[str, Any]) -> None:
        """Record the spec and the machine on which the work starts or resumes."""
        try:
            environments = self.environments()
        except BenchError:  # the run is more than the list of where it was done
            environments = []
        # A run that resumes on the same machine gets no second entry.
        if environment not in environments[-1:]:
            environments.append(environment)
        write_atomic(self.path / "spec.json", spec_json)
        write_atomic(self.path / "environment.json", to_json(environments))
        self._error.unlink(missing_ok=True)

    def write_curve(self, points: list[dict[str, Any]]) -> None:
        if points or self._curve.exists():  # a write to the disk takes milliseconds
            write_atomic(self._curve, _lines(points))

    def append_curve(self, point: dict[str, Any]) -> None:
        """Add a line for observers; the checkpoint holds the curve that counts."""
        try:
            with open(self._curve, "a", opener=_at_once) as file:
                file.write(_lines([point]))
        except OSError as error:
            raise storage_error(self._curve, error) from error

    def write_result(self, result: dict[str, Any], curve: list[dict[str, Any]]) -> None:
        """Finish the run: from here on it is done and never repeated."""
        # result.json comes after the curve, because it makes the run done.
        self.write_curve(curve)
        sha256 = hashlib.sha256(_lines(curve).encode()).hexdigest()
        write_atomic(self._result, to_json({**result, "curve_sha256": sha256}))
        # Removed only now: a kill between the two must not lose the whole run.
        for checkpoint in self.checkpoints():
            checkpoint.unlink(missing_ok=True)

    def write_error(self, traceback: str) -> None:
        write_atomic(self._error, traceback)


class Store:
    """The folder of one experiment's results: the runs, and what is collected from them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.folder / "runs" / run_id)

    def present(self) -> set[str]:
        """Return the run_ids that have a folder, by listing once, since thousands may have none."""
        try:
            return set(os.listdir(self.folder / "runs"))
        except OSError:
            return set()

    def statuses(self, run_ids: Iterable[str]) -> Iterator[tuple[RunFolder, Status | BenchError]]:
        """Yield each run's status, or what is wrong with the run."""
        there = self.present()
        for run_id in run_ids:
            folder = self.run(run_id)
            try:
                yield folder, folder.status() if run_id in there else "missing"
            except BenchError as error:
                yield folder, error

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Hold a lock while records are collected and written.

        If two launches end together, the later one, which sees more runs, then writes last.
        """
        with locked(self.folder / "runs" / "lock"):
            self._tidy()
            yield

    def _tidy(self) -> None:
        # A kill after result.json and before the removal of checkpoints leaves large files behind.
        """Remove what processes left that were killed between two steps of finishing a run."""
        for left_over in self.folder.glob("runs/*/checkpoint*.pt"):
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
    """Return the present state of a run, for an outside observer; None if nobody works on the run.

    Args:
        metric: the key of the task's score ("acc", as in experiment.json).

    Returns:
        epochs_done: as of the last evaluation.
        epochs: the total; None before the run has begun to set up.
        score: the validation score of that epoch; None before the first evaluation.
        host, pid, device, slurm_job: where the run is executed; None where unknown.
        since: when the run was started or resumed, in seconds since 1970.
    """
    holder = folder.holder()
    if holder is None:
        return None
    point = folder.last_point()
    try:
        epochs = read_json(folder.path / "spec.json", missing={})["train"]["epochs"]
    except (BenchError, LookupError, TypeError):  # not written yet, or damaged: it will be seen when the run is over
        epochs = None
    since = holder.get("started")
    return {
        "epochs_done": point.get("epoch", 0),
        "epochs": epochs,
        "score": score if _number(score := point.get(f"val_{metric}")) else None,
        **{name: holder.get(name) for name in ("host", "pid", "device", "slurm_job")},
        "since": since if _number(since) else None,
    }
