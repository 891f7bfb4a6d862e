"""What an experiment still needs, and what that costs, seen before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from bench import checkpoint
from bench.errors import BadValue, BenchError, nearest
from bench.launch.phases import Choices, choose
from bench.registry import optimizers
from bench.spec import Experiment, PlannedRun, RunSpec
from bench.step import load_task, steps_per_epoch
from bench.store import Status, Store
from bench.tasks.base import check_label_noise, learned_from


@dataclass(frozen=True)
class Plan:
    """Every run of an experiment with where it stands, in the order of the file.

    Attributes:
        chosen: the runs that this launch is about (`--only`).
        statuses: by run_id.
        ids: the run_id of every run of the experiment, in its order: hashes, which take a while where runs are many.
        only: the labels that this launch is about; all if empty.
        choices: what tuning has led to, in an experiment with phases.
    """

    experiment: Experiment
    store: Store
    chosen: list[PlannedRun]
    statuses: dict[str, Status]
    retry_failed: bool
    ids: list[str]
    only: Collection[str] = ()
    choices: Choices = field(default_factory=Choices)

    def meta(self) -> dict[str, Any]:
        """experiment.json, with what only a look at the data and at the results tells of the phases."""
        meta = self.experiment.meta()
        if self.experiment.phases:
            passes = dict.fromkeys(self.experiment.phases.trials, 0)
            for run_id, run in zip(self.ids, self.experiment.runs, strict=True):
                if run.phase == "tune":
                    passes[run.label] += self.passes[run_id]
            meta["phases"]["tune"]["passes"] = passes
            meta["phases"]["superseded"] = self.choices.superseded(self.store)
        return meta

    @cached_property
    def to_be_chosen(self) -> list[PlannedRun]:
        """The final runs of this launch whose settings are not chosen yet; see `Experiment.to_be_chosen`."""
        return [run for run in self.experiment.to_be_chosen() if not self.only or run.label in self.only]

    @cached_property
    def to_do(self) -> list[PlannedRun]:
        """The chosen runs that would start now, each once, the longest first, so that none is left alone at the end."""
        wanted = ("missing", "partial", "failed") if self.retry_failed else ("missing", "partial")
        waiting = [(run_id, run) for run_id, run in self._runs.items() if self.statuses[run_id] in wanted]
        return [run for _, run in sorted(waiting, key=lambda pair: -self.passes[pair[0]])]

    @cached_property
    def _runs(self) -> dict[str, PlannedRun]:
        """The chosen runs by run_id; the first label that has one names it."""
        chosen = {id(run) for run in self.chosen}
        runs: dict[str, PlannedRun] = {}
        for run_id, run in zip(self.ids, self.experiment.runs, strict=True):
            if id(run) in chosen:
                runs.setdefault(run_id, run)
        return runs

    @cached_property
    def passes(self) -> dict[str, int]:
        """Forward-backward passes of every run, by run_id; of those whose settings are to be chosen too."""
        sizes: dict[str, int] = {}
        found = {}
        planned = zip(self.ids, self.experiment.runs, strict=True)
        for run_id, run in (*planned, *((run.spec.run_id, run) for run in self.to_be_chosen)):
            condition = run.condition_text
            if condition not in sizes:
                sizes[condition] = load_task(run.spec).train_examples()
            found[run_id] = _passes(run.spec, learned_from(sizes[condition], run.spec.data, run.spec.phase))
        return found

    def count(self, *statuses: Status) -> int:
        """How many of the chosen runs stand so."""
        counts = Counter(self.statuses[run_id] for run_id in self._runs)
        return sum(counts[status] for status in statuses)


def make_plan(experiment: Experiment, store: Store, only: Collection[str] = (), retry_failed: bool = False) -> Plan:
    """Look at every run's folder; in an experiment with phases, plan the final runs of what tuning has led to.

    Args:
        only: labels to run; all if empty.
        retry_failed: failed runs are to be done again.

    Raises:
        BadValue: `only` names no label of the experiment.
        BenchError: the task cannot have its labels replaced, or results or checkpoints on disk are damaged or
            foreign: all of those are told.
    """
    choices = Choices()
    if experiment.phases:
        choices = choose(experiment, store)
        experiment = experiment.with_final(choices.chosen)
    for label in only:
        if label not in experiment.labels:
            raise BadValue(f"--only {label}", [f"no such optimizer; {nearest(label, experiment.labels)}"])
    for spec in {run.condition_text: run.spec for run in experiment.runs}.values():
        check_label_noise(load_task(spec), spec.data.label_noise)
    ids = [run.spec.run_id for run in experiment.runs]
    statuses = _statuses(store, dict.fromkeys(ids))
    chosen = [run for run in experiment.runs if not only or run.label in only]
    return Plan(experiment, store, chosen, statuses, retry_failed, ids, only, choices)


def _statuses(store: Store, ids: Iterable[str]) -> dict[str, Status]:
    """Where every run stands; a checkpoint that one would go on from is looked into."""
    statuses: dict[str, Status] = {}
    faults = []
    for folder, status in store.statuses(ids):
        try:
            if isinstance(status, BenchError):
                raise status
            statuses[folder.run_id] = status
            if status in ("partial", "failed") and folder.checkpoint.exists():
                checkpoint.load(folder.checkpoint, folder.run_id)
        except BenchError as error:
            faults.append(str(error))
    if faults:
        raise BenchError("\n".join(faults))
    return statuses


def _passes(spec: RunSpec, train_size: int) -> int:
    per_step = optimizers[spec.optimizer.name].passes(spec.optimizer.params)
    return round(spec.train.epochs * steps_per_epoch(train_size, spec.train.batch_size) * per_step)
