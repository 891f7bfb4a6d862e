"""The `bench` command. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from bench.cli import atlas, clean, doctor, evidence, options, watch
from bench.cli import run as cli_run
from bench.cli import status as cli_status
from bench.cli.new import new
from bench.cli.sync import sync
from bench.core import terminal
from bench.core.errors import BenchError, nearest

if TYPE_CHECKING:
    from bench.analysis.study import Study
    from bench.core.meta import Meta
    from bench.core.registry import Entry


class _Commands(click.Group):
    """A group of commands that suggests the nearest name for an unknown command."""

    def resolve_command(self, context: click.Context, arguments: list[str]) -> Any:
        name = arguments[0]
        # click itself says what is wrong with an unknown option.
        if self.get_command(context, name) is None and not name.startswith("-"):
            context.fail(f'no command "{name}"; {nearest(name, self.list_commands(context))}')
        return super().resolve_command(context, arguments)

    def invoke(self, context: click.Context) -> Any:
        """Run a command; Ctrl-C at any point ends it with the exit status of a signal."""
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)
            # The shell's convention for a program that a signal has ended: 128 and the signal's number.
            sys.exit(128 + signal.SIGINT)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sam-bench", prog_name="bench")
def cli() -> None:
    """Compare SAM with SGD and Adam: is SAM better, by how much, and at what price?

    EXPERIMENT is a name under experiments/ or the path of a TOML file.
    """


def main() -> None:
    """Run the command line: a user's mistake gives one message and exit status 2, never a traceback."""
    # Before anything is printed: in a terminal without UTF-8 a "±" must not end the command.
    terminal.print_in_any_encoding()
    try:
        try:
            cli()
        finally:
            # Flushed here, so that a closed pipe or a full disk is met inside this `try`, not when Python exits.
            sys.stdout.flush()
    except BenchError as error:
        click.secho(f"Error: {error}", err=True, fg="red" if sys.stderr.isatty() else None)
        sys.exit(2)
    except BrokenPipeError:  # `bench table ... | head`
        # Without this, Python would flush again when it exits, and complain.
        terminal.let_go_of(sys.stdout)
        sys.exit(0)
    except OSError as error:
        # Errors of printing itself name no file; any other one is a bug, and keeps its traceback.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO) or error.filename is not None:
            raise
        terminal.let_go_of(sys.stdout)
        print(f"Error: cannot print any more: {error.strerror}", file=sys.stderr)
        sys.exit(2)


cli.add_command(cli_run.run)
cli.add_command(new)
cli.add_command(cli_run.cancel)
cli.add_command(clean.clean)
cli.add_command(atlas.atlas)
cli.add_command(sync)
cli.add_command(doctor.doctor)
cli.add_command(watch.watch)
EVIDENCE = (
    *(evidence.verify, evidence.measure, evidence.diff, evidence.merge),
    *(evidence.export, evidence.check),
)
for command in EVIDENCE:
    cli.add_command(command)


# ---- running -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("experiment")
@options.set_
@options.data_dir
def prepare(experiment: str, overrides: tuple[str, ...]) -> None:
    """Download and check the data and weights of an experiment.

    Runs never download anything themselves. Use this on a login node, or before the machine goes offline.
    """
    from bench.config.file import find

    # A wrong name is told before torch is imported.
    find(experiment)
    from bench.data import datasets
    from bench.launch.run import prepare as fetch

    fetch(experiment, overrides)
    print(f"{experiment}: data and weights are ready in {datasets.data_folder()}")


