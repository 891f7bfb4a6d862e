"""A worker: one process, kept alive from run to run, pinned to its GPU or its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from bench.distributed import run_distributed
from bench.errors import BenchError
from bench.launch.estimate import measure
from bench.spec import RunSpec
from bench.store import Claimed, RunFolder, StorageError
from bench.train import Stopped, train


@dataclass(frozen=True)
class Slot:
    """A worker's share of the machine.

    Attributes:
        device: "cuda:1", "cpu".
        others: further GPUs, for runs of several processes; on a CPU those share the cores.
        cores: the cores it may use; empty leaves them all to it.
        threads: torch's threads.
    """

    device: str
    cores: tuple[int, ...]
    threads: int
    others: tuple[str, ...] = ()

    def devices(self, processes: int) -> list[torch.device]:
        """One for each process of a run."""
        names = (self.device, *self.others) if self.device.startswith("cuda") else (self.device,) * processes
        return [torch.device(name) for name in names[:processes]]


@dataclass(frozen=True)
class Job:
    spec_json: str
    folder: Path
    checkpoint_minutes: float


@dataclass(frozen=True)
class Measure:
    """Take a few steps of a run and tell how long they take."""

    spec_json: str


@dataclass(frozen=True)
class Event:
    """What a worker tells.

    Kind "epoch", "done", "failed", "claimed", "stopped", or "disk" (which ends a launch); asked to measure, "speed" or
    "failed".
    """

    kind: str
    epochs_done: int = 0
    epochs: int = 0
    content: Any = None


def work(connection: Connection, slot: Slot, environment: dict[str, str]) -> None:
    """Do jobs as they come, until the launcher says so (None), hangs up or dies.

    Args:
        environment: the launcher's variables now; those of the fork server may be older.
    """
    os.environ.update(environment)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # texts come tokenised; should they not, cores are others' too
    stop_asked = threading.Event()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's to handle
    signal.signal(signal.SIGTERM, lambda number, frame: stop_asked.set())
    threading.Thread(target=_die_with_the_launcher, daemon=True).start()
    if slot.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, slot.cores)
    torch.set_num_threads(slot.threads)
    device = torch.device(slot.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    while True:
        try:
            job: Job | Measure | None = connection.recv()
        except (EOFError, OSError):
            return
        if job is None:
            return
        event = _measure(job, device) if isinstance(job, Measure) else _do(job, slot, connection, stop_asked)
        connection.send(event)


def _die_with_the_launcher() -> None:
    """A launcher killed by force must not leave workers behind. Dying at once is safe: all writes are atomic."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _measure(job: Measure, device: torch.device) -> Event:
    try:
        return Event("speed", content=measure(RunSpec.model_validate_json(job.spec_json), device))
    except Exception as error:  # the run itself will meet it again, and have it recorded
        return Event("failed", content=f"{type(error).__name__}: {error}".partition("\n")[0])


def _do(job: Job, slot: Slot, connection: Connection, stop_asked: threading.Event) -> Event:
    folder = RunFolder(job.folder)

    def report(done: int, epochs: int, measured: dict[str, float]) -> None:
        connection.send(Event("epoch", done, epochs, measured))

    try:
        with folder.claim():
            result = folder.result()  # another launch may have finished it a moment ago
            if result is None:
                try:
                    spec = RunSpec.model_validate_json(job.spec_json)
                    devices, stop = slot.devices(spec.train.processes), stop_asked.is_set
                    if spec.train.processes > 1:
                        if slot.device != "cpu":
                            torch.cuda.empty_cache()  # of what was measured before: the first process's memory now
                        result = run_distributed(spec, folder, devices, report, job.checkpoint_minutes, stop)
                    else:
                        result = train(spec, folder, devices[0], report, job.checkpoint_minutes, stop)
                except (Stopped, StorageError):
                    raise
                except Exception as error:
                    text = str(error) if isinstance(error, BenchError) else traceback.format_exc()
                    folder.write_error(text.rstrip() + "\n")
                    return Event("failed", content=text)
            return Event("done", content=result)
    except Claimed:
        return Event("claimed")
    except Stopped:
        return Event("stopped")
    except StorageError as error:
        return Event("disk", content=str(error))
