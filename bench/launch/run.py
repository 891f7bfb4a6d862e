"""`bench run`: plan an experiment, do what is missing, collect what there is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from bench import experiment as experiments
from bench import records
from bench.launch import phases, queue
from bench.launch.display import Display
from bench.launch.local import Outcome, run_local
from bench.launch.plan import Plan, make_plan
from bench.launch.prepare import fetch
from bench.launch.slots import slots
from bench.records import Results
from bench.store import FINISHED, Store


@dataclass(frozen=True)
class Launched:
    """What a launch leaves.

    Attributes:
        results: all that is there now, of this launch and of those before.
        folder: where they are written.
        kept: finished runs in `folder` made on another machine, which these results must not replace: nothing was
            written over them.
    """

    plan: Plan
    outcome: Outcome
    results: Results
    folder: Path
    kept: int


def plan(
    name: str,
    *,
    out: Path = Path("results"),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Collection[str] = (),
    retry_failed: bool = False,
) -> Plan:
    """Read an experiment and look at what of it is done. See `run` for the arguments and errors."""
    experiment = experiments.load(experiments.find(name), overrides, seeds)
    return make_plan(experiment, Store(out / experiment.name), only, retry_failed)


def run(
    name: str,
    *,
    out: Path = Path("results"),
    overrides: Sequence[str] = (),
    seeds: int | None = None,
    only: Collection[str] = (),
    retry_failed: bool = False,
    jobs: int | None = None,
    jobs_per_gpu: int = 1,
    gpus: Sequence[int] | None = None,
    fail_fast: bool = False,
    checkpoint_minutes: float = 5.0,
    console: Console | None = None,
) -> Launched:
    """Do what an experiment still misses, on this machine, and collect its results.

    Args:
        name: an experiment under experiments/, or the path of a TOML file.
        out: the folder of all results; this experiment's are in `out/<experiment>`.
        overrides: "KEY=VALUE" each, over the file ("train.epochs=10"); the results go to a folder of their own.
        seeds: seeds 0..seeds-1 instead of the file's; in an experiment with phases so many final ones.
        only: labels of the optimizers to run; all if empty.
        retry_failed: do failed runs again, from their checkpoints.
        jobs: runs at once; default one a GPU, else one a core.
        jobs_per_gpu: runs at once on each GPU, where `jobs` does not say.
        gpus: the GPUs to use, numbered as torch sees them; default all.
        fail_fast: stop at the first failure.
        checkpoint_minutes: time between two checkpoints of a run.
        console: where progress is shown; default standard error.

    Raises:
        BenchError: the input is wrong, or the results folder cannot be written; nothing has been started.

    Example:
        >>> bench.run("digits_noise", seeds=3).results.records[["optimizer", "seed", "test_acc"]]
    """
    planned = plan(name, out=out, overrides=overrides, seeds=seeds, only=only, retry_failed=retry_failed)
    return execute(
        planned,
        jobs=jobs,
        jobs_per_gpu=jobs_per_gpu,
        gpus=gpus,
        fail_fast=fail_fast,
        checkpoint_minutes=checkpoint_minutes,
        console=console,
    )


def execute(
    planned: Plan,
    *,
    jobs: int | None = None,
    jobs_per_gpu: int = 1,
    gpus: Sequence[int] | None = None,
    fail_fast: bool = False,
    checkpoint_minutes: float = 5.0,
    console: Console | None = None,
) -> Launched:
    """Do a plan, the runs of tuning first, then the final ones of what is chosen by them. See `run`."""
    console = console or Console(stderr=True)
    planned = _without_queued(planned, console)
    shares = slots(jobs, jobs_per_gpu, gpus, _processes(planned))
    planned.store.check_writable()
    records.finished(planned.store.folder)  # an unreadable records.csv stops us now, not after hours
    outcome = Outcome()
    following: Plan | None = planned
    while following is not None:
        planned = following
        phases.write_down(planned.choices, planned.experiment, planned.store)
        if planned.to_do:
            fetch(planned.experiment)
            passes = {run.spec.run_id: planned.passes[run.spec.run_id] for run in planned.to_do}
            with Display(passes, planned.experiment.metric, console) as display:
                outcome += run_local(
                    planned.to_do,
                    planned.store,
                    display,
                    shares=shares,
                    fail_fast=fail_fast,
                    checkpoint_minutes=checkpoint_minutes,
                )
        over = outcome.interrupted or outcome.disk or (fail_fast and outcome.failed)
        following = None if over else next_phase(planned)
        following = following and _without_queued(following, console)
    return collect(planned, outcome)


def next_phase(planned: Plan) -> Plan | None:
    """The final runs of what could not be chosen when a plan was made, and now can; None if there are none."""
    if not planned.to_be_chosen:
        return None
    known = set(planned.ids)
    following = make_plan(planned.experiment, planned.store, planned.only, planned.retry_failed)
    fresh = [run for run in following.chosen if run.phase == "final" and run.spec.run_id not in known]
    return replace(following, chosen=fresh) if fresh else None


def collect(planned: Plan, outcome: Outcome) -> Launched:
    """Collect all there is of an experiment, whoever did it, and write it down."""
    store = planned.store
    held = records.finished(store.folder)
    with store.collecting():
        results = records.collect(store, planned.meta(), planned.experiment.runs)
        kept = _to_be_kept(held, results, store, whole=not planned.experiment.to_be_chosen())
        if not kept:
            records.publish(results, store.folder)
    return Launched(planned, outcome, results, store.folder, len(kept))


def estimate(
    planned: Plan,
    *,
    jobs: int | None = None,
    jobs_per_gpu: int = 1,
    gpus: Sequence[int] | None = None,
    console: Console,
) -> None:
    """Say how long a plan would take on this machine, measured on a few steps; see `execute` for the arguments."""
    planned = _without_queued(planned, console)
    shares = slots(jobs, jobs_per_gpu, gpus, _processes(planned))
    runs = [*planned.to_do, *planned.to_be_chosen]
    if runs:
        with Display(planned.passes, planned.experiment.metric, console) as display:
            run_local(runs, planned.store, display, shares=shares, only_estimate=True)


def prepare(name: str, overrides: Sequence[str] = ()) -> None:
    """Fetch and check the data and the weights of an experiment; see `run` for the arguments.

    Raises:
        BenchError: something is missing and cannot be had, or is not what it should be.
    """
    fetch(experiments.load(experiments.find(name), overrides))


def _without_queued(planned: Plan, console: Console) -> Plan:
    """The plan without the runs that jobs on SLURM will do."""
    queued, trouble = queue.elsewhere(planned.store, [run.spec.run_id for run in planned.to_do])
    if trouble:
        console.print(trouble, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if not queued:
        return planned
    console.print(
        f"{len(queued)} runs are in SLURM's queue, and left to it (`bench cancel` takes them out).",
        style="yellow",
        highlight=False,
    )
    return replace(planned, chosen=[run for run in planned.chosen if run.spec.run_id not in queued])


def _processes(planned: Plan) -> set[int]:
    """By how many processes the runs are done that would start now."""
    return {run.spec.train.processes for run in (*planned.to_do, *planned.to_be_chosen)}


def _to_be_kept(held: set[str], results: Results, store: Store, whole: bool = True) -> set[str]:
    """Finished runs of another machine in records.csv that these results must not replace.

    Their folders are not here to collect them from again. A part of an experiment never replaces them; a whole one
    does, unless it is only a part of what they are (fewer seeds).

    Args:
        whole: False while final runs are not even planned, since nothing is chosen yet.
    """
    finished = results.records.status.isin(FINISHED)
    here = set(results.records.run_id[finished])
    elsewhere = {run_id for run_id in held - here if store.run(run_id).result() is None}
    planned = set(results.records.run_id)
    return set() if whole and finished.all() and not planned <= held else elsewhere
