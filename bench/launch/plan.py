"""The remaining runs of an experiment and their cost, computed before anything starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

from bench.core.errors import BadValue, BenchError, counted, nearest
from bench.core.experiment import Experiment, PlannedRun
from bench.core.meta import Meta
from bench.core.spec import RunSpec
from bench.data.splits import learned_from
from bench.launch import compiling, leftover
from bench.launch.shard import Shard, part
from bench.launch.tuning import Choices, choose
from bench.store import collecting
from bench.store.collecting import NOTHING, Held
from bench.store.run_folder import FINISHED, Status, Store
from bench.tasks.base import Task, check_label_noise
from bench.training import checkpoint
from bench.training.passes import passes_per_step
from bench.training.step import load_task, steps_per_epoch


@dataclass(frozen=True)
class Plan:
    """Every run of an experiment with its status, in the order of the file.

    Attributes:
        asked: the experiment as it was asked for.
        experiment: the same, extended by what the records hold: further seeds; final runs of an earlier choice.
        chosen: the runs that this launch is about (`--only`, `--seeds`, `--shard`).
        statuses: by run_id.
        ids: the run_id of every run of the experiment, in its order: hashes, which take a while where runs are many.
        held: the finished runs that the records hold; they count as done unless `redo` is set.
        only: the labels that this launch is about; all if empty.
        choices: what tuning has led to, in an experiment with phases.
    """

    asked: Experiment
    experiment: Experiment
    store: Store
    chosen: list[PlannedRun]
    statuses: dict[str, Status]
    retry_failed: bool
    ids: list[str]
    held: Held
    only: Collection[str] = ()
    choices: Choices = field(default_factory=Choices)
    redo: bool = False
    shard: Shard | None = None

    def meta(self) -> Meta:
        """Return experiment.json, with entries on phases, parts and shards that depend on data and results."""
        meta = self.experiment.meta()
        # Merged results name the parts that they are made of; a launch that adds runs keeps the names.
        if "parts" in self.held.meta:
            meta["parts"] = self.held.meta["parts"]
        if self.shard:
            # Recorded, so that later launches of a shard divide the same runs again.
            meta["before_shards"] = sorted(_before_shards(self.trusted))
        if self.experiment.phases and (phases := meta.get("phases")):
            passes = dict.fromkeys(self.experiment.phases.trials, 0)
            for run_id, run in zip(self.ids, self.experiment.runs, strict=True):
                if run.phase == "tune":
                    passes[run.label] += self.passes[run_id]
            phases["tune"]["passes"] = passes
            phases["superseded"] = self.choices.superseded(self.store, self.held)
        return meta

    @property
    def trusted(self) -> Held:
        """Return the records that count as done."""
        return NOTHING if self.redo else self.held

    def with_records(self, held: Held) -> Plan:
        """Return the plan for the present records, which other processes on the experiment may have extended."""
        experiment, choices = whole(self.asked, self.store, held, held)
        # Thousands of run_ids take a while to hash: the known ones are used if the runs are the same.
        ids = self.ids if experiment.runs == self.experiment.runs else [run.spec.run_id for run in experiment.runs]
        return replace(self, experiment=experiment, choices=choices, ids=ids, held=held)

    @cached_property
    def strangers(self) -> list[leftover.Leftover]:
        """Return finished runs that exist only in the records and no longer belong to the experiment."""
        return leftover.strangers(self.experiment, self.store, self.ids, self.held)

    def refusal(self) -> str:
        """Return the reason to refuse a launch that would lose finished runs of the records; "" if there is none."""
        there, here = self.held.meta, self.asked
        # The defaults are our own values: without records there is nothing to refuse.
        of, overrides = there.get("of", here.of), there.get("overrides", list(here.overrides))
        if (of, overrides) != (here.of, list(here.overrides)):  # of another experiment under the same --name
            was = " ".join([of, *(f"--set {override}" for override in overrides)])
            return f"the results in {self.store.folder} are results of {was}; give the same settings, or another --name"
        if not self.strangers or self.redo:
            return ""
        return (
            f"the records in {self.store.folder} hold {counted(len(self.strangers), 'finished run')} of another "
            f"machine that are no part of {self.asked.name} as it is now: {'; '.join(leftover.told(self.strangers))}. "
            "They are neither mixed with others nor removed unasked: `bench clean` removes them from the records, "
            "--redo replaces the records, --name NAME leaves them and gives this experiment results of its own"
        )

    def check_records(self) -> None:
        """Raise BenchError if `refusal` gives a reason."""
        if words := self.refusal():
            raise BenchError(words)

    @cached_property
    def to_be_chosen(self) -> list[PlannedRun]:
        """Return the final runs of this launch whose settings are not chosen yet; see `Experiment.to_be_chosen`."""
        if not self.experiment.phases:
            return []
        waiting = self.experiment.with_final(self.choices.chosen).to_be_chosen()
        return [run for run in waiting if _is_asked(run, self.asked, self.only)]

    @cached_property
    def to_do(self) -> list[PlannedRun]:
        """Return the chosen runs that would start now, each once, the longest first.

        The longest run starts first so that no run is left alone at the end.
        """
        wanted = ("missing", "partial", "failed") if self.retry_failed else ("missing", "partial")
        waiting = [(run_id, run) for run_id, run in self._runs.items() if self.statuses[run_id] in wanted]
        return [run for _, run in sorted(waiting, key=lambda pair: -self.passes[pair[0]])]

    @cached_property
    def _runs(self) -> dict[str, PlannedRun]:
        """Return the chosen runs by run_id; the first label that has a run names it."""
        # By identity: one spec may stand under several labels, of which only some are chosen.
        chosen = {id(run) for run in self.chosen}
        runs: dict[str, PlannedRun] = {}
        for run_id, run in zip(self.ids, self.experiment.runs, strict=True):
            if id(run) in chosen:
                runs.setdefault(run_id, run)
        return runs

    @cached_property
    def passes(self) -> dict[str, int]:
        """Return the forward-backward passes of every run, by run_id, including runs whose settings are not chosen."""
        sizes: dict[str, tuple[Task, int]] = {}
        passes = {}
        planned = zip(self.ids, self.experiment.runs, strict=True)
        for run_id, run in (*planned, *((run.spec.run_id, run) for run in self.to_be_chosen)):
            condition = run.condition_text
            # Only a condition changes the training set, so each one's task is loaded once.
            if condition not in sizes:
                task = load_task(run.spec)
                sizes[condition] = task, task.train_examples()
            task, examples = sizes[condition]
            learned = learned_from(examples, run.spec.data, run.spec.phase)
            passes[run_id] = _passes(run.spec, task.blocks_of(learned))
        return passes

    def count(self, *statuses: Status) -> int:
        """Return how many of the chosen runs have one of these statuses."""
        counts = Counter(self.statuses[run_id] for run_id in self._runs)
        return sum(counts[status] for status in statuses)

    def count_held(self) -> int:
        """Return how many of the chosen runs count as done by the records alone."""
        there = self.store.present()
        return sum(
            self.statuses[run_id] in FINISHED and run_id in self.trusted.rows and run_id not in there
            for run_id in self._runs
        )


def make_plan(
    experiment: Experiment,
    store: Store,
    only: Collection[str] = (),
    retry_failed: bool = False,
    *,
    redo: bool = False,
    shard: Shard | None = None,
) -> Plan:
    """Return the plan, from run folders and records; with phases, include the final runs of chosen configurations.

    Args:
        only: labels to run; all if empty.
        retry_failed: failed runs are to be done again.
        redo: runs that only the records hold are to be done again.
        shard: the part of the missing runs to do; all if None.

    Raises:
        BadValue: `only` names no label of the experiment, or `shard` is of one that is still to be measured
            (`bench.launch.compiling`).
        BenchError: the task cannot have its labels replaced; or records, results or checkpoints on disk are damaged or
            foreign: all of those are told.
    """
    # 1. Check the request.
    for label in only:
        if label not in experiment.labels:
            raise BadValue(f"--only {label}", [f"no such optimizer; {nearest(label, experiment.labels)}"])
    # 2. Fix what run_ids depend on. Shards are done on several machines, each of which might decide otherwise.
    experiment = compiling.as_decided(experiment, store.folder)
    if shard is not None:
        compiling.refuse_open(experiment, "--shard")
    # 3. Add what the records hold. With --redo they do not count as done, and nothing is chosen by them.
    held = collecting.held(store)
    trusted = NOTHING if redo else held
    asked, (experiment, choices) = experiment, whole(experiment, store, held, trusted)
    for spec in {run.condition_text: run.spec for run in experiment.runs}.values():
        check_label_noise(load_task(spec), spec.data.label_noise)
    # 4. Look at the disk: where each run stands.
    ids = [run.spec.run_id for run in experiment.runs]
    statuses = _statuses(store, dict.fromkeys(ids), trusted)
    # 5. Select the runs of this launch. A tuned place without a choice now may have final runs of an earlier one.
    tuned = asked.phases.trials if asked.phases else {}
    open_ = {run.place for run in experiment.runs if run.label in tuned} - {*choices.chosen}
    chosen = [run for run in experiment.runs if _is_asked(run, asked, only)]
    chosen = [run for run in chosen if run.phase != "final" or run.place not in open_]
    plan = Plan(asked, experiment, store, chosen, statuses, retry_failed, ids, held, only, choices, redo, shard)
    if shard is None:
        return plan
    # 6. Take a shard of what was missing when sharding began, so that finished runs do not move the division.
    missing = {run_id: run for run_id, run in plan._runs.items() if run_id not in _before_shards(trusted)}
    mine = part(missing, plan.passes, shard)
    return replace(plan, chosen=[run for run_id, run in plan._runs.items() if run_id in mine])


def whole(asked: Experiment, store: Store, held: Held, trusted: Held) -> tuple[Experiment, Choices]:
    """Return the experiment extended by the seeds and choices in its records, and the choices of tuning.

    Args:
        trusted: what of the records counts for choosing.
    """
    choices, experiment = Choices(), asked
    if asked.phases:
        choices = choose(asked, store, trusted)
        candidates = {(*run.place, run.config_text) for run in asked.tuning}
        finals = [row for row in held.rows.values() if row.get("phase") == "final"]
        before = {(row.get("condition", ""), row["optimizer"]): row.get("config", "") for row in finals}
        # The choice in the records stands until tuning has led to a new one.
        standing = {place: config for place, config in before.items() if (*place, config) in candidates}
        experiment = asked.with_final({**standing, **choices.chosen})
    # A launch with fewer seeds than the records must not drop the others from them.
    seeds = {row["seed"] for row in held.rows.values() if row.get("phase") != "tune"}
    if seeds <= {*asked.seeds}:
        return experiment, choices
    wide = experiment.with_seeds(sorted({*asked.seeds, *seeds}))
    # Seeds count only with a finished run of the experiment as it is now.
    known = {run.spec.seed for run in wide.runs if run.phase != "tune" and run.spec.run_id in held.rows}
    return experiment.with_seeds([*asked.seeds, *sorted(known - {*asked.seeds})]), choices


def _is_asked(run: PlannedRun, asked: Experiment, only: Collection[str]) -> bool:
    return (not only or run.label in only) and (run.phase == "tune" or run.spec.seed in asked.seeds)


def _before_shards(held: Held) -> set[str]:
    """Return the runs that were finished before the missing runs were divided into shards.

    The runs that this machine has finished of its own shard since are not among them, or its shard would change with
    each of them.
    """
    return {*held.meta.get("before_shards", held.rows)}


def _statuses(store: Store, ids: Iterable[str], held: Held = NOTHING) -> dict[str, Status]:
    """Return the status of every run, after checking each checkpoint that a run would resume from."""
    statuses: dict[str, Status] = {}
    faults = []
    for folder, status in store.statuses(ids):
        try:
            if isinstance(status, BenchError):
                raise status
            # The run was finished, perhaps on another machine, and its folder here is missing or incomplete.
            if status not in FINISHED and folder.run_id in held.rows:
                status = held.rows[folder.run_id]["status"]
            statuses[folder.run_id] = status
            # Read now, so that damage is reported before the launch and not hours into it.
            if status in ("partial", "failed"):
                checkpoint.check(folder)
        except BenchError as error:
            faults.append(str(error))
    if faults:
        raise BenchError("\n".join(faults))
    return statuses


def _passes(spec: RunSpec, train_size: int) -> int:
    steps = spec.train.epochs * steps_per_epoch(train_size, spec.train.batch_size)
    # Passes per step may be a fraction: a mean over steps with and without a second pass.
    return round(steps * passes_per_step(spec.optimizer))
