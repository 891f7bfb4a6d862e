"""`bench run`, on this machine or on a SLURM cluster, and `bench cancel`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import clean, status
from bench.cli import options as cli_options
from bench.core import terminal
from bench.core.errors import BadValue, BenchError, counted
from bench.core.run_options import RunOptions

if TYPE_CHECKING:
    from rich.console import Console

    from bench.analysis.study import Study
    from bench.launch.plan import Plan
    from bench.launch.run import Launched
    from bench.launch.shard import Shard
    from bench.launch.slurm.profile import Profile
    from bench.launch.slurm.watch import Followed, Lost
    from bench.sinks.following import Follower


def _shard(context: click.Context, parameter: click.Parameter, text: str | None) -> Shard | None:
    from bench.launch.shard import parse  # pydantic takes a moment to import

    return parse(text) if text else None


def _time(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    from bench.launch.slurm.profile import minutes  # pydantic takes a moment to import

    if text is None:
        return None
    try:
        return minutes(text)
    except ValueError as error:
        raise BadValue(f"--time {text}", [str(error)]) from error


STOPPED = "Stopped. Run the same command again to continue."
_NUMBER = {"type": cli_options.COUNT, "metavar": "N"}
SLURM: dict[str, dict[str, Any]] = {
    "profile": {
        "type": click.Path(path_type=Path, dir_okay=False),
        "help": "TOML file with [slurm]. [default: ~/.config/sam-bench/slurm.toml]",
    },
    "wait": {"is_flag": True, "help": "Follow the jobs to their end and collect the results."},
    "partition": {"help": "SLURM's partition.", "metavar": "NAME"},
    "account": {"help": "SLURM's account.", "metavar": "NAME"},
    "qos": {"help": "SLURM's quality of service.", "metavar": "NAME"},
    "constraint": {"help": "Features that nodes must have.", "metavar": "TEXT"},
    "time": {"callback": _time, "metavar": "LIMIT", "help": "Time limit: minutes, HH:MM:SS or D-HH:MM:SS."},
    "nodes": {**_NUMBER, "help": "Nodes per job, where train.processes > 1. [default: 1]"},
    "mem_gb": {"type": cli_options.POSITIVE, "metavar": "GB", "help": "Memory per job and node."},
    "gpus_per_job": {"type": click.IntRange(min=0, max=10_000), "metavar": "N", "help": "GPUs per job and node."},
    "cpus_per_job": {**_NUMBER, "help": "Cores per job and node."},
    "runs_per_job": {**_NUMBER, "help": "Runs per job. [default: as many as run at once]"},
    "max_jobs": {**_NUMBER, "help": "Jobs at once."},
    "max_array_size": {**_NUMBER, "help": "Jobs per array. [default: the site's limit]"},
    "grace_seconds": {
        "type": click.IntRange(min=10, max=2**31 - 1),
        "metavar": "N",
        "help": "Seconds before the time limit at which runs save.",
    },
    "setup": {"multiple": True, "metavar": "LINE", "help": "Shell line before Python starts. Repeatable."},
    "sbatch": {"multiple": True, "metavar": "KEY=VALUE", "help": "Any parameter of sbatch. Repeatable."},
}
"""The options that only a launch on SLURM understands. But for the first two they are settings of a `Profile`."""

IN_PROFILE = {"gpus_per_job": "gpus", "cpus_per_job": "cpus"}
"""Options with another name in a `Profile`."""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


HEADINGS = {
    "What to run": ("--set", "--name", "--seeds", "--only", "--retry-failed", "--redo", "--shard", "--dry-run"),
    "Where and how": (
        *("--on", "--jobs", "--jobs-per-gpu", "--gpus", "--out", "--data-dir", "--checkpoint-minutes", "--fail-fast"),
        *("--keep-weights", "--log", "--help"),
    ),
    "With --on slurm": tuple(map(_flag, SLURM)),
}
"""How `bench run --help` lists the options."""


def _slurm_options(command: Any) -> Any:
    # The decorator that is applied last stands first in --help: reversed, the options keep their order.
    for name, settings in reversed(SLURM.items()):
        command = click.option(_flag(name), name, **settings)(command)
    return command


@click.command(cls=cli_options.Grouped, headings=HEADINGS)
@click.argument("experiment")
@cli_options.which
@click.option("--seeds", type=cli_options.COUNT, metavar="N", help="Number of seeds; with [tune], of final seeds.")
@click.option("--only", multiple=True, metavar="LABEL", help="Run this optimizer only. Repeatable.")
@click.option(
    "--on",
    type=click.Choice(["local", "slurm"]),
    default="local",
    show_default=True,
    help="Run here, or as SLURM jobs.",
)
@cli_options.out
@click.option("--dry-run", is_flag=True, help="List runs and costs, try one step per kind, start no run.")
@click.option("--retry-failed", is_flag=True, help="Retry failed runs from their checkpoints.")
@click.option("--redo", is_flag=True, help="Repeat finished runs whose folders are not here.")
@click.option("--shard", callback=_shard, metavar="N/COUNT", help="Do one part of the missing runs: 2/5.")
@cli_options.sinks(
    "--log", "Show runs in tensorboard, mlflow or wandb. Repeatable. [default: ~/.config/sam-bench/log.toml]"
)
@cli_options.run_options
@_slurm_options
def run(
    experiment: str,
    overrides: tuple[str, ...],
    results_name: str | None,
    seeds: int | None,
    only: tuple[str, ...],
    on: str,
    out: Path,
    options: RunOptions,
    dry_run: bool,
    retry_failed: bool,
    redo: bool,
    shard: Shard | None,
    sinks: tuple[str, ...],
    **slurm: Any,
) -> None:
    """Do the missing runs of an experiment and print its tables.

    A finished run is never repeated; a stopped run resumes from its checkpoint.
    """
    from bench.config.file import find

    path = find(experiment)  # a wrong name is told before torch is imported
    profile = _profile(slurm, options) if on == "slurm" else None
    # Options that were not given are None, False or an empty tuple.
    if profile is None and (given := [_flag(name) for name in SLURM if slurm[name]]):
        raise BadValue(" ".join(given), ["only with --on slurm"])
    # It imports torch while this process does. Where results are, perhaps nothing is left for it to do.
    if profile is None and not (out / path.stem).exists():
        from bench.launch.local.server import start_fork_server

        start_fork_server()
    from bench.launch import run as launch
    from bench.sinks.following import Follower

    plan = launch.plan(
        experiment,
        out=out,
        overrides=overrides,
        seeds=seeds,
        only=only,
        retry_failed=retry_failed,
        redo=redo,
        shard=shard,
        results_name=results_name,
    )
    console = terminal.console(stderr=True)
    status.tell_plan(plan, console)
    clean.tell_leftovers(plan, console)
    if profile is not None:
        # Opened here, too: a sink that cannot be used is told before jobs are submitted.
        with Follower(() if dry_run else sinks, plan.store, plan.experiment.meta(), console) as follower:
            _on_slurm(plan, profile, options, slurm["wait"], dry_run, console, follower)
        return
    if dry_run:
        status.print_runs(plan)
        tried = launch.estimate(plan, options, console=console)
        if tried.interrupted:
            sys.exit(130)
        if tried.failed:
            count = len(tried.failed)
            console.print(f"{count} configuration{'s' * (count != 1)} would fail.", style="bold red", highlight=False)
            sys.exit(1)
        return
    # `_show` needs them at the end; here they are imported while the fork server still imports torch.
    from bench.analysis import render, report, tables  # noqa: F401

    with Follower(sinks, plan.store, plan.experiment.meta(), console) as follower:
        launched = launch.execute(plan, options, console=console, follow=follower.follow)
        _show(launched, console)
        follower.finish(launched.results)
    outcome = launched.outcome
    # A failure counts more than Ctrl-C in the exit status.
    if outcome.interrupted and not outcome.failed and not outcome.disk:
        sys.exit(130)
    # Runs that failed in an earlier launch count as well, unless this launch tried them again.
    failed_before = plan.count("failed") and not retry_failed
    if outcome.failed or outcome.disk or launched.results.damaged or failed_before:
        sys.exit(1)


@click.command()
@click.argument("experiment")
@cli_options.which
@cli_options.out
def cancel(experiment: str, overrides: tuple[str, ...], results_name: str | None, out: Path) -> None:
    """Cancel the SLURM jobs of an experiment.

    Finished runs stay, and later launches resume the others from their checkpoints.
    """
    from bench.config import file
    from bench.launch.slurm import job_status, queue
    from bench.store.run_folder import Store

    name = file.load(file.find(experiment), overrides, results_name=results_name).name
    done = job_status.cancel(Store(out / name))
    if done.jobs or not done.others:
        print(f"{name}: cancelled {queue.ranges(done.jobs)}" if done.jobs else f"{name}: no jobs in the queue")
    if done.others:
        raise BenchError("\n".join(f"{name}: not cancelled: {line}" for line in done.others))


# ---- on SLURM ------------------------------------------------------------------------------------------------


def _profile(slurm: dict[str, Any], options: RunOptions) -> Profile:
    from bench.launch.slurm import profile

    if options.gpus is not None:
        raise BadValue("--gpus", ["SLURM decides which GPUs a job gets; set their number by --gpus-per-job N"])
    # By the names of the profile, in which None stands for a flag that was not given.
    flags = {IN_PROFILE.get(name, name): value for name, value in slurm.items() if name not in ("profile", "wait")}
    flags |= {"jobs": options.jobs, "jobs_per_gpu": options.jobs_per_gpu}
    flags |= {"setup": list(slurm["setup"]) or None, "sbatch": profile.assignments(slurm["sbatch"])}
    return profile.load(slurm["profile"], flags)


def _on_slurm(
    plan: Plan,
    profile: Profile,
    options: RunOptions,
    wait: bool,
    dry_run: bool,
    console: Console,
    follower: Follower,
    lost: Sequence[Lost] = (),
) -> None:
    """Submit missing runs; with `wait`, follow all phases to their end.

    Args:
        lost: runs of earlier phases that ended without a result, each with the reason.
    """
    from bench.launch import run as launch
    from bench.launch.slurm import job_status, queue, submit
    from bench.launch.slurm import profile as profiles

    if ignored := profiles.ignored_variables():
        text = f"Ignored: {', '.join(ignored)}; set the resources of jobs by flags (--sbatch) or in the [slurm] table."
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if dry_run:
        for script in submit.scripts(plan, profile):
            print(script)
        return
    submitted = submit.submit(plan, profile, options)
    if submitted.queued:
        console.print(f"In the queue already: {counted(len(submitted.queued), 'run')}", highlight=False)
    if submitted.hidden:
        left = counted(len(submitted.hidden), "run")
        text = f"Not submitted: {left} {job_status.describe_hidden(submitted.hidden)}"
        console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)
    if submitted.jobs:
        count = f"{counted(len(submitted.new), 'run')} in {counted(len(submitted.jobs), 'job')}"
        console.print(f"Submitted {count}: {queue.ranges(submitted.jobs)}", highlight=False, soft_wrap=True)
    if submitted.jobs and not wait:
        console.print(
            "`bench status` shows their progress, `bench cancel` stops them. Run the same command again to collect "
            f"finished runs in {plan.store.folder}; with --wait it waits for all of them."
            + (" It submits the final runs once tuning is over." if plan.to_be_chosen else ""),
            highlight=False,
            soft_wrap=True,
        )
        return
    # From here on jobs are waited for, or nothing was left to submit: what is finished is collected.
    followed = _follow(plan, submitted.queued | submitted.new if wait else set(), console, follower)
    lost = [*lost, *followed.lost]
    # Tuning may be over: the final runs are then submitted in the same way.
    if wait and (following := launch.next_phase(plan)):
        status.tell_plan(following, console)
        _on_slurm(following, profile, options, wait, dry_run, console, follower, lost)
        return
    launched = launch.collect(plan, followed.outcome)
    _show(launched, console)
    follower.finish(launched.results)
    for run, words in lost:
        console.print(f"not finished: {run.name}: {words}", highlight=False, markup=False, soft_wrap=True)
    if lost or launched.results.records["status"].eq("failed").any():
        sys.exit(1)


def _follow(plan: Plan, run_ids: set[str], console: Console, follower: Follower) -> Followed:
    """Watch runs to their end."""
    from bench.launch.progress import ProgressDisplay
    from bench.launch.run import Collector
    from bench.launch.slurm.watch import Followed, follow

    # Each run once, though several optimizers may share it.
    runs = list({run.spec.run_id: run for run in plan.experiment.runs if run.spec.run_id in run_ids}.values())
    followed = Followed()
    if runs:
        passes = {run.spec.run_id: plan.passes[run.spec.run_id] for run in runs}
        with ProgressDisplay(passes, plan.experiment.metric, console, follower.follow) as display:
            followed = follow(runs, plan.store, display, meanwhile=Collector(plan, console))
    if followed.detached:
        console.print(
            "No longer watching; the jobs continue. The same command watches again, `bench cancel` stops them.",
            style="yellow",
            highlight=False,
        )
        sys.exit(130)
    return followed


# ---- telling -------------------------------------------------------------------------------------------------


def _show(launched: Launched, console: Console) -> None:
    """Write tables, figures and the report; print the tables, the answer and the outcome of the launch."""
    from bench.analysis import report, tables
    from bench.analysis.render.terminal import show
    from bench.analysis.study import Study

    if launched.nothing_to_show:
        console.print(STOPPED, style="yellow")
        return
    study = Study(launched.results)
    built = tables.build(study)
    # With a full disk the report cannot be written; the tables are still printed.
    if not launched.outcome.disk:
        report.build(study, built, launched.folder)
    show(built, terminal.console())
    say_answer(study)
    _tell_outcome(launched, console)


def say_answer(study: Study) -> None:
    """Print the question of the experiment and its answer."""
    from bench.analysis.answer import answer, question
    from bench.analysis.render.terminal import say

    say(question(study), answer(study), terminal.console())


def _tell_outcome(launched: Launched, console: Console) -> None:
    plan, outcome = launched.plan, launched.outcome
    for run, reason in outcome.failed:
        log = plan.store.run(run.spec.run_id).path / "error.txt"
        console.print("failed", style="bold red", end="")
        console.print(f" {run.name}: {reason}\n       see {log}", soft_wrap=True)
    for fault in launched.results.damaged:
        console.print(f"damaged: {fault}", style="yellow", soft_wrap=True)
    if outcome.disk:
        console.print(f"Error: {outcome.disk}", style="bold red", highlight=False, soft_wrap=True)
    if outcome.elsewhere:
        console.print(f"Being done by another launch: {counted(outcome.elsewhere, 'run')}", highlight=False)
    if plan.to_be_chosen and not outcome.interrupted:
        waiting = ", ".join(dict.fromkeys(" ".join(filter(None, run.place)) for run in plan.to_be_chosen))
        console.print(
            f"No final runs yet for {waiting}: tuning is not finished, or none of its runs succeeded. Run the same "
            "command again to continue.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    if outcome.interrupted:
        console.print(STOPPED, style="yellow")
    page = launched.folder / "report.html"
    console.print(
        f"Records, tables and figures are in {launched.folder}, the report is {page}", highlight=False, soft_wrap=True
    )