# ---- reading -------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("experiment")
@options.which
@click.option("--seeds", type=options.COUNT, metavar="N", help="Number of seeds; with [tune], of final seeds.")
@options.out
def status(experiment: str, overrides: tuple[str, ...], results_name: str | None, seeds: int | None, out: Path) -> None:
    """Show the status of every run of an experiment."""
    from bench.launch.run import plan as make
    from bench.store.run_folder import reason_in

    plan = make(experiment, out=out, overrides=overrides, seeds=seeds, results_name=results_name)
    console = terminal.console()
    console.print(cli_status.counts(plan, plan.statuses))
    for run in plan.experiment.runs:
        if plan.statuses[run.spec.run_id] == "failed":
            error = reason_in(plan.store.run(run.spec.run_id).error() or "")
            console.print(f"failed: {run.name}: {error}", highlight=False, markup=False)
    cli_status.show_running(plan, console)
    cli_status.show_queue(plan, console)
    clean.tell_leftovers(plan, console)


@cli.command()
@click.argument("experiment")
@click.argument("names", nargs=-1, metavar="[TABLE]...")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "md", "tex", "csv"]),
    default="terminal",
    show_default=True,
    help="Format of the printed tables.",
)
@click.option("--style", metavar="NAME", help="Print a paper's table beside our numbers: foret-table1, ...")
@click.option(
    "--target",
    metavar="SCORE",
    type=options.NUMBER,
    help="Print the cost of reaching this test metric, in the unit shown (95 for 95 %).",
)
@click.option(
    "--caption",
    type=click.Choice(["long", "short"]),
    default="long",
    show_default=True,
    help="short: the title alone; footnotes stay.",
)
@click.option("--bare", is_flag=True, help="Print the grid alone: in LaTeX the tabular. Needs --format md or tex.")
@options.which
@options.out
def table(
    experiment: str,
    names: tuple[str, ...],
    format_: str,
    style: str | None,
    target: float | None,
    caption: str,
    bare: bool,
    overrides: tuple[str, ...],
    results_name: str | None,
    out: Path,
) -> None:
    """Print the tables; write them as Markdown, LaTeX and CSV.

    They go to results/EXPERIMENT/tables. With TABLE (results, cost, ...), --style or --target those tables are printed,
    and nothing is written.
    """
    from bench.analysis import render, tables
    from bench.analysis.render.terminal import show
    from bench.analysis.tables import published

    if bare and format_ not in ("md", "tex"):
        raise BenchError(f"--bare: with --format {format_} there is nothing to leave out; give --format md or tex")
    folder, study = _study(experiment, overrides, results_name, out)
    # These ask for some tables alone, so the tables on the disk stay as they are.
    whole = style is None and target is None and not names
    built = tables.build(study) if whole or names else []
    if names:
        known = {one.name: one for one in built}
        for name in names:
            if name not in known:
                raise BenchError(f'{folder} has no table "{name}"; {nearest(name, known)}')
        built = [known[name] for name in names]
    built += [published.table(study, style)] if style is not None else []
    built += [tables.to_target(study, target)] if target is not None else []
    if whole:
        render.write(built, folder)
    if caption == "short":
        built = [replace(one, caption=[], answer=()) for one in built]
    if format_ == "terminal":
        show(built, terminal.console())
        if whole:
            cli_run.say_answer(study)
    else:
        print("\n\n".join(render.render(one, format_, bare=bare).rstrip("\n") for one in built))


@cli.command()
@click.argument("experiment")
@click.option(
    "--width",
    callback=options.width,
    default="page",
    show_default=True,
    metavar="page|column|INCHES",
    help="Width of the figures: 6.9 inches (page), 3.3 inches (column), or the text width of your venue.",
)
@click.option(
    "--font-size",
    type=click.FloatRange(4, 20),
    default=8.0,
    show_default=True,
    metavar="POINTS",
    help="Size of the type; that of ticks and legends follows.",
)
@click.option(
    "--format",
    "forms",
    type=click.Choice(["png", "pdf", "svg", "pgf"]),
    multiple=True,
    help="Format of the files; pgf is typeset by LaTeX in your document's font. Repeatable. [default: png and pdf]",
)
@options.which
@options.out
def plot(
    experiment: str,
    width: str,
    font_size: float,
    forms: tuple[str, ...],
    overrides: tuple[str, ...],
    results_name: str | None,
    out: Path,
) -> None:
    """Draw the figures as PNG and PDF, with their numbers as CSV.

    They go to results/EXPERIMENT/figures, those of another width or type size to a folder of its name there.
    """
    from bench.analysis import plots

    folder, study = _study(experiment, overrides, results_name, out)
    for path in plots.build(study, folder, width, forms or plots.FORMS, font_size):
        print(path)


