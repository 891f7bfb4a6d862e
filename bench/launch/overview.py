"""An experiment as it stands while others work on it, read again and again from its folder; nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.core.errors import BenchError
from bench.core.experiment import Experiment, PlannedRun
from bench.launch import compiling, tuning
from bench.launch.estimate import kind
from bench.launch.plan import Plan, whole
from bench.store import collecting
from bench.store.collecting import NOTHING, Found
from bench.store.run_folder import FINISHED, RunFolder, Status, Store, live

DECIDING = ("experiment.json", "records.csv", tuning.FILE, compiling.FILE)
"""Files of an experiment that say which runs it has; a launch replaces them while it goes on."""

SECONDS = ("setup_seconds", "train_seconds", "eval_seconds")
"""Parts of a run's time."""


@dataclass(frozen=True)
class Running:
    """A run in progress.

    Attributes:
        now: see `live`.
        curve: the values so far of what it is followed by: its validation score, else its training loss.
        of: what that is, the metric's key or "loss".
    """

    run: PlannedRun
    now: Mapping[str, Any]
    curve: list[float]
    of: str


@dataclass(frozen=True)
class Best:
    """The configuration that the rule of `bench.store.selection` would choose by the runs that are done.

    Attributes:
        value: its mean validation score.
        done, planned: its runs with a score, and all of them.
    """

    condition: str
    label: str
    config: str
    value: float
    done: int
    planned: int


@dataclass(frozen=True)
class Overview:
    """The state of an experiment at one moment.

    Attributes:
        statuses: by run_id.
        runs: how many there are, with final runs whose settings are not chosen yet.
        passes_done: of all runs, those in progress too.
        seconds: time that runs have taken so far, summed over all of them.
        left: seconds until the last run ends, with as many at once as there are now; None where unknown.
        failed: what went wrong, by the name of the run.
        faults: files that cannot be read, in words.
        over: nothing is left to do.
    """

    plan: Plan
    statuses: Mapping[str, Status]
    runs: int
    running: list[Running]
    best: list[Best]
    passes_done: float
    seconds: float
    left: float | None
    failed: Mapping[str, str]
    faults: list[str]
    over: bool

    @property
    def passes(self) -> int:
        """Return the passes of all runs, with those of final runs whose settings are not chosen yet."""
        return sum(self.plan.passes.values())


@dataclass
class _Progress:
    """Sums over runs, from which the time left follows."""

    passes: float = 0.0
    seconds: float = 0.0
    waiting: Counter[str] = field(default_factory=Counter)
    """Passes that are left, by kind of run."""
    known: dict[str, list[float]] = field(default_factory=dict)
    """Passes and the seconds that they took here, by kind of run."""

    def left(self, at_once: int) -> float | None:
        """Return the seconds that the waiting passes take, with a number of runs at once; None if unknown."""
        passes, seconds = (sum(one[n] for one in self.known.values()) for n in (0, 1))
        if not at_once or not passes:
            return None
        # A kind of which nothing has been seen yet counts as the mean of the others.
        rates = {name: spent / done for name, (done, spent) in self.known.items() if done}
        return sum(count * rates.get(name, seconds / passes) for name, count in self.waiting.items()) / at_once

    def saw(self, name: str, passes: float, seconds: float) -> None:
        pair = self.known.setdefault(name, [0.0, 0.0])
        pair[0] += passes
        pair[1] += seconds


