"""`bench run`: plan an experiment, do its missing runs, collect all results."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench.config import file
from bench.core import terminal
from bench.core.data_folder import data_folder_given
from bench.core.errors import BenchError, counted
from bench.core.experiment import Experiment
from bench.core.run_options import DEFAULTS, RunOptions
from bench.launch import compiling, tuning
from bench.launch.local.pool import run_local
from bench.launch.local.slots import Slot, slots
from bench.launch.outcome import Outcome
from bench.launch.plan import Plan, make_plan
from bench.launch.prepare import check_data, fetch_files
from bench.launch.progress import Follow, ProgressDisplay
from bench.launch.shard import Shard, parse
from bench.launch.slurm import job_status
from bench.sinks.following import Follower
from bench.store import collecting, records
from bench.store.records import Results
from bench.store.run_folder import FINISHED, Store

RUNS, SECONDS, SHARE = 10, 60.0, 50
"""A launch collects after this many runs or seconds, with a pause of at least SHARE times the last collection."""


@dataclass(frozen=True)
class Launched:
    """The results of a launch.

    Attributes:
        results: all that is there now, of this launch, of those before, and of other machines.
        folder: where they are written.
    """

    plan: Plan
    outcome: Outcome
    results: Results
    folder: Path

    @property
    def nothing_to_show(self) -> bool:
        """Return whether the launch was stopped before any run of the experiment had ended, now or earlier."""
        ended = self.results.records["status"].isin([*FINISHED, "failed"]).any()
        return self.outcome.interrupted and not (ended or self.outcome.disk)


def plan(
    name: str,
    *,
    out: Path = Path("results"),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Collection[str] = (),
    retry_failed: bool = False,
    redo: bool = False,
    shard: Shard | None = None,
    results_name: str | None = None,
) -> Plan:
    """Read an experiment and find out which runs are done. See `run` for the arguments and errors."""
    experiment = file.load(file.find(name), overrides, seeds, results_name)
    store = Store(out / experiment.name)
    return make_plan(experiment, store, only, retry_failed, redo=redo, shard=shard)


def run(
    name: str,
    *,
    out: Path = Path("results"),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Collection[str] = (),
    retry_failed: bool = False,
    redo: bool = False,
    shard: str | None = None,
    results_name: str | None = None,
    jobs: int | None = None,
    jobs_per_gpu: int = 1,
    gpus: Sequence[int] | None = None,
    fail_fast: bool = False,
    checkpoint_minutes: float = 5.0,
    keep_weights: bool = False,
    data_dir: Path | None = None,
    log: Sequence[str] = (),
    console: Console | None = None,
) -> Launched:
    """Do what an experiment still misses, on this machine, and collect its results.

    Args:
        name: an experiment under experiments/, or the path of a TOML file.
        out: the folder of all results; this experiment's are in `out/<experiment>`.
        overrides: "KEY=VALUE" each, over the file ("train.epochs=10"); the results go to a folder of their own.
        results_name: what that folder is called; default: the experiment's name with the overrides.
        seeds: seeds 0..seeds-1 instead of the file's; in an experiment with phases so many final ones.
        only: labels of the optimizers to run; all if empty.
        retry_failed: do failed runs again, from their checkpoints.
        redo: do runs again that only the records hold, whose folders are not here.
        shard: "2/5" does the second of five equal parts of what is missing, the same part on whichever machine.
        jobs: runs at once; default one a GPU, else one a core.
        jobs_per_gpu: runs at once on each GPU, where `jobs` does not say.
        gpus: the GPUs to use, numbered as torch sees them; default all.
        fail_fast: stop at the first failure.
        checkpoint_minutes: minutes between two checkpoints of a run.
        keep_weights: leave the final weights of each run in its folder, for `bench measure`.
        data_dir: the folder of data and weights; default BENCH_DATA, else one in the user's cache.
        log: tools that show the runs while they go on, as NAME or NAME=WHERE: "tensorboard", "mlflow", "wandb".
        console: where progress is shown; default standard error.

    Raises:
        BenchError: the input is wrong, or the results folder cannot be written; nothing has been started.

    Example:
        >>> bench.run("digits_noise", seeds=3).results.records[["optimizer", "seed", "test_acc"]]
    """
    options = RunOptions(
        jobs=jobs,
        jobs_per_gpu=jobs_per_gpu,
        gpus=None if gpus is None else tuple(gpus),
        fail_fast=fail_fast,
        checkpoint_minutes=checkpoint_minutes,
        keep_weights=keep_weights,
    )
    with data_folder_given(data_dir):
        planned = plan(
            name,
            out=out,
            overrides=overrides,
            seeds=seeds,
            only=only,
            retry_failed=retry_failed,
            redo=redo,
            shard=parse(shard) if shard else None,
            results_name=results_name,
        )
        console = console or terminal.console(stderr=True)
        with Follower(log, planned.store, planned.experiment.meta(), console) as follower:
            launched = execute(planned, options, console=console, follow=follower.follow)
            follower.finish(launched.results)
            return launched


def execute(
    planned: Plan,
    options: RunOptions = DEFAULTS,
    *,
    console: Console | None = None,
    follow: Follow = lambda run, over: None,
) -> Launched:
    """Do the runs of a plan: tuning runs first, then final runs of the chosen configurations. See `run`.

    Args:
        follow: see `ProgressDisplay`.
    """
    console = console or terminal.console(stderr=True)
    # 1. Refuse what cannot work before anything is written. Runs in SLURM's queue are not done twice.
    planned = _without_queued(planned, console)
    shares = slots(options.jobs, options.jobs_per_gpu or 1, options.gpus, _processes(planned))
    planned.store.check_writable()
    planned.check_records()
    # 2. Decide on compilation first: run_ids depend on it.
    planned = decided(planned, shares, console)
    if planned.experiment.compiling:
        compiling.write_down(planned.experiment.compiling, planned.store)
    # 3. One round per phase: tuning runs, then the final runs of what was chosen by them.
    outcome, collector = Outcome(), Collector(planned, console)
    following: Plan | None = planned
    while following is not None:
        planned = following
        # On disk before the final runs start: a launch that is killed goes on with the same choice.
        tuning.write_down(planned.choices, planned.experiment, planned.store)
        if planned.to_do:
            # Before workers start, which never download.
            fetch_files(planned.experiment)
            check_data(planned)
            passes = {run.spec.run_id: planned.passes[run.spec.run_id] for run in planned.to_do}
            with ProgressDisplay(passes, planned.experiment.metric, console, follow) as display:
                outcome += run_local(
                    planned.to_do,
                    planned.store,
                    display,
                    shares=shares,
                    options=options,
                    meanwhile=collector,
                )
        # A launch that was stopped does not begin the next phase.
        over = outcome.interrupted or outcome.disk or (options.fail_fast and outcome.failed)
        following = None if over else next_phase(planned)
        following = following and _without_queued(following, console)
    # Also after a stop: what has finished by then is in the records.
    return collect(planned, outcome)


def decided(planned: Plan, shares: Sequence[Slot], console: Console) -> Plan:
    """Return the plan with `train.compile = "auto"` decided; an open decision is measured and printed."""
    if not compiling.is_open(planned.asked):
        return planned
    # Measuring takes real steps, so it needs the data of the runs.
    fetch_files(planned.experiment)
    check_data(planned)
    # The decision holds for the whole experiment, so the final runs to come count too.
    runs = [*planned.to_do, *planned.to_be_chosen]
    with ProgressDisplay(planned.passes, planned.experiment.metric, console) as display:
        decision = compiling.decide(runs, planned.passes, planned.store, display, shares)
        display.say(f'train.compile = "auto": {decision["why"]}')
    return _remade(planned, compiling.with_decision(planned.asked, decision))


def _remade(planned: Plan, asked: Experiment) -> Plan:
    """Return a new plan for the same launch with another version of the experiment."""
    return make_plan(asked, planned.store, planned.only, planned.retry_failed, redo=planned.redo, shard=planned.shard)


def next_phase(planned: Plan) -> Plan | None:
    """Plan the final runs of configurations that can be chosen only now; None if there are none."""
    if not planned.to_be_chosen:
        return None
    known = {run.spec.run_id for run in planned.chosen}  # not those that only an earlier choice has led to
    following = _remade(planned, planned.asked)
    fresh = [run for run in following.chosen if run.phase == "final" and run.spec.run_id not in known]
    # None without new runs, or `execute` would go round for ever.
    return replace(following, chosen=fresh) if fresh else None


def collect(planned: Plan, outcome: Outcome) -> Launched:
    """Collect all results of an experiment, from whichever launch, and write its records."""
    return Launched(planned, outcome, _collected(planned), planned.store.folder)


def _collected(planned: Plan, changed: Collection[str] | None = None) -> Results:
    """Collect all results of an experiment, write its records, and return the results.

    Args:
        changed: see `records.collect`.
    """
    store = planned.store
    with store.collecting():
        # Read again under the lock: another launch may have written records since ours was planned.
        now = planned.with_records(collecting.held(store))
        now.check_records()
        results = collecting.collect(store, now.meta(), now.experiment.runs, now.held, changed)
        records.publish(results, store.folder)
    return results


class Collector:
    """Collects results during a launch, so that a machine that is lost loses no more than its last runs.

    That is after every tenth run, or a minute after one has ended, but never for more than a fiftieth of the time.
    """

    def __init__(self, planned: Plan, console: Console) -> None:
        self.planned, self.console = planned, console
        self.fresh: set[str] = set()
        self.last, self.cost = time.monotonic(), 0.0

    def __call__(self, run_id: str | None = None) -> None:
        """Note a run that has just ended, and collect if it is time to."""
        self.fresh |= {run_id} if run_id else set()
        waited = time.monotonic() - self.last
        # The last condition limits collecting to 1/SHARE of the time, however large the experiment is.
        if not self.fresh or (len(self.fresh) < RUNS and waited < SECONDS) or waited < SHARE * self.cost:
            return
        started = time.monotonic()
        try:
            _collected(self.planned, self.fresh)
        except BenchError as error:  # the runs themselves are safe, and the end of the launch will meet it again
            self.console.print(f"Not collected yet: {error}", style="yellow", highlight=False, markup=False)
        # After an error too: the collection at the end looks into every folder.
        self.fresh.clear()
        self.last = time.monotonic()
        self.cost = self.last - started


def estimate(planned: Plan, options: RunOptions = DEFAULTS, *, console: Console) -> Outcome:
    """Print how long a plan would take on this machine, and try one step per configuration; see `execute`.

    Where it is still to be measured whether runs are compiled, this is about them as they are written.

    Returns:
        With the configurations that would fail.
    """
    planned.check_records()
    if compiling.is_open(planned.asked):
        planned = _remade(planned, compiling.with_decision(planned.asked, {"compile": False, "why": ""}))
    planned = _without_queued(planned, console)
    shares = slots(options.jobs, options.jobs_per_gpu or 1, options.gpus, _processes(planned))
    runs = [*planned.to_do, *planned.to_be_chosen]
    if not runs:
        return Outcome()
    with ProgressDisplay(planned.passes, planned.experiment.metric, console) as display:
        return run_local(runs, planned.store, display, shares=shares, only_estimate=True)


def prepare(name: str, overrides: Sequence[str] = ()) -> None:
    """Fetch and check the data and the weights of an experiment; see `run` for the arguments.

    Raises:
        BenchError: something is missing and cannot be fetched, or has the wrong content.
    """
    fetch_files(file.load(file.find(name), overrides))


def _without_queued(planned: Plan, console: Console) -> Plan:
    """Return the plan without the runs that jobs on SLURM will do."""
    queued, warning = job_status.elsewhere(planned.store, [run.spec.run_id for run in planned.to_do])
    if warning:
        console.print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if not queued:
        return planned
    console.print(
        f"Left to SLURM, in its queue already: {counted(len(queued), 'run')} (`bench cancel` removes them)",
        style="yellow",
        highlight=False,
    )
    return replace(planned, chosen=[run for run in planned.chosen if run.spec.run_id not in queued])


def _processes(planned: Plan) -> set[int]:
    """Return the numbers of processes per run among the runs that would start now."""
    # With final runs to come: the machine is divided once, for both phases.
    return {run.spec.train.processes for run in (*planned.to_do, *planned.to_be_chosen)}