@cli.command()
@click.argument("experiment")
@options.which
@options.out
def report(experiment: str, overrides: tuple[str, ...], results_name: str | None, out: Path) -> None:
    """Write tables, figures and one page with all of them.

    The page is results/EXPERIMENT/report.html: one file, with every run in it.
    """
    from bench.analysis import report as page
    from bench.analysis import tables

    folder, study = _study(experiment, overrides, results_name, out)
    # The last path is that of the page.
    print(page.build(study, tables.build(study), folder)[-1])


def _study(experiment: str, overrides: Sequence[str], results_name: str | None, out: Path) -> tuple[Path, Study]:
    """Return the folder of an experiment's results and what is in them; tell which keys of its file have changed."""
    from bench.analysis.study import Study
    from bench.config import file
    from bench.store import records

    folder = options.results_folder(experiment, out, overrides, results_name)
    results = records.read(folder)
    clean.tell_changes(experiment, folder, results.meta)
    # How results are shown follows the file as it is now: no run depends on it.
    if path := file.beside(experiment) or file.beside(results.meta.get("of") or experiment):
        meta = {**results.meta, **file.presentation_of(path)}
        results = replace(results, meta=cast("Meta", meta))
    return folder, Study(results)


@cli.command("list")
@click.argument("what", type=click.Choice(["tasks", "models", "optimizers", "experiments"]), required=False)
def list_(what: str | None) -> None:
    """List tasks, models, optimizers and experiments.

    Each with its hyperparameters and their defaults.
    """
    if what in (None, "experiments"):
        _list_experiments()
    if what != "experiments":
        _list_registered(what)


def _list_experiments() -> None:
    from bench.config import titles
    from bench.config.file import experiment_folders
    from bench.store.files import read_toml

    click.secho("experiments", bold=True)
    for folder in experiment_folders():
        for path in sorted(folder.glob("*.toml")):
            # A broken file must not hide the experiments after it.
            try:
                title = titles.of_document(read_toml(path))
            except BenchError as error:
                title = f"(broken: {' '.join(str(error).split())})"
            print(f"  {path.stem:<20} {title}")


def _list_registered(what: str | None) -> None:
    from bench.core import registry

    registry.load_builtins()
    plain, methods = ([one for one in registry.optimizers if one.wraps_base is wraps] for wraps in (False, True))
    for kind, heading, entries in (
        ("tasks", "tasks", registry.tasks),
        ("models", "models", registry.models),
        ("optimizers", "optimizers, each of which can be the base of a method", plain),
        ("optimizers", "methods around a base", methods),
    ):
        if what not in (None, kind):
            continue
        click.secho(heading, bold=True)
        for entry in entries:
            _list_entry(entry)


def _list_entry(entry: Entry) -> None:
    print(f"  {entry.name:<20} {entry.description}")
    # Some entries stand for many names, such as glue/cola.
    if (names := entry.names()) != [entry.name]:
        print(f"  {'':<20} {', '.join(names)}")
    settings = [
        name if field.is_required() else f"{name}={field.default!r}"
        for name, field in entry.schema.model_fields.items()
    ]
    if entry.wraps_base:
        settings = ["base", *settings, "and the base's own"]
    # What training must be set to, so that nobody meets it as an error first.
    settings += [f"train.{key} = {value!r}" for key, value in entry.needs.items()]
    if settings:
        print(f"  {'':<20} {', '.join(settings)}")
