"""Entry point of one process of a distributed run: it joins the others, does its part, and reports progress."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.core.errors import BenchError, clipped
from bench.core.process_group import ProcessGroup
from bench.core.run_options import RunOptions
from bench.core.spec import RunSpec
from bench.distributed import rendezvous
from bench.distributed.messages import MessageClient
from bench.store.files import read_bytes
from bench.store.run_folder import RunFolder, StorageError
from bench.train import Stopped, StopSign, train
from bench.training.precision import allow_deterministic_kernels

PEER_TIMEOUT = timedelta(days=1)
"""How long one process waits for another, which may be evaluating; one that has died is noticed sooner."""

Tell = Callable[[dict[str, Any]], None]


class ReadOnlyRunFolder(RunFolder):
    """A run's folder for all processes but the first: read-only."""

    # Every rank goes through all of `train`; what only rank 0 may write to the shared folder does nothing here.
    def write_start(self, spec_json: str, environment: dict[str, Any]) -> None:
        pass

    def write_curve(self, points: list[dict[str, Any]]) -> None:
        pass

    def append_curve(self, point: dict[str, Any]) -> None:
        pass

    def write_result(self, result: dict[str, Any], curve: list[dict[str, Any]]) -> None:
        pass


def read_spec(path: Path) -> RunSpec:
    """Return the run in a file spec.json.

    Raises:
        BenchError: the file cannot be read, or holds no run.
    """
    try:
        return RunSpec.model_validate_json(read_bytes(path))
    except OSError as error:
        raise BenchError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # pydantic's is one
        raise BenchError(f"{path} is no spec.json of a run: {clipped(' '.join(str(error).split()))}") from error


def place_of(environment: Mapping[str, str]) -> dict[str, str] | None:
    """Return torch's settings for joining a group that srun or torchrun started; None if neither started this process.

    Raises:
        BenchError: the environment does not say where to meet.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        # Without LOCAL_RANK all ranks are taken to be on one machine. These variables count before those of SLURM.
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        return {"LOCAL_RANK": environment["RANK"]} | {name: environment[name] for name in names if name in environment}
    # A job of one task (as submitit's), or a shell inside an allocation: not a rank of several.
    if int(environment.get("SLURM_NTASKS", "1")) == 1 or "SLURM_PROCID" not in environment:
        return None
    alone = environment.get("SLURM_NNODES", "1") == "1"
    host = rendezvous.LOOPBACK if alone else environment.get("MASTER_ADDR")
    if host is None:
        raise BenchError(
            "several nodes, and no MASTER_ADDR that says where their processes meet: before srun, "
            'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    # Jobs on one node should not meet at the same port: 20000 to 31999 by job and step, below Linux's ephemeral ports.
    step = int(environment.get("SLURM_JOB_ID", "0")) * 16 + int(environment.get("SLURM_STEP_ID", "0")) % 16
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": environment["SLURM_NTASKS"],
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": host,
        "MASTER_PORT": environment.get("MASTER_PORT", str(20_000 + step % 12_000)),  # the same in all of this step
    }


@contextmanager
def joined(device: torch.device) -> Iterator[ProcessGroup]:
    """Join the group that torch's environment variables describe; leave the group on a clean exit."""
    # Before the group is made: gloo and NCCL read these variables when they open their sockets.
    os.environ.update(rendezvous.confined(os.environ))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=rendezvous.meeting(os.environ, PEER_TIMEOUT),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=PEER_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )
    # A second group on the hosts, for decisions and small values, which do not wait for the GPU.
    control = dist.new_group(backend="gloo", timeout=PEER_TIMEOUT)
    yield ProcessGroup(dist.get_rank(), dist.get_world_size(), control)
    dist.destroy_process_group()  # never after an error: the others might not come


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock that waits for processes of an earlier try, which may outlive their worker by an instant."""
    path.mkdir(parents=True, exist_ok=True)
    with open(path / "processes.lock", "w") as lock:
        # Waits, unlike the claim of the run, which raises RunLocked.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run_process(
    spec: RunSpec,
    path: Path,
    device: torch.device,
    tell: Tell,
    options: RunOptions,
    stop: Callable[[], bool],
    claim: bool,
) -> None:
    """Do this process's part of a run.

    Args:
        tell: takes the first process's news: epochs, and the end.
        claim: whether the run must still be claimed, as it is where no worker has done so.

    Raises: see `train`; and `RunLocked`.
    """
    with joined(device) as group:
        folder = RunFolder(path) if group.is_first else ReadOnlyRunFolder(path)

        def report(done: int, epochs: int, measured: dict[str, float]) -> None:
            if group.is_first:
                tell({"kind": "epoch", "done": done, "epochs": epochs, "measured": measured})

        def say(words: str) -> None:
            if group.is_first:
                tell({"kind": "said", "words": words})

        with _first_only(group, folder, claim):
            try:
                # Rank 0 answers for all: if only some ranks trained, they would wait for the others for ever.
                if group.from_first(folder.result() is None):
                    train(spec, folder, device, report, options, stop, group, say)
                kind = "done"
            except Stopped:
                kind = "stopped"
            if group.is_first:
                tell({"kind": kind})


@contextmanager
def _first_only(group: ProcessGroup, folder: RunFolder, claim: bool) -> Iterator[None]:
    """Hold the run's folder in the first process; the other processes wait until it does."""
    if not group.is_first:
        # Returns when rank 0, which holds the folder by then, calls it too.
        group.from_first(None)
        yield
    # No worker has started us: the claim and error.txt are ours to write.
    elif claim:
        with folder.claim(), _held(folder.path):
            group.from_first(None)
            try:
                yield
            # The disk is at fault, not the run: no error.txt.
            except StorageError:
                raise
            except Exception as error:
                folder.write_error(str(error) if isinstance(error, BenchError) else traceback.format_exc())
                raise
    else:
        with _held(folder.path):
            group.from_first(None)
            yield


