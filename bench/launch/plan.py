"""What an experiment still needs, and what that costs, seen before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from bench import checkpoint
from bench.errors import BadValue, BenchError, nearest
from bench.registry import optimizers
from bench.spec import Experiment, PlannedRun, RunSpec
from bench.step import load_task, steps_per_epoch
from bench.store import FINISHED, Status, Store
from bench.tasks.base import check_label_noise, split_sizes


@dataclass(frozen=True)
class Plan:
    """Every run of an experiment with where it stands, in the order of the file.

    Attributes:
        chosen: the runs that this launch is about (`--only`).
        statuses: by run_id.
    """

    experiment: Experiment
    store: Store
    chosen: list[PlannedRun]
    statuses: dict[str, Status]
    retry_failed: bool

    @cached_property
    def to_do(self) -> list[PlannedRun]:
        """The chosen runs that would start now, each once, the longest first, so that none is left alone at the end."""
        wanted = ("missing", "partial", "failed") if self.retry_failed else ("missing", "partial")
        runs = {run.spec.run_id: run for run in reversed(self.chosen)}  # the first label that has it names it
        waiting = [run for run in reversed(runs.values()) if self.statuses[run.spec.run_id] in wanted]
        return sorted(waiting, key=lambda run: -self.passes[run.spec.run_id])

    @cached_property
    def passes(self) -> dict[str, int]:
        """Forward-backward passes of every run, by run_id."""
        sizes: dict[str, int] = {}
        found = {}
        for run in self.experiment.runs:
            if run.condition_text not in sizes:
                examples = load_task(run.spec).train_examples()
                sizes[run.condition_text], _ = split_sizes(examples, run.spec.data)
            found[run.spec.run_id] = _passes(run.spec, sizes[run.condition_text])
        return found

    def count(self, *statuses: Status) -> int:
        """How many of the chosen runs stand so."""
        counts = Counter(self.statuses[run_id] for run_id in {run.spec.run_id for run in self.chosen})
        return sum(counts[status] for status in statuses)


def make_plan(experiment: Experiment, store: Store, only: Collection[str] = (), retry_failed: bool = False) -> Plan:
    """Look at every run's folder.

    Args:
        only: labels to run; all if empty.
        retry_failed: failed runs are to be done again.

    Raises:
        BadValue: `only` names no label of the experiment.
        BenchError: the task cannot have its labels replaced, or results or checkpoints on disk are damaged or
            foreign: all of those are told.
    """
    for label in only:
        if label not in experiment.labels:
            raise BadValue(f"--only {label}", [f"no such optimizer; {nearest(label, experiment.labels)}"])
    for spec in {run.condition_text: run.spec for run in experiment.runs}.values():
        check_label_noise(load_task(spec), spec.data.label_noise)
    statuses: dict[str, Status] = {}
    faults = []
    for run_id in dict.fromkeys(run.spec.run_id for run in experiment.runs):
        folder = store.run(run_id)
        try:
            statuses[run_id] = folder.status()
            if statuses[run_id] not in (*FINISHED, "running") and folder.checkpoint.exists():
                checkpoint.load(folder.checkpoint, run_id)
        except BenchError as error:
            faults.append(str(error))
    if faults:
        raise BenchError("\n".join(faults))
    chosen = [run for run in experiment.runs if not only or run.label in only]
    return Plan(experiment, store, chosen, statuses, retry_failed)


def _passes(spec: RunSpec, train_size: int) -> int:
    per_step = optimizers[spec.optimizer.name].passes(spec.optimizer.params)
    return round(spec.train.epochs * steps_per_epoch(train_size, spec.train.batch_size) * per_step)
