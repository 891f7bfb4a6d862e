"""How long runs will take on this machine: measured on a few steps before they start."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.batching import Batch
from bench.evaluate import BATCH, outputs
from bench.registry import optimizers
from bench.spec import PlannedRun, RunSpec
from bench.step import Run, set_up
from bench.tasks.base import Split
from bench.train import synchronize

LONG_STEP = 10.0
"""Seconds from which on a step is not taken twice to know how long it takes."""

LONG = 86_400.0
"""Seconds from which on an estimate is shown as a warning: a day."""


@dataclass(frozen=True)
class Speed:
    """What a kind of run costs on one worker, in seconds: to set it up, a pass over a batch, one evaluation."""

    setup: float
    a_pass: float
    an_evaluation: float

    def run(self, spec: RunSpec, passes: int) -> float:
        """Seconds of a whole run."""
        evaluations = -(-spec.train.epochs // spec.train.eval_every)
        return self.setup + passes * self.a_pass + evaluations * self.an_evaluation


def kind(spec: RunSpec) -> str:
    """What runs of the same speed have in common: all but the optimizer, the seed and the lengths of things."""
    train = spec.train.model_dump(exclude={"epochs", "warmup_epochs", "eval_every", "schedule", "clip_norm"})
    return str((spec.task, spec.model, spec.data, spec.phase, train, spec.optimizer.params.get("m")))


def samples(runs: Iterable[PlannedRun]) -> dict[str, RunSpec]:
    """For every kind of run, the one that is measured: of the fewest passes a step."""
    cheapest = sorted(runs, key=lambda run: passes_per_step(run.spec))
    return {kind(run.spec): run.spec for run in reversed(cheapest)}


def passes_per_step(spec: RunSpec) -> float:
    return optimizers[spec.optimizer.name].passes(spec.optimizer.params)


def measure(spec: RunSpec, device: torch.device, seconds: float = 0.3) -> Speed:
    """Take a few steps of a run, and leave nothing of it.

    Args:
        seconds: about how long to measure; slow steps are measured once.

    A run of several processes is measured in one: on a GPU with the share of one of them, and without what they send
    each other; on a CPU, whose cores they share, with the whole batch.
    """
    processes = spec.train.processes
    share = spec.train.batch_size // (processes if device.type == "cuda" else 1)
    spec = spec.model_copy(update={"train": spec.train.model_copy(update={"processes": 1, "batch_size": share})})
    started = time.perf_counter()
    run = set_up(spec, device)
    run.warm_up()
    synchronize(device)
    setup = time.perf_counter() - started

    batch = _usual(run.batches(0))
    a_step, a_pass = _seconds_a_step(run, batch, 0.0)
    if a_step < LONG_STEP:  # and it was the first one, which has things to import and state to make
        _, a_pass = _seconds_a_step(run, batch, seconds)

    run.model.eval()
    a_unit = _seconds_a_unit(run, batch.examples)
    usual = min(BATCH[device.type], len(run.data.train))
    if a_unit * _units(run.data.train) * usual / len(run.data.train) < seconds:
        a_unit = _seconds_a_unit(run, torch.arange(usual, device=device))  # a batch as large as evaluation takes them
    return Speed(setup, a_pass, a_unit * sum(map(_units, run.data.splits().values())))


def _seconds_a_step(run: Run, batch: Batch, seconds: float) -> tuple[float, float]:
    """And a pass: how many a step has may change from one to the next."""
    augment = np.random.RandomState(0)
    started, steps, before = time.perf_counter(), 0, run.work
    while steps == 0 or time.perf_counter() - started < seconds:
        run.step(batch, augment)
        steps += 1
        synchronize(batch.examples.device)
    elapsed = time.perf_counter() - started
    return elapsed / steps, elapsed / (run.work - before)


def _usual(batches: Sequence[Batch]) -> Batch:
    """One whose tokens are closest to the mean; of batches that are all alike, the first."""
    mean = sum(batch.tokens for batch in batches) / len(batches)
    return min(batches, key=lambda batch: abs(batch.tokens - mean))


def _seconds_a_unit(run: Run, which: Tensor) -> float:
    some = run.data.train[which]
    started = time.perf_counter()
    outputs(run.model, run.task, some, run.autocast)
    synchronize(which.device)
    return (time.perf_counter() - started) / _units(some)


def _units(split: Split) -> int:
    """What the time of an evaluation goes with: tokens of texts, else examples."""
    return len(split) if split.lengths is None else int(split.lengths.sum())


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until the last of the runs is over, each given to the first worker that is free."""
    free = [0.0] * workers
    for run in seconds:
        heapq.heappush(free, heapq.heappop(free) + run)
    return max(free)


def estimate(
    runs: Sequence[PlannedRun], passes: Mapping[str, int], speeds: Mapping[str, Speed], workers: int
) -> tuple[float, str]:
    """Seconds until all runs are over, and the same in words, with what it was made from.

    Args:
        passes: of every run, by run_id.
        speeds: of every kind of run.
    """
    total = makespan([speeds[kind(run.spec)].run(run.spec, passes[run.spec.run_id]) for run in runs], workers)
    slowest = max(speeds.values(), key=lambda speed: speed.a_pass)
    some = next(run.spec for run in runs if speeds[kind(run.spec)] is slowest)
    what = f"{some.model.name} on {some.task.name}, batches of {some.train.batch_size}"
    at_once = f"{min(workers, len(runs))} at a time" if len(runs) > 1 else "one run"
    return total, (
        f"Estimated time on this machine: {duration(total)} ({at_once}; measured: "
        f"{1000 * slowest.a_pass:.3g} ms a pass of {what})"
    )


def duration(seconds: float) -> str:
    """Seconds in the two largest units that matter: "3 days 4 h", "2 h 05 min", "7 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' * (days > 1)} {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
