"""Duration of runs on this machine, estimated from a few measured steps before they start."""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.experiment import PlannedRun
from bench.core.spec import OptimizerSpec, RunSpec
from bench.data.batching import Batch
from bench.data.splits import Split
from bench.tasks.base import Data, Task, sampled
from bench.train import schedule_of, synchronize
from bench.training.draws import Draws
from bench.training.evaluate import batch_size, evaluate, outputs, twin_of
from bench.training.passes import passes_per_step
from bench.training.step import TrainingRun, load, set_up

FEW = 32
"""Examples of each split that a rehearsal evaluates."""

LONG_STEP = 10.0
"""A step that takes this many seconds is timed only once."""

LONG = 86_400.0
"""Seconds from which on an estimate is shown as a warning: a day."""


@dataclass(frozen=True)
class Speed:
    """Costs of one kind of run on one worker, in seconds: setup, a pass over a batch, one evaluation.

    The last evaluation takes `more` seconds than the others, which see only some of the training examples. The first
    run of a kind on a worker takes `compiling` seconds, too, for code that the others of its kind find there.
    """

    setup: float
    a_pass: float
    an_evaluation: float
    more: float = 0.0
    compiling: float = 0.0

    def run(self, spec: RunSpec, passes: int) -> float:
        """Return the seconds of a whole run."""
        # Rounded up, since the last epoch is always evaluated.
        evaluations = -(-spec.train.epochs // spec.train.eval_every)
        return self.setup + passes * self.a_pass + evaluations * self.an_evaluation + self.more


def kind(spec: RunSpec) -> str:
    """Return a key shared by runs of the same speed: all settings but the optimizer, the seed and the durations."""
    # Left out: what changes the number of steps and evaluations, or hardly the time of a step.
    train = spec.train.model_dump(exclude={"epochs", "warmup_epochs", "eval_every", "schedule", "clip_norm"})
    # m is in: it splits a batch into smaller parts, each with a pass of its own.
    return str((spec.task, spec.model, spec.data, spec.phase, train, spec.optimizer.params.get("m")))


def samples(runs: Iterable[PlannedRun]) -> dict[str, RunSpec]:
    """Return, for every kind of run, the run to measure: the one with the fewest passes per step."""
    cheapest = sorted(runs, key=lambda run: passes_per_step(run.spec.optimizer))
    return {kind(run.spec): run.spec for run in reversed(cheapest)}  # the last of a kind stays: the cheapest


def configuration(spec: RunSpec) -> str:
    """Return a key shared by runs that differ only by their seed: the spec without the seed, as JSON."""
    return spec.model_dump_json(exclude={"seed"})


def measure_speed(spec: RunSpec, device: torch.device, seconds: float = 0.3) -> Speed:
    """Measure the speed of a run by a few steps; nothing of the run is kept.

    Args:
        seconds: about how long to measure; slow steps are measured once.

    A run of several processes is measured in one: on a GPU with the share of one of them, and without what they send
    each other; on a CPU, whose cores they share, with the whole batch.
    """
    spec = in_one_process(spec, device)
    run, setup = _set_up(spec, device)
    compiling = 0.0
    # 1. Set-up. The second one finds compiled code, as later runs in a worker do: the difference is compiling.
    if run.keeps_code:
        first = setup
        run, setup = _set_up(spec, device)
        compiling = max(0.0, first - setup)

    # 2. Steps, on a batch of usual size.
    batch = _usual(run.batches(0))
    a_step, a_pass = _seconds_a_step(run, batch, 0.0)
    # The first step also imports modules and makes the optimizer's state: short steps are timed once more.
    if a_step < LONG_STEP:
        _, a_pass = _seconds_a_step(run, batch, seconds)

    # 3. Evaluation, in seconds per unit (`_units`). This first one only warms up and is not timed.
    evaluate_some(run)
    run.model.eval()
    # Where the run will evaluate a model with folded batch norm (`training/folding.py`), time that one.
    twin, quick = twin_of(run.model, run.task, run.data.splits(), run.autocast, run.compiled)
    network = twin if twin is not None and quick else run.model
    fixed = network is run.compiled
    usual = min(batch_size(run.data.train), len(run.data.train))
    few = torch.arange(usual, device=device) if fixed else batch.examples
    a_unit = _seconds_a_unit(run, network, few, fixed)
    if a_unit * _units(run.data.train) * usual / len(run.data.train) < seconds:
        # There is time for a batch as large as those of evaluation, which may cost less per unit.
        # a batch as large as evaluation takes them
        a_unit = _seconds_a_unit(run, network, torch.arange(usual, device=device), fixed)
    # 4. Evaluations see `eval_train` training examples each, the last one all of them.
    some, whole = _units(sampled(run.data.train, spec.train.eval_train)), _units(run.data.train)
    others = sum(map(_units, run.data.splits().values())) - whole
    return Speed(setup, a_pass, a_unit * (some + others), a_unit * (whole - some), compiling)


def rehearse(spec: RunSpec, device: torch.device) -> float:
    """Build a run, take one step and evaluate a few examples, to find errors before the run starts.

    Whatever the run will ask of model, optimizer and task is asked once: a schedule, a state to save, and the weights
    for evaluation, whose batch-norm statistics are taken over one batch.

    Returns:
        The passes of the step.
    """
    spec = in_one_process(spec, device)
    run = set_up(spec, device, loaded=_loaded(_data_of(spec), device))
    run.model.train()
    schedule = schedule_of(spec, run)
    batch = run.batches(0)[0]
    (drawn,) = Draws(run.task, [batch], np.random.RandomState(0), device)
    run.step(batch, drawn)
    schedule.step()
    # What the step has really taken, which a method of a user's own may not declare.
    passes = run.work
    run.optimizer.state_dict()
    with run.measured_weights(batches=1):
        evaluate_some(run)
    synchronize(device)
    return passes


def in_one_process(spec: RunSpec, device: torch.device) -> RunSpec:
    """Return the spec for one process: with its share of the batch on a GPU, with the whole batch on a CPU."""
    processes = spec.train.processes
    share = spec.train.batch_size // (processes if device.type == "cuda" else 1)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"processes": 1, "batch_size": share})})


def _data_of(spec: RunSpec) -> str:
    """Return a spec as JSON with a fixed optimizer and fixed processes: equal for runs that can share loaded data."""
    plain = spec.train.model_copy(update={"processes": 1})
    return spec.model_copy(update={"optimizer": OptimizerSpec(name="sgd"), "train": plain}).model_dump_json()


# One entry, since data sets are large.
@functools.lru_cache(maxsize=1)
def _loaded(spec_json: str, device: torch.device) -> tuple[Task, Data]:
    """Load the data of a rehearsal, cached for the next one, which mostly has the same data."""
    return load(RunSpec.model_validate_json(spec_json), device)


def evaluate_some(run: TrainingRun) -> None:
    """Evaluate a few examples of every split in the same way as the run evaluates all of them."""
    data = run.data
    few = torch.arange(FEW, device=data.train.targets.device)

    def start(split: Split) -> Split:
        # noisy=None: the labels of all of the few may be noisy, and there is no mean over no clean examples.
        return replace(split[few[: len(split)]], noisy=None) if len(split) else split

    others = {name: start(split) for name, split in data.others.items()}
    few_of_all = replace(data, train=start(data.train), val=start(data.val), test=start(data.test), others=others)
    evaluate(run.model, run.task, few_of_all, run.autocast)


def _set_up(spec: RunSpec, device: torch.device) -> tuple[TrainingRun, float]:
    """Return a run that is ready for its first step, and the seconds that took."""
    started = time.perf_counter()
    run = set_up(spec, device)
    run.warm_up()
    # A GPU is still at work when Python goes on: without the wait its time would be missing here.
    synchronize(device)
    return run, time.perf_counter() - started


def _seconds_a_step(run: TrainingRun, batch: Batch, seconds: float) -> tuple[float, float]:
    """Return the seconds per step and per pass; the number of passes may change from one step to the next."""
    augment = np.random.RandomState(0)
    started, steps, before = time.perf_counter(), 0, run.work
    while steps == 0 or time.perf_counter() - started < seconds:
        run.step(batch, augment)
        steps += 1
        synchronize(batch.examples.device)
    elapsed = time.perf_counter() - started
    # By the passes made: some methods take a second pass in only some of their steps.
    return elapsed / steps, elapsed / (run.work - before)


def _usual(batches: Sequence[Batch]) -> Batch:
    """Return the batch whose number of tokens is closest to the mean, or the first if all batches are alike."""
    mean = sum(batch.tokens for batch in batches) / len(batches)
    return min(batches, key=lambda batch: abs(batch.tokens - mean))


def _seconds_a_unit(run: TrainingRun, network: nn.Module, which: Tensor, fixed: bool) -> float:
    some = run.data.train[which]
    started = time.perf_counter()
    outputs(network, run.task, some, run.autocast, fixed=fixed)
    synchronize(which.device)
    return (time.perf_counter() - started) / _units(some)


def _units(split: Split) -> int:
    """Return the size that evaluation time is proportional to: the tokens of texts, else the examples."""
    return len(split) if split.lengths is None else int(split.lengths.sum())


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Return the seconds until the last run is over, if each run goes to the first free worker."""
    # When each worker is free; a list of zeros is already a heap.
    free = [0.0] * workers
    for run in seconds:
        heapq.heappush(free, heapq.heappop(free) + run)
    return max(free)


def seconds_of(runs: Sequence[tuple[RunSpec, int]], speeds: Mapping[str, Speed], workers: int) -> float:
    """Return the seconds until all runs are over.

    Args:
        runs: with the passes of each.
        speeds: of every kind of run.
    """
    # Once per kind and optimizer: compiled code stays in a worker for the next run that needs the same.
    codes = {(kind(spec), spec.optimizer.name): speeds[kind(spec)].compiling for spec, _ in runs}
    seconds = [speeds[kind(spec)].run(spec, passes) for spec, passes in runs]
    return makespan(seconds, workers) + sum(codes.values())  # every worker compiles each


def estimate(
    runs: Sequence[PlannedRun], passes: Mapping[str, int], speeds: Mapping[str, Speed], workers: int
) -> tuple[float, str]:
    """Return the seconds until all runs are over, and the same in words, with the basis of the estimate.

    Args:
        passes: of every run, by run_id.
        speeds: of every kind of run.
    """
    total = seconds_of([(run.spec, passes[run.spec.run_id]) for run in runs], speeds, workers)
    slowest = max(speeds.values(), key=lambda speed: speed.a_pass)
    some = next(run.spec for run in runs if speeds[kind(run.spec)] is slowest)
    what = f"{some.model.name} on {some.task.name}, batches of {some.train.batch_size}"
    at_once = f"{min(workers, len(runs))} at a time" if len(runs) > 1 else "one run"
    return total, (
        f"Estimated time on this machine: {duration(total)} ({at_once}; measured: "
        f"{1000 * slowest.a_pass:.3g} ms per pass of {what})"
    )


def duration(seconds: float) -> str:
    """Return seconds in the two largest units that matter: "3 days 4 h", "2 h 05 min", "7 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} day{'s' * (days > 1)} {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