class Observer:
    """Reads an experiment's folder; files that are being written, torn or damaged never end it.

    Args:
        asked: the experiment as its file describes it.
        store: its results.
    """

    def __init__(self, asked: Experiment, store: Store) -> None:
        self.asked, self.store = asked, store
        self._ended: dict[str, Found] = {}
        self._runs: dict[str, PlannedRun] = {}
        """Every run once, though several optimizers may share it."""
        self._kinds: dict[str, str] = {}
        self._open: dict[str, str] = {}
        """The kinds of final runs whose settings are not chosen yet."""
        self._fault: list[str] = []
        self._seen: list[tuple[int, int]] = []
        self._plan = self._bare()
        self._plan_again()

    def look(self) -> Overview:
        """Return the state of the experiment now."""
        if self._signatures() != self._seen:
            self._plan_again()
        overview = self._look()
        # The last run of tuning has ended: final runs can be planned now, also before the launch has written them down.
        if overview.over and self._plan.to_be_chosen:
            self._plan_again()
            overview = self._look()
        return overview

    # ---- which runs there are ----------------------------------------------------------------------------------

    def _plan_again(self) -> None:
        # Taken first: a file that is replaced meanwhile is then read once more.
        self._seen = self._signatures()
        self._fault.clear()
        try:
            self._plan = self._planned()
        except BenchError as error:
            # The plan that was made before still holds; so does, at the beginning, that of the file alone.
            self._fault.append(str(error))
        self._ended = {run_id: found for run_id, found in self._ended.items() if not found.held}
        # All that takes a while for thousands of runs is done here, once, and not at every look.
        self._runs = {}
        for run_id, run in zip(self._plan.ids, self._plan.experiment.runs, strict=True):
            self._runs.setdefault(run_id, run)
        self._kinds = {run_id: kind(run.spec) for run_id, run in self._runs.items()}
        open_ = {run.spec.run_id: run for run in self._plan.to_be_chosen}
        self._open = {run_id: kind(run.spec) for run_id, run in open_.items() if run_id not in self._runs}

    def _planned(self) -> Plan:
        asked = compiling.as_decided(self.asked, self.store.folder)
        held = collecting.held(self.store)
        experiment, choices = whole(asked, self.store, held, held)
        ids = [run.spec.run_id for run in experiment.runs]
        return Plan(asked, experiment, self.store, [*experiment.runs], {}, False, ids, held, choices=choices)

    def _bare(self) -> Plan:
        ids = [run.spec.run_id for run in self.asked.runs]
        return Plan(self.asked, self.asked, self.store, [*self.asked.runs], {}, False, ids, NOTHING)

    def _signatures(self) -> list[tuple[int, int]]:
        return [_signature(self.store, name) for name in DECIDING]

    # ---- how far they are --------------------------------------------------------------------------------------

    def _look(self) -> Overview:
        runs, there, key = self._runs, self.store.present(), self._plan.experiment.metric["key"]
        looked = {run_id: self._found(run_id, there) for run_id in runs}
        statuses = {run_id: found.status for run_id, found in looked.items()}
        progress, running = _Progress(), []
        for run_id, run in runs.items():
            self._add(progress, run_id, run, looked[run_id])
            if statuses[run_id] == "running" and (now := live(self.store.run(run_id), key)):
                running.append(Running(run, now, *_curve(self.store.run(run_id), key)))
        for run_id, name in self._open.items():
            progress.waiting[name] += self._plan.passes[run_id]
        return Overview(
            plan=self._plan,
            statuses=statuses,
            runs=len(runs) + len(self._open),
            running=running,
            best=list(_best(self._plan, looked)),
            passes_done=progress.passes,
            seconds=progress.seconds,
            left=progress.left(len(running)),
            failed={runs[one].name: _reason(looked[one]) for one in runs if statuses[one] == "failed"},
            faults=[*self._fault, *_faults(looked)],
            over=all(status in (*FINISHED, "failed") for status in statuses.values()),
        )

    def _found(self, run_id: str, there: set[str]) -> Found:
        """Return what there is of a run; a finished run is read once."""
        known = self._ended.get(run_id)
        if known is not None and (known.held or run_id in there):
            return known
        found = collecting.look(self.store.run(run_id), self._plan.held, there, whole=False)
        if found.status in FINISHED and not found.faults:
            self._ended[run_id] = found
        return found

    def _add(self, progress: _Progress, run_id: str, run: PlannedRun, found: Found) -> None:
        passes = self._plan.passes[run_id]
        if found.status in FINISHED:
            seconds = sum(_finite(found.row.get(name)) for name in SECONDS)
            progress.passes += passes
            progress.seconds += seconds
            # What other machines took says nothing about the time that is left here.
            if not found.held:
                progress.saw(self._kinds[run_id], _finite(found.row.get("passes")), seconds)
            return
        point = self.store.run(run_id).last_point() if found.status != "missing" else {}
        share = min(1.0, max(0.0, point.get("epoch", 0) / run.spec.train.epochs))
        seconds = _finite(point.get("train_seconds"))
        progress.passes += share * passes
        progress.seconds += seconds
        if found.status == "failed":
            return
        progress.waiting[self._kinds[run_id]] += passes * (1 - share)
        progress.saw(self._kinds[run_id], _finite(point.get("passes")), seconds)


def _signature(store: Store, name: str) -> tuple[int, int]:
    try:
        status = (store.folder / name).stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _finite(value: Any) -> float:
    """Return a number of a file as it is; 0 if it is missing or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 0.0


def _faults(looked: Mapping[str, Found]) -> Iterator[str]:
    """Yield what is damaged of runs that count nevertheless; those that do not count as failed, for that reason."""
    for found in looked.values():
        if found.status != "failed":
            yield from found.faults


def _reason(found: Found) -> str:
    return str(found.row.get("error") or "")


def _curve(folder: RunFolder, key: str) -> tuple[list[float], str]:
    """Return the values by which a run is followed, and what they are; never test numbers."""
    try:
        points = folder.curve()
    except BenchError:  # damaged: what is wrong is told when the run is over
        points = []
    for column, what in ((f"val_{key}", key), ("train_loss", "loss")):
        # A refit trains on the validation examples too and has no score on them.
        values = [point[column] for point in points if isinstance(point.get(column), int | float)]
        if finite := [float(value) for value in values if math.isfinite(value)]:
            return finite, what
    return [], key


def _best(plan: Plan, looked: Mapping[str, Found]) -> Iterator[Best]:
    """Yield the best configuration so far of every optimizer in every condition, by validation scores alone."""
    from bench.store import selection

    experiment, key = plan.experiment, plan.experiment.metric["key"]
    tuned = experiment.phases.trials if experiment.phases else {}
    # The final runs of what was tuned confirm a choice; they are no part of it. Hashing run_ids takes a while: they are
    # known.
    pairs = [
        (run, looked[run_id])
        for run_id, run in zip(plan.ids, experiment.runs, strict=True)
        if run.phase != "final" or run.label not in tuned
    ]
    if not any(found.status in FINISHED for _, found in pairs):
        return
    frame = selection.candidates(
        tuning.validation([run for run, _ in pairs], [found for _, found in pairs], key), experiment.metric
    )
    chosen = frame[frame["chosen"]]
    for (condition, label, config), row in zip(chosen.index, chosen.to_dict("records"), strict=True):
        if done := int(row[f"val_{key}:count"]):
            yield Best(condition, label, config, float(row[f"val_{key}:mean"]), done, int(row["planned"]))