# ---- a process of its own ------------------------------------------------------------------------------------


class _Stop(StopSign):
    """A stop flag that counts how often it was read: once per step."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def __call__(self) -> bool:
        self.looks += 1
        return self.is_up


def run_rank(
    spec: RunSpec,
    path: Path,
    place: Mapping[str, str],
    *,
    device: str | None,
    threads: int | None,
    options: RunOptions,
    watched: bool,
) -> int:
    """Do one rank's part of a run; the rank comes from the environment variables of this process.

    Args:
        place: from `place_of`.
        device: default a GPU for each process, where there are any.
        threads: torch's; default this process's share of its cores.
        watched: `bench.distributed.launcher` has started us and listens; else srun or torchrun has.

    Returns:
        The process's exit status.
    """
    # `joined` reads torch's variables from the environment, whoever has started this process.
    os.environ.update(place)
    # Before the GPU is used: cuBLAS reads its setting once.
    if spec.train.deterministic:
        allow_deterministic_kernels()
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop.put_up)
    # Only now that there is a handler: `launcher.start` has blocked SIGTERM until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    # Ctrl-C reaches every process of a terminal; the starter passes it on as a request to stop.
    signal.signal(signal.SIGINT, (lambda number, frame: None) if watched else stop.put_up)
    client = None
    if watched:
        secret = os.environ[rendezvous.SECRET]
        client = MessageClient(place["MASTER_ADDR"], int(place["MASTER_PORT"]), place["RANK"], secret)
    tell = client.tell if client else _print
    if client:
        client.follow(stop.put_up, lambda: stop.looks)
    try:
        on = torch.device(device or _device(int(place["LOCAL_RANK"])))
        if on.type == "cuda":
            torch.cuda.set_device(on)
        torch.set_num_threads(threads or _threads(int(place["WORLD_SIZE"])))
        run_process(spec, path, on, tell, options, stop, claim=not watched)
    except Exception as error:
        # `launcher._cause` turns these kinds into StorageError, BenchError and ProcessFailed.
        kind = "disk" if isinstance(error, StorageError) else "told" if isinstance(error, BenchError) else "bug"
        text = str(error) if isinstance(error, BenchError) else traceback.format_exc()
        tell({"kind": kind, "rank": int(place["RANK"]), "text": text, "time": time.time()})
        # Not sys.exit: it may wait for torch's process group, in which the others wait for this process.
        # os._exit does not flush, so that is done before.
        sys.stdout.flush()
        os._exit(1)
    if client:
        client.end()
    return 0


def _print(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _device(local_rank: int) -> str:
    """Return this process's GPU, by its rank on this machine; srun may show each process only its own."""
    gpus = torch.cuda.device_count()
    return f"cuda:{local_rank % gpus}" if gpus else "cpu"


def _threads(processes: int) -> int:
    """Return this process's share of the cores that it may use, which srun may have divided already."""
    # Under srun torch counts only the cores of this task, so they are not divided again.
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1" if "SLURM_PROCID" in os.environ else processes))
    return max(1, torch.get_num_threads() // here)
