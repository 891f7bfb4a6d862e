"""The `bench` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.errors import BenchError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from bench.launch.plan import Plan
    from bench.launch.run import Launched
    from bench.records import Results
    from bench.store import Status


class _Commands(click.Group):
    """Tells the nearest command for one that does not exist."""

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name = arguments[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            context.fail(f'no command "{name}"; {nearest(name, self.list_commands(context))}')
        return super().resolve_command(context, arguments)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sam-bench", prog_name="bench")
def cli() -> None:
    """Does SAM beat SGD and Adam, by how much, and at what price?

    EXPERIMENT is a name under experiments/ or the path of a TOML file.
    """


def main() -> None:
    """Entry point: a mistake of the user's is one message and exit status 2, never a traceback."""
    try:
        cli()
    except BenchError as error:
        click.secho(f"Error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
        sys.exit(2)
    except BrokenPipeError:  # `bench table ... | head`
        sys.stderr.close()
        sys.exit(0)


_out = click.option(
    "--out", type=click.Path(path_type=Path), default=Path("results"), show_default=True, help="Folder of all results."
)
_set = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key (train.epochs=10). Repeatable."
)


def _set_data_dir(context: click.Context, parameter: click.Parameter, folder: Path | None) -> None:
    """Workers are told in the environment, as they are of everything that is no part of a run."""
    if folder is not None:
        os.environ["BENCH_DATA"] = str(folder.resolve())


_data_dir = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    expose_value=False,
    callback=_set_data_dir,
    help="Where data sets and weights are. [default: $BENCH_DATA, else ~/.cache/sam-bench]",
)


# ---- running -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("experiment")
@_set
@click.option("--seeds", type=click.IntRange(min=1), help="Run seeds 0..N-1 instead of the file's.")
@click.option("--only", multiple=True, metavar="LABEL", help="Run this optimizer only. Repeatable.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at once. [default: one a GPU, else one a core]")
@click.option("--jobs-per-gpu", type=click.IntRange(min=1), default=1, help="Runs at once on each GPU. [default: 1]")
@_out
@_data_dir
@click.option("--dry-run", is_flag=True, help="Show every run that would start, and what it costs; start none.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first run that fails.")
@click.option("--retry-failed", is_flag=True, help="Do failed runs again, from their checkpoints.")
@click.option(
    "--checkpoint-minutes", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Time between two."
)
def run(
    experiment: str,
    overrides: tuple[str, ...],
    seeds: int | None,
    only: tuple[str, ...],
    jobs: int | None,
    jobs_per_gpu: int,
    out: Path,
    dry_run: bool,
    fail_fast: bool,
    retry_failed: bool,
    checkpoint_minutes: float,
) -> None:
    """Do the runs that are missing; collect records, tables and figures; print the tables.

    A finished run is never repeated; a half run goes on from its checkpoint; a failed one waits for --retry-failed.
    """
    from rich.console import Console

    from bench.experiment import find

    find(experiment)  # a wrong name is told before torch is imported
    from bench.analysis import render, tables
    from bench.launch import run as launch

    plan = launch.plan(experiment, out=out, overrides=overrides, seeds=seeds, only=only, retry_failed=retry_failed)
    console = Console(stderr=True)
    _tell_plan(plan, console)
    if dry_run:
        _print_runs(plan)
        launch.estimate(plan, jobs=jobs, jobs_per_gpu=jobs_per_gpu, console=console)
        return
    launched = launch.execute(
        plan,
        jobs=jobs,
        jobs_per_gpu=jobs_per_gpu,
        fail_fast=fail_fast,
        checkpoint_minutes=checkpoint_minutes,
        console=console,
    )
    built = tables.build(launched.results)
    if not launched.kept:
        render.write(built, launched.folder)
        if launched.results.records["status"].eq("done").any():
            _write_figures(launched.results, launched.folder)
    render.show(built, Console())
    _tell_outcome(launched, console)
    if launched.outcome.interrupted and not launched.outcome.failed and not launched.outcome.disk:
        sys.exit(130)
    if launched.outcome.failed or launched.outcome.disk or (plan.count("failed") and not retry_failed):
        sys.exit(1)


@cli.command()
@click.argument("experiment")
@_set
@_data_dir
def prepare(experiment: str, overrides: tuple[str, ...]) -> None:
    """Download and check the data and weights that an experiment needs; runs themselves never download.

    For a cluster's login node, or a machine that will be offline.
    """
    from bench.experiment import find

    find(experiment)
    from bench import data
    from bench.launch.run import prepare as fetch

    fetch(experiment, overrides)
    print(f"{experiment}: data and weights are ready in {data.data_folder()}")


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


