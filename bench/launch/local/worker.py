"""A worker: one process, kept alive from run to run, pinned to its GPU or its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.core.errors import BenchError, NotPrepared
from bench.core.run_options import RunOptions
from bench.core.spec import RunSpec
from bench.distributed.launcher import run_distributed
from bench.launch.estimate import measure_speed, rehearse
from bench.launch.local.memory import out_of_memory
from bench.launch.local.slots import Slot
from bench.store.run_folder import RunFolder, RunLocked, StorageError
from bench.train import Report, Stopped, StopSign, train


@dataclass(frozen=True)
class RunJob:
    """A run to do.

    Attributes:
        alone: nothing else of the launch is on the device; if it runs out of memory even so, the run has failed.
    """

    spec_json: str
    folder: Path
    options: RunOptions
    alone: bool = False


@dataclass(frozen=True)
class MeasureSpeed:
    """Take a few steps of a run and tell how long they take."""

    spec_json: str


@dataclass(frozen=True)
class Rehearse:
    """Build a run and take one step of it; nothing is kept. See `estimate.rehearse`."""

    spec_json: str
    alone: bool = False


@dataclass(frozen=True)
class Event:
    """A message from a worker.

    Kind "epoch", "said" (a sentence for the user), "done", "failed", "memory" (was short; not failed yet), "claimed",
    "stopped", or "disk" (which ends a launch); asked to measure, "speed" or "failed"; asked to
    rehearse, "rehearsed" (the passes of the step), "failed", "memory" or "absent" (data that a launch would fetch).
    """

    kind: str
    epochs_done: int = 0
    epochs: int = 0
    content: Any = None


def work(connection: Connection, slot: Slot, environment: dict[str, str]) -> None:
    """Do jobs in the order received, until the launcher sends None, closes the connection or dies.

    Args:
        environment: the launcher's variables now; those of the fork server may be older.
    """
    # The fork server may be older than this launch, and its environment with it.
    os.environ.clear()
    os.environ.update(environment)
    # Texts come tokenised; a tokenizer that is used all the same must not take the cores of other workers.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    stop_sign = StopSign()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    signal.signal(signal.SIGTERM, stop_sign.put_up)
    threading.Thread(target=_die_with_the_launcher, daemon=True).start()
    # Before torch starts threads, which inherit these cores.
    if slot.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    torch.set_num_threads(slot.threads)
    device = torch.device(slot.device)
    while True:
        try:
            job: RunJob | MeasureSpeed | Rehearse | None = connection.recv()
        except (EOFError, OSError):
            # The launcher has closed its end, or died.
            return
        if job is None:
            return
        if device.type == "cuda":  # not earlier: a worker that waits takes none of the GPU's memory
            torch.cuda.set_device(device)
        if isinstance(job, RunJob):
            event = _do(job, slot, connection, stop_sign)
        else:
            event = _measure(job, device) if isinstance(job, MeasureSpeed) else _rehearse(job, device)
        _tell(connection, event)


def _tell(connection: Connection, event: Event) -> None:
    """Send an event, or end this process if nobody is there to receive it: that is no failure of the run."""
    try:
        connection.send(event)
    except OSError:
        # `_die_with_the_launcher` may come a moment later, when an error would be in the run's folder already.
        raise SystemExit(1) from None


def _die_with_the_launcher() -> None:
    """Exit when the launcher is gone, so that a launcher killed by force leaves no workers behind.

    Exiting at once is safe: all writes are atomic.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(job: MeasureSpeed, device: torch.device) -> Event:
    try:
        return Event("speed", content=measure_speed(RunSpec.model_validate_json(job.spec_json), device))
    except Exception as error:  # the run itself will meet it again, and have it recorded
        words = str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"
        return Event("failed", content=words.partition("\n")[0])


def _rehearse(job: Rehearse, device: torch.device) -> Event:
    try:
        return Event("rehearsed", content=rehearse(RunSpec.model_validate_json(job.spec_json), device))
    # A BenchError too, so it comes first: data that are not downloaded yet are no failure.
    except NotPrepared as error:
        return Event("absent", content=str(error))
    except Exception as error:
        if (short := out_of_memory(error)) and not job.alone:
            return Event("memory", content=short)
        return Event("failed", content=str(error) if isinstance(error, BenchError) else traceback.format_exc())


def _do(job: RunJob, slot: Slot, connection: Connection, stop_sign: StopSign) -> Event:
    folder = RunFolder(job.folder)

    def report(done: int, epochs: int, measured: dict[str, float]) -> None:
        _tell(connection, Event("epoch", done, epochs, measured))

    def say(words: str) -> None:
        _tell(connection, Event("said", content=words))

    try:
        with folder.claim(slot.device) as claim:
            result = folder.result()  # another launch may have finished it a moment ago
            if result is not None:
                return Event("done", content=result)

            def stop() -> bool:
                # After a claim is lost another host writes to the folder: two must not.
                return stop_sign.is_up or claim.lost

            try:
                return Event("done", content=_run(job, slot, folder, report, stop, say))
            except Stopped:
                return Event("claimed" if claim.lost else "stopped")
            # Reported below, outside of the claim: a full disk is no failure of the run.
            except StorageError:
                raise
            except Exception as error:
                return _failure(error, folder, job.alone)
    except RunLocked:
        return Event("claimed")
    except StorageError as error:
        return Event("disk", content=str(error))


def _run(
    job: RunJob,
    slot: Slot,
    folder: RunFolder,
    report: Report,
    stop: Callable[[], bool],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Do a run in this process, or in several processes if its spec asks for them."""
    spec = RunSpec.model_validate_json(job.spec_json)
    devices = slot.devices(spec.train.processes)
    if spec.train.processes == 1:
        return train(spec, folder, devices[0], report, job.options, stop, say=say)
    if slot.device != "cpu":
        torch.cuda.empty_cache()  # of what was measured before: the first process's memory now
    return run_distributed(spec, folder, devices, report, job.options, stop, slot.team, say)


def _failure(error: Exception, folder: RunFolder, alone: bool) -> Event:
    """Record what ended a run, unless it ran out of memory that other runs on the device may have used."""
    text = str(error) if isinstance(error, BenchError) else traceback.format_exc()
    if short := out_of_memory(error):
        # Nothing is recorded: the launcher repeats the run with the device to itself.
        if not alone:
            return Event("memory", content=short)
        text = f"{short}\n\n{text}"
    folder.write_error(text.rstrip() + "\n")
    return Event("failed", content=text)
