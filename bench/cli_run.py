"""`bench run`, on this machine or on a SLURM cluster, and `bench cancel`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench import cli_options
from bench.errors import BadValue

if TYPE_CHECKING:
    from rich.console import Console

    from bench.launch.follow import Followed, Lost
    from bench.launch.plan import Plan
    from bench.launch.profile import Profile
    from bench.launch.run import Launched
    from bench.records import Results


def _gpu_numbers(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise BadValue(f"--gpus {text}", ["must be whole numbers with commas between them: --gpus 0,1,3"])
    gpus = tuple(int(number) for number in numbers)
    if len(set(gpus)) < len(gpus):
        raise BadValue(f"--gpus {text}", ["the same GPU twice; --jobs-per-gpu says how many runs share one"])
    return gpus


def _time(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    from bench.launch.profile import minutes  # pydantic takes a moment to import

    if text is None:
        return None
    try:
        return minutes(text)
    except ValueError as error:
        raise BadValue(f"--time {text}", [str(error)]) from error


SLURM_FLAGS = {
    "profile": "--profile",
    "wait": "--wait",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
    "constraint": "--constraint",
    "time": "--time",
    "nodes": "--nodes",
    "mem_gb": "--mem-gb",
    "gpus_per_job": "--gpus-per-job",
    "cpus": "--cpus-per-job",
    "runs_per_job": "--runs-per-job",
    "max_jobs": "--max-jobs",
    "max_array_size": "--max-array-size",
    "grace_seconds": "--grace-seconds",
    "setup": "--setup",
    "sbatch": "--sbatch",
}
"""What only a launch on SLURM understands, by the name of the argument."""


def _slurm_options(command: Any) -> Any:
    number = click.IntRange(min=1)
    helps: dict[str, dict[str, Any]] = {
        "profile": {
            "type": click.Path(path_type=Path, dir_okay=False),
            "help": "TOML file with a table [slurm]. [default: ~/.config/sam-bench/slurm.toml, if there]",
        },
        "wait": {"is_flag": True, "help": "Follow the jobs, and collect the results at the end."},
        "partition": {"help": "SLURM partition."},
        "account": {"help": "SLURM account."},
        "qos": {"help": "SLURM quality of service."},
        "constraint": {"help": "Features that nodes must have."},
        "time": {"callback": _time, "metavar": "LIMIT", "help": "Time limit: minutes, HH:MM:SS, D-HH:MM:SS."},
        "nodes": {"type": number, "help": "Nodes of a job, for runs with train.processes. [default: 1]"},
        "mem_gb": {"type": click.FloatRange(min=0, min_open=True), "help": "Memory of a job, on each node."},
        "gpus_per_job": {"type": click.IntRange(min=0), "help": "GPUs of a job, on each node."},
        "cpus": {"type": number, "help": "Cores of a job, on each node."},
        "runs_per_job": {"type": number, "help": "Runs that a job does. [default: as many as it does at once]"},
        "max_jobs": {"type": number, "help": "Jobs at once."},
        "max_array_size": {"type": number, "help": "Jobs an array. [default: the site's limit]"},
        "grace_seconds": {"type": click.IntRange(min=10), "help": "Signal this long before the time limit."},
        "setup": {"multiple": True, "metavar": "LINE", "help": "Shell line before Python starts. Repeatable."},
        "sbatch": {"multiple": True, "metavar": "KEY=VALUE", "help": "Any parameter of sbatch. Repeatable."},
    }
    for name, flag in reversed(SLURM_FLAGS.items()):
        settings = helps[name] | {"help": f"SLURM: {helps[name]['help']}"}
        command = click.option(flag, name, **settings)(command)
    return command


@click.command()
@click.argument("experiment")
@cli_options.set_
@click.option("--seeds", type=click.IntRange(min=1), help="Run N seeds (of a tuned experiment: N final ones).")
@click.option("--only", multiple=True, metavar="LABEL", help="Run this optimizer only. Repeatable.")
@click.option("--on", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="Where to.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at once. [default: one a GPU, else one a core]")
@click.option("--jobs-per-gpu", type=click.IntRange(min=1), help="Runs at once on each GPU. [default: 1]")
@click.option("--gpus", callback=_gpu_numbers, metavar="0,1,...", help="GPUs of this machine to use. [default: all]")
@cli_options.out
@cli_options.data_dir
@click.option("--dry-run", is_flag=True, help="Show every run that would start, and what it costs; start none.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first run that fails.")
@click.option("--retry-failed", is_flag=True, help="Do failed runs again, from their checkpoints.")
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Time between two."
)
@cli_options.keep_weights
@_slurm_options
def run(
    experiment: str,
    overrides: tuple[str, ...],
    seeds: int | None,
    only: tuple[str, ...],
    on: str,
    jobs: int | None,
    jobs_per_gpu: int | None,
    gpus: tuple[int, ...] | None,
    out: Path,
    dry_run: bool,
    fail_fast: bool,
    retry_failed: bool,
    checkpoint_minutes: float,
    **slurm: Any,
) -> None:
    """Do the runs that are missing; collect records, tables and figures; print the tables.

    A finished run is never repeated; a half run goes on from its checkpoint; a failed one waits for --retry-failed.
    With --on slurm the runs that are not in the queue yet are submitted; --wait stays to collect them.
    """
    from rich.console import Console

    from bench.experiment import find

    find(experiment)  # a wrong name is told before torch is imported
    profile = _profile(slurm, jobs, jobs_per_gpu, gpus) if on == "slurm" else None
    if profile is None and (given := [flag for name, flag in SLURM_FLAGS.items() if slurm[name]]):
        raise BadValue(" ".join(given), ["only with --on slurm"])
    from bench.launch import run as launch

    plan = launch.plan(experiment, out=out, overrides=overrides, seeds=seeds, only=only, retry_failed=retry_failed)
    console = Console(stderr=True)
    _tell_plan(plan, console)
    if profile is not None:
        _on_slurm(plan, profile, slurm["wait"], dry_run, checkpoint_minutes, fail_fast, console)
        return
    machine: dict[str, Any] = {"jobs": jobs, "jobs_per_gpu": jobs_per_gpu or 1, "gpus": gpus}
    if dry_run:
        _print_runs(plan)
        launch.estimate(plan, **machine, console=console)
        return
    launched = launch.execute(
        plan, **machine, fail_fast=fail_fast, checkpoint_minutes=checkpoint_minutes, console=console
    )
    _show(launched, console)
    if launched.outcome.interrupted and not launched.outcome.failed and not launched.outcome.disk:
        sys.exit(130)
    if launched.outcome.failed or launched.outcome.disk or (plan.count("failed") and not retry_failed):
        sys.exit(1)


@click.command()
@click.argument("experiment")
@cli_options.set_
@cli_options.out
def cancel(experiment: str, overrides: tuple[str, ...], out: Path) -> None:
    """Cancel the SLURM jobs of an experiment; finished runs stay, half ones go on from their checkpoints."""
    from bench import experiment as experiments
    from bench.launch import queue
    from bench.store import Store

    name = experiments.load(experiments.find(experiment), overrides).name
    cancelled = queue.cancel(Store(out / name))
    print(f"{name}: cancelled {queue.ranges(cancelled)}" if cancelled else f"{name}: no jobs in the queue")


# ---- on SLURM ------------------------------------------------------------------------------------------------


def _profile(
    slurm: dict[str, Any], jobs: int | None, jobs_per_gpu: int | None, gpus: tuple[int, ...] | None
) -> Profile:
    from bench.launch import profile

    if gpus is not None:
        raise BadValue("--gpus", ["which GPUs a job gets is SLURM's to say; --gpus-per-job N says how many"])
    flags = {name: value for name, value in slurm.items() if name not in ("profile", "wait", "gpus_per_job")}
    flags |= {"gpus": slurm["gpus_per_job"], "jobs": jobs, "jobs_per_gpu": jobs_per_gpu}
    flags |= {"setup": list(slurm["setup"]) or None, "sbatch": profile.assignments(slurm["sbatch"])}
    return profile.load(slurm["profile"], flags)


def _on_slurm(
    plan: Plan,
    profile: Profile,
    wait: bool,
    dry_run: bool,
    checkpoint_minutes: float,
    fail_fast: bool,
    console: Console,
    lost: Sequence[Lost] = (),
) -> None:
    """Submit what is missing; with `wait` see all phases through. `lost` are the runs of those before."""
    from bench.launch import queue, slurm
    from bench.launch import run as launch

    if dry_run:
        for script in slurm.scripts(plan, profile):
            print(script)
        return
    submitted = slurm.submit(plan, profile, checkpoint_minutes=checkpoint_minutes, fail_fast=fail_fast)
    if submitted.queued:
        console.print(f"{len(submitted.queued)} runs are in the queue already.", highlight=False)
    if submitted.jobs:
        count = f"{len(submitted.new)} runs in {len(submitted.jobs)} jobs"
        console.print(f"Submitted {count}: {queue.ranges(submitted.jobs)}", highlight=False, soft_wrap=True)
    if submitted.jobs and not wait:
        console.print(
            "`bench status` shows where they stand, `bench cancel` stops them; the same command again collects what is "
            f"done in {plan.store.folder}, with --wait it stays until all is."
            + (" It submits the final runs once tuning is over." if plan.to_be_chosen else ""),
            highlight=False,
            soft_wrap=True,
        )
        return
    followed = _follow(plan, submitted.queued | submitted.new if wait else set(), console)
    lost = [*lost, *followed.lost]
    if wait and (following := launch.next_phase(plan)):
        _tell_plan(following, console)
        _on_slurm(following, profile, wait, dry_run, checkpoint_minutes, fail_fast, console, lost)
        return
    launched = launch.collect(plan, followed.outcome)
    _show(launched, console)
    for run, words in lost:
        console.print(f"not finished: {run.name}: {words}", highlight=False, markup=False, soft_wrap=True)
    if lost or launched.results.records["status"].eq("failed").any():
        sys.exit(1)


def _follow(plan: Plan, run_ids: set[str], console: Console) -> Followed:
    """Watch runs to their end."""
    from bench.launch.display import Display
    from bench.launch.follow import Followed, follow

    runs = list({run.spec.run_id: run for run in plan.experiment.runs if run.spec.run_id in run_ids}.values())
    followed = Followed()
    if runs:
        passes = {run.spec.run_id: plan.passes[run.spec.run_id] for run in runs}
        with Display(passes, plan.experiment.metric, console) as display:
            followed = follow(runs, plan.store, display)
    if followed.detached:
        console.print(
            "No longer watching; the jobs go on. The same command watches again, `bench cancel` stops them.",
            style="yellow",
            highlight=False,
        )
        sys.exit(130)
    return followed


# ---- telling -------------------------------------------------------------------------------------------------


def _show(launched: Launched, console: Console) -> None:
    """Write tables, figures and the report, print the tables, and say what became of the launch."""
    from rich.console import Console as Terminal

    from bench.analysis import render, report, tables

    built = tables.build(launched.results)
    if not launched.kept and not launched.outcome.disk:
        report.build(launched.results, built, launched.folder)
    render.show(built, Terminal())
    say_answer(launched.results)
    _tell_outcome(launched, console)


def say_answer(results: Results) -> None:
    """Print what the experiment asks and what its numbers say to that."""
    from rich.console import Console as Terminal

    from bench.analysis import render
    from bench.analysis.answer import answer, question

    render.say(question(results), answer(results), Terminal())


def _tell_plan(plan: Plan, console: Console) -> None:
    passes = sum(plan.passes[run.spec.run_id] for run in plan.to_do)
    parts = [f"{plan.count('done', 'diverged')} done", f"{len(plan.to_do)} to do ({passes:,} passes)"]
    if plan.count("partial"):
        parts.append(f"{plan.count('partial')} of them from a checkpoint")
    if plan.count("running"):
        parts.append(f"{plan.count('running')} being done by another launch")
    if plan.count("failed") and not plan.retry_failed:
        parts.append(f"{plan.count('failed')} failed before (--retry-failed does them again)")
    console.print(f"{plan.experiment.name}: {', '.join(parts)}", highlight=False, soft_wrap=True)
    if plan.to_be_chosen:
        passes = sum(plan.passes[run.spec.run_id] for run in plan.to_be_chosen)
        waiting = f"then {len(plan.to_be_chosen)} final runs ({passes:,} passes) of what tuning chooses"
        console.print(f"{plan.experiment.name}: {waiting}", highlight=False, soft_wrap=True)
    for change in plan.choices.changed():
        console.print(change, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _print_runs(plan: Plan) -> None:
    for run in plan.to_do:
        passes = plan.passes[run.spec.run_id]
        print(f"{run.spec.run_id}  {run.name}: {passes:,} passes")
    for run in plan.to_be_chosen:
        print(f"{'-' * 12}  {run.name}, setting to be chosen: {plan.passes[run.spec.run_id]:,} passes")


def _tell_outcome(launched: Launched, console: Console) -> None:
    plan, outcome = launched.plan, launched.outcome
    for run, reason in outcome.failed:
        log = plan.store.run(run.spec.run_id).path / "error.txt"
        console.print(f"[bold red]failed[/] {run.name}: ", end="")
        console.print(f"{reason}\n       see {log}", highlight=False, markup=False, soft_wrap=True)
    if outcome.disk:
        console.print(f"Error: {outcome.disk}", style="bold red", highlight=False, soft_wrap=True)
    if outcome.elsewhere:
        console.print(f"{outcome.elsewhere} runs are being done by another launch.", highlight=False)
    if plan.to_be_chosen and not outcome.interrupted:
        waiting = ", ".join(dict.fromkeys(" ".join(filter(None, run.place)) for run in plan.to_be_chosen))
        console.print(
            f"No final runs yet of {waiting}: runs of tuning are not finished, or none could be. The same command "
            "goes on once they are.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    if outcome.interrupted:
        console.print("Stopped. The same command goes on from here.", style="yellow")
    if launched.kept:
        console.print(
            f"{launched.folder} holds {launched.kept} finished runs of another machine that are not finished here; its "
            "files were left alone. They are replaced once the same runs are finished here; until then --out DIR "
            "shows yours apart.",
            style="yellow",
            highlight=False,
        )
    else:
        page = launched.folder / "report.html"
        console.print(
            f"Records, tables and figures are in {launched.folder}, all of it in {page}",
            highlight=False,
            soft_wrap=True,
        )