def _print_runs(plan: Plan) -> None:
    for run in plan.to_do:
        passes = plan.passes[run.spec.run_id]
        print(f"{run.spec.run_id}  {run.name}: {passes:,} passes")


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
        console.print(f"Records, tables and figures are in {launched.folder}", highlight=False, soft_wrap=True)


# ---- reading -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("experiment")
@_set
@click.option("--seeds", type=click.IntRange(min=1))
@_out
def status(experiment: str, overrides: tuple[str, ...], seeds: int | None, out: Path) -> None:
    """Where every run of an experiment stands."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from bench.launch.run import plan as make
    from bench.store import reason_in

    plan = make(experiment, out=out, overrides=overrides, seeds=seeds)
    states: tuple[Status, ...] = ("done", "running", "partial", "missing", "diverged", "failed")
    table = Table("optimizer", *states, box=None)
    for label in plan.experiment.labels:
        runs = {run.spec.run_id for run in plan.experiment.runs if run.label == label}
        counts = Counter(plan.statuses[run_id] for run_id in runs)
        table.add_row(label, *(str(counts[state] or "·") for state in states))
    console = Console()
    console.print(table)
    for run in plan.experiment.runs:
        if plan.statuses[run.spec.run_id] == "failed":
            error = reason_in(plan.store.run(run.spec.run_id).error() or "")
            console.print(f"failed: {run.name}: {error}", highlight=False, markup=False)


@cli.command()
@click.argument("experiment")
@click.option(
    "--format", "format_", type=click.Choice(["terminal", "md", "tex", "csv"]), default="terminal", show_default=True
)
@_out
def table(experiment: str, format_: str, out: Path) -> None:
    """Print the tables, and write them as Markdown, LaTeX and CSV under results/EXPERIMENT/tables."""
    from rich.console import Console

    from bench import records
    from bench.analysis import render, tables

    folder = _results_folder(experiment, out)
    built = tables.build(records.read(folder))
    render.write(built, folder)
    if format_ == "terminal":
        render.show(built, Console())
    else:
        print("\n\n".join(render.render(one, format_).rstrip("\n") for one in built))


@cli.command()
@click.argument("experiment")
@_out
def plot(experiment: str, out: Path) -> None:
    """Draw the figures, PNG and PDF, under results/EXPERIMENT/figures."""
    from bench import records

    folder = _results_folder(experiment, out)
    for path in _write_figures(records.read(folder), folder):
        print(path)


@cli.command("list")
@click.argument("what", type=click.Choice(["tasks", "models", "optimizers", "experiments"]), required=False)
def list_(what: str | None) -> None:
    """What there is: tasks, models, optimizers and their hyperparameters, experiments."""
    if what in (None, "experiments"):
        _list_experiments()
    if what != "experiments":
        _list_registered(what)


def _list_experiments() -> None:
    import tomllib

    from bench.experiment import experiment_folders

    click.secho("experiments", bold=True)
    for folder in experiment_folders():
        for path in sorted(folder.glob("*.toml")):
            try:
                title = tomllib.loads(path.read_text(encoding="utf-8")).get("title", "")
            except (OSError, ValueError) as error:
                title = f"(broken: {error})"
            print(f"  {path.stem:<20} {title}")


def _list_registered(what: str | None) -> None:
    from bench import registry

    registry.load_builtins()
    for kind, entries in (
        ("tasks", registry.tasks),
        ("models", registry.models),
        ("optimizers", registry.optimizers),
    ):
        if what not in (None, kind):
            continue
        click.secho(kind, bold=True)
        for entry in entries:
            print(f"  {entry.name:<20} {entry.description}")
            if (names := entry.names()) != [entry.name]:
                print(f"  {'':<20} {', '.join(names)}")
            settings = [
                name if field.is_required() else f"{name}={field.default!r}"
                for name, field in entry.schema.model_fields.items()
            ]
            if entry.wraps_base:
                settings = ["base", *settings, "and the base's own"]
            if settings:
                print(f"  {'':<20} {', '.join(settings)}")


def _results_folder(experiment: str, out: Path) -> Path:
    """The folder of results for an experiment's name, its file, or the folder itself."""
    name = Path(experiment).stem if experiment.endswith(".toml") else experiment
    for folder in (out / name, Path(experiment)):
        if (folder / "experiment.json").exists():
            return folder
    known = [path.parent.name for path in out.glob("*/experiment.json")]
    raise BenchError(f'{out} holds no results of "{name}"; {nearest(name, known)}; `bench run` makes them')


def _write_figures(results: Results, folder: Path) -> list[Path]:
    from bench.analysis import plots  # matplotlib takes a second to import

    return plots.build(results, folder)
