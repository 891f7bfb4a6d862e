"""A machine in shares: which GPUs or cores each worker has."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from bench.core.errors import BadValue
from bench.core.spec import RunSpec
from bench.distributed.launcher import Team
from bench.training.precision import has_bf16_units


@dataclass(frozen=True)
class Slot:
    """A worker's share of the machine.

    Attributes:
        device: "cuda:1", "cpu".
        others: further GPUs, for runs of several processes; on a CPU those share the cores.
        team: the nodes that have a share each of every run, if there are several.
        cores: the cores it may use; empty leaves them all to it.
        threads: torch's threads.
    """

    device: str
    cores: tuple[int, ...]
    threads: int
    others: tuple[str, ...] = ()
    team: Team | None = None

    def devices(self, processes: int) -> list[torch.device]:
        """Return one device for each process of a run that is on this machine."""
        # Each node of a team does an equal part of a run's processes.
        processes //= self.team.nodes if self.team else 1
        names = (self.device, *self.others) if self.device.startswith("cuda") else (self.device,) * processes
        return [torch.device(name) for name in names[:processes]]


def slots(
    jobs: int | None,
    jobs_per_gpu: int = 1,
    gpus: Sequence[int] | None = None,
    processes: Collection[int] = (1,),
) -> list[Slot]:
    """Return the machine in equal shares: by default one per GPU, else one per core.

    A run of several processes gets a share of as many GPUs or cores.

    Args:
        jobs: the number of runs at once; if there are more runs than GPUs or cores, several share one.
        jobs_per_gpu: the number of runs that share a GPU, if `jobs` is not given.
        gpus: the GPUs to use, numbered as torch sees them (CUDA_VISIBLE_DEVICES counts); default all.
        processes: the numbers of processes per run that occur.

    Raises:
        BadValue: a requested GPU does not exist, several runs per GPU are requested without a GPU, or there are too few
            GPUs for runs of several processes, each of which needs GPUs of its own.
    """
    # The cores that this process may use, not all of the machine's. macOS does not tell: then no run is pinned.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    core_count = len(cores) or os.cpu_count() or 1
    used = _gpus(gpus)
    if jobs_per_gpu > 1 and not used:
        raise BadValue(f"--jobs-per-gpu {jobs_per_gpu}", ["torch sees no GPU here; --jobs says how many at once"])
    # Each process of a run needs a GPU of its own; cores can be shared.
    if used and max(processes, default=1) > 1:
        return _slots_of_several_gpus(jobs, jobs_per_gpu, processes, cores, used)
    jobs = jobs or len(used) * jobs_per_gpu or max(1, core_count // max(processes, default=1))
    share = max(1, core_count // jobs)
    # With more runs than cores no run is pinned.
    shares = [tuple(cores[i * share : (i + 1) * share]) for i in range(jobs)] if jobs <= core_count else [()] * jobs
    # GPUs in turn, so that the first runs of the queue land on different ones.
    return [Slot(f"cuda:{used[i % len(used)]}" if used else "cpu", shares[i], share) for i in range(jobs)]


def _gpus(asked: Sequence[int] | None) -> list[int]:
    """Return the GPUs to use: the requested ones, each once, or all."""
    there = list(range(torch.cuda.device_count()))
    if asked is None:
        return there
    # Each once, in the order of the request.
    wanted = list(dict.fromkeys(asked))
    source = f"--gpus {','.join(map(str, asked))}"
    if not there:
        raise BadValue(source, ["torch sees no GPU here; without --gpus the runs are done on the cores"])
    valid = ", ".join(map(str, there))
    if wrong := [f"there is no GPU {number}; valid: {valid}" for number in wanted if number not in there]:
        raise BadValue(source, wrong)
    if not wanted:
        raise BadValue("--gpus", [f"names no GPU; valid: {valid}"])
    return wanted


def _slots_of_several_gpus(
    jobs: int | None, jobs_per_gpu: int, processes: Collection[int], cores: list[int], gpus: list[int]
) -> list[Slot]:
    each = max(processes)
    most = len(gpus) // each
    # Slots are fixed for the whole launch, so all runs must need as many GPUs.
    if len(set(processes)) > 1:
        counts = ", ".join(map(str, sorted(set(processes))))
        raise BadValue(
            "train.processes", [f"runs of {counts} processes: on GPUs all must have as many; choose some with --only"]
        )
    if not most:
        raise BadValue(f"train.processes = {each}", [f"needs one GPU per process, and {len(gpus)} can be used here"])
    if jobs_per_gpu > 1 or (jobs or 1) > most:
        asked = f"--jobs {jobs}" if jobs else f"--jobs-per-gpu {jobs_per_gpu}"
        raise BadValue(
            asked, [f"runs of {each} processes have {each} GPUs each; the {len(gpus)} here do {most} at once"]
        )
    # Cores for each slot; its processes share them.
    share = max(1, len(cores) // (jobs or most))
    return [
        Slot(
            f"cuda:{gpus[i * each]}",
            tuple(cores[i * share : (i + 1) * share]),
            share,
            tuple(f"cuda:{gpu}" for gpu in gpus[i * each + 1 : (i + 1) * each]),
        )
        for i in range(jobs or most)
    ]


def slow_precision(specs: Sequence[RunSpec], shares: Sequence[Slot]) -> str:
    """Return a warning about runs in a precision that is slow on these devices; "" if there are none."""
    on_cpu = any(share.device == "cpu" for share in shares)
    if not on_cpu or all(spec.train.precision != "bf16" for spec in specs) or has_bf16_units():
        return ""
    return (
        'train.precision = "bf16": this CPU has no bf16 matrix units (AMX), so bf16 is slower than fp32 here; '
        'set train.precision = "fp32"'
    )
