"""Commands for readers who doubt the numbers: verify, export, check, diff, measure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.cli import options
from bench.core import terminal
from bench.core.errors import BadValue, BenchError, counted

if TYPE_CHECKING:
    from rich.console import Console

    from bench.evidence.verify import Reproduction
    from bench.store.records import Results


@click.command()
@click.argument("experiment")
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option("--all", "all_", is_flag=True, help="Repeat every finished run.")
@click.option(
    "--jobs",
    metavar="N",
    type=options.AT_ONCE,
    help="Number of runs at once. [default: one per GPU, else per core]",
)
@options.which
@options.out
@options.data_dir
def verify(
    experiment: str,
    run_ids: tuple[str, ...],
    all_: bool,
    jobs: int | None,
    overrides: tuple[str, ...],
    results_name: str | None,
    out: Path,
) -> None:
    """Repeat finished runs and compare them with their records.

    The results are left as they are. Without RUN_ID, the first seed of each optimizer's chosen configuration is
    repeated. On the recorded hardware, with the recorded versions and threads, every bit must be the same; elsewhere
    final numbers must agree as closely as those of different seeds. The exit status is 1 if a run differs.
    """
    import tempfile

    from bench.config.file import find

    # A wrong name is told before torch is imported, which takes seconds.
    find(experiment)
    if all_ and run_ids:
        raise BadValue("--all", ["give --all or run ids, not both"])
    from bench.evidence import repeat
    from bench.evidence.verify import reproduction
    from bench.store import collecting
    from bench.store.run_folder import Store

    then = repeat.recorded(experiment, out, overrides, results_name)
    # The ids that were given, else every finished run, else one per optimizer.
    ids = run_ids or (tuple(then.finished) if all_ else tuple(then.one_of_each()))
    runs = then.select(ids)
    if not runs:
        raise BenchError(f"{then.folder} holds no finished run yet; `bench run` makes them")
    console = terminal.console(stderr=True)
    which = "" if run_ids or all_ else " (of each optimizer's chosen configuration, the first seed; --all repeats all)"
    console.print(
        f"{then.experiment.name}: repeating {len(runs)} of {counted(len(then.finished), 'finished run')}{which}",
        highlight=False,
        soft_wrap=True,
    )
    with tempfile.TemporaryDirectory(prefix="bench-verify-") as scratch:
        store = Store(Path(scratch))
        outcome = repeat.repeat(then, runs, store, jobs=jobs, console=console)
        # A full disk says nothing about the runs, so nothing is compared.
        if outcome.disk:
            raise BenchError(outcome.disk)
        if outcome.interrupted:
            console.print("Stopped; nothing was compared.", style="yellow")
            # The exit status of Ctrl-C.
            sys.exit(130)
        # The repetitions become records too, so that both sides have the same columns.
        again = collecting.collect(store, then.experiment.meta(), runs)
        now = repeat.Recorded(then.experiment, again, store.folder, then.finished)
        reproductions = {run.name: reproduction(run.spec.run_id, then, now) for run in runs}
    _show_reproductions(reproductions, terminal.console())
    if any(one.word == "differs" for one in reproductions.values()):
        sys.exit(1)


def _show_reproductions(reproductions: dict[str, Reproduction], console: Console) -> None:
    def say(text: str, **style: Any) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True, **style)

    for name, reproduction in reproductions.items():
        say(
            f"{reproduction.word:<10} {reproduction.run_id}  {name}",
            style="bold red" if reproduction.word == "differs" else None,
        )
        for fault in reproduction.faults:
            say(f"           {fault}")
        if reproduction.word == "agrees":
            say(f"           within tolerance; other numbers from epoch {reproduction.first_epoch} on")
    # A dict drops what was said already: many runs share a note.
    for note in dict.fromkeys(note for reproduction in reproductions.values() for note in reproduction.elsewhere):
        say(f"Different from the record: {note}. Bits may differ then.")
    for note in dict.fromkeys(reproduction.code for reproduction in reproductions.values() if reproduction.code):
        say(f"Code: {note}.")
    words = [reproduction.word for reproduction in reproductions.values()]
    counts = [f"{words.count(word)} {word}" for word in ("identical", "agrees", "differs") if word in words]
    say(f"{len(words)} repeated: {', '.join(counts)}")


@click.command()
@click.argument("experiment")
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="Path of the archive. [default: EXPERIMENT.tar.gz]"
)
@options.which
@options.out
def export(experiment: str, file: Path | None, overrides: tuple[str, ...], results_name: str | None, out: Path) -> None:
    """Pack the results of an experiment into one archive.

    It holds records, curves, measures, tables, the experiment with its plug-ins, and the specification, hardware and
    versions of every run; `bench check` reads it on any machine.
    """
    import hashlib

    from bench.config.file import find
    from bench.store.archive import SUFFIX
    from bench.store.run_folder import write_atomic

    # A wrong name is told before the heavy imports below.
    find(experiment)
    from bench.evidence import export as exporting

    name, content = exporting.export(experiment, out, overrides, results_name)
    path = file or Path(f"{name}{SUFFIX}")
    write_atomic(path, content)
    print(f"{path}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


@click.command()
@click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--unpack", type=click.Path(path_type=Path, file_okay=False), help="Folder to unpack the archive into.")
def check(archive: Path, unpack: Path | None) -> None:
    """Check an archive of `bench export` and remake its tables.

    Files that were changed, added or removed are named. The exit status is 1 if a table comes out differently.
    """
    from bench.analysis.render.terminal import show
    from bench.evidence import export as exporting
    from bench.store import archive as archives

    checked = exporting.check(archive)
    if unpack is not None:
        # By now every file was compared with the manifest.
        archives.write_files(checked.files, unpack / checked.name)
    show(checked.tables, terminal.console())
    print(
        f"{archive}: as exported: {counted(len(checked.files), 'file')}; the same, byte for byte: "
        f"{counted(len(checked.same), 'table')}"
    )
    if unpack is not None:
        print(f"unpacked to {unpack / checked.name}")
    if checked.other:
        print(f"different here than in the archive (another version of sam-bench?): {', '.join(checked.other)}")
        sys.exit(1)


@click.command()
@click.argument("a")
@click.argument("b", required=False)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["terminal", "md", "csv"]),
    default="terminal",
    show_default=True,
    help="Format of the printed tables.",
)
@options.which
@options.out
def diff(a: str, b: str | None, format_: str, overrides: tuple[str, ...], results_name: str | None, out: Path) -> None:
    """Compare two result sets run by run and optimizer by optimizer.

    A and B are names under results/, folders, or archives of `bench export`. --set and --name select results of B or,
    without B, other results of A to compare with.

    Prints which runs both have, whether their bits are equal, paired differences of metric and time, and settings
    that differ. As with diff, the exit status is 0 if both hold the same runs with the same bits, else 1.
    """
    from bench.analysis import render
    from bench.analysis.diff import compare
    from bench.analysis.render.terminal import show
    from bench.analysis.study import Study

    if b is None and not (overrides or results_name):
        raise BadValue("bench diff", ["nothing to compare with: give B, or --set or --name for other results of A"])
    sides = read_results(a, out), read_results(b or a, out, overrides, results_name)
    comparison = compare(*map(Study, sides))
    if format_ == "terminal":
        show(comparison.tables, terminal.console())
    else:
        print("\n\n".join(render.render(one, format_).rstrip("\n") for one in comparison.tables))
    # As the program diff does: 1 if there is a difference.
    if not comparison.same:
        sys.exit(1)


@click.command()
@click.argument("into")
@click.argument("from_", nargs=-1, required=True, metavar="FROM...")
@options.out
def merge(into: str, from_: tuple[str, ...], out: Path) -> None:
    """Merge the results that several machines have of one experiment.

    INTO is a name under results/ or a folder, new or with results; FROM are names, folders or archives of `bench
    export`. They may have different seeds, optimizers, conditions and phases. A run that several of them have must
    have the same numbers, by the rule of `bench verify`. If anything does not fit, nothing is written.
    """
    from bench.analysis import report, tables
    from bench.analysis.study import Study
    from bench.evidence import merge as merging
    from bench.store import records
    from bench.store.run_folder import Store

    # A path, or a folder of results in this folder; any other word is a name under --out.
    folder = Path(into) if "/" in into or (Path(into) / "experiment.json").exists() else out / into
    parts = [(name, read_results(name, out)) for name in from_]
    # INTO is counted too, since what it holds is one of the parts.
    if len({name for name, _ in parts} | {into}) < len(parts) + 1:
        raise BadValue("bench merge", ["the same results twice"])
    # No launch may collect into the folder between reading and writing.
    with Store(folder).collecting():
        if (folder / "experiment.json").exists():
            # What is there comes first: where several parts have a run, the first one's numbers count.
            parts.insert(0, (into, records.read(folder)))
        merged = merging.renamed(merging.merge(parts), folder.name)
        records.publish(merged.results, folder)
    # Read from the disk again: tables are made of what was written, not of what was meant.
    study = Study(records.read(folder))
    report.build(study, tables.build(study), folder)
    for name, count in merged.taken.items():
        print(f"{name}: {counted(count, 'finished run')}")
    same = f" ({merged.twice} of them in several, with the same numbers)" * bool(merged.twice)
    print(f"{folder}: {counted(sum(merged.taken.values()), 'finished run')}{same}")


def read_results(name: str, out: Path, overrides: tuple[str, ...] = (), results_name: str | None = None) -> Results:
    """Return results by the experiment's name or file, by their folder, or from an archive."""
    from bench.store import archive, records

    if name.endswith(archive.SUFFIX):
        return archive.results(archive.unpack(Path(name))[1])
    return records.read(options.results_folder(name, out, overrides, results_name))


@click.command()
@click.argument("experiment")
@click.argument("run_ids", nargs=-1, metavar="[RUN_ID]...")
@click.option(
    "--all", "all_", is_flag=True, help="Measure every finished run. [default: those of chosen configurations]"
)
@click.option(
    "--examples",
    metavar="N",
    type=options.COUNT,
    default=1000,
    show_default=True,
    help="Number of training examples to measure on.",
)
@click.option(
    "--eigenvalues",
    metavar="N",
    type=click.IntRange(min=1, max=20),
    default=3,
    show_default=True,
    help="Number of Hessian eigenvalues to compute.",
)
@click.option(
    "--m", metavar="N", type=options.COUNT, default=128, show_default=True, help="Examples per SAM ascent step."
)
@click.option(
    "--rho",
    metavar="RHO",
    type=options.POSITIVE,
    default=0.05,
    show_default=True,
    help="Radius of the ascent step.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp64"]),
    default="fp32",
    show_default=True,
    help="Precision of the measurement.",
)
@click.option(
    "--device", metavar="DEVICE", help="Device to measure on: cpu, cuda:0, ... [default: a GPU, else the CPU]"
)
@click.option("--jobs", metavar="N", type=options.AT_ONCE, help="Number of runs to repeat at once.")
@click.option("--again", is_flag=True, help="Repeat the measurement of measured runs.")
@click.option(
    "--other-weights", is_flag=True, help="Also measure weights that differ from the recorded ones, and mark them."
)
@options.which
@options.out
@options.data_dir
def measure(
    experiment: str,
    run_ids: tuple[str, ...],
    all_: bool,
    device: str | None,
    jobs: int | None,
    again: bool,
    other_weights: bool,
    overrides: tuple[str, ...],
    results_name: str | None,
    out: Path,
    **settings: Any,
) -> None:
    """Measure sharpness and calibration of finished runs.

    Computes Hessian eigenvalues, m-sharpness, the loss along random directions, and the calibration error. Weights
    that `bench run --keep-weights` left are used; without them a run is repeated and must end with the recorded
    weights. Runs that are measured already are skipped. Writes measures.csv, directions.csv, tables and figures.
    """
    from bench.config.file import find

    # A wrong name is told before torch is imported.
    find(experiment)
    if all_ and run_ids:
        raise BadValue("--all", ["give --all or run ids, not both"])
    import torch

    from bench.analysis import report, tables
    from bench.analysis.render.terminal import show
    from bench.analysis.study import Study
    from bench.evidence import repeat
    from bench.evidence.measure_runs import measure_runs
    from bench.evidence.measures.measure import MeasureSettings
    from bench.store import records

    of = repeat.recorded(experiment, out, overrides, results_name)
    ids = run_ids or (of.done() if all_ else of.chosen())
    runs = of.select(ids, of_weights=True)
    console = terminal.console(stderr=True)
    console.print(f"{of.experiment.name}: {len(runs)} of {counted(len(of.finished), 'finished run')}", highlight=False)
    # A device that does not exist is told before any run is repeated.
    chosen_device = _device(device, torch)
    try:
        measure_runs(
            of,
            runs,
            MeasureSettings(**settings),
            device=chosen_device,
            jobs=jobs,
            again=again,
            other_weights=other_weights,
            console=console,
        )
    except KeyboardInterrupt:
        # Each run is written as soon as it is measured, so that nothing is lost.
        console.print("Stopped. Measured runs are kept; run the same command again to continue.", style="yellow")
        sys.exit(130)
    study = Study(records.read(of.folder))
    built = tables.build(study)
    report.build(study, built, of.folder)
    show([table for table in built if table.name == "sharpness"], terminal.console())


def _device(name: str | None, torch: Any) -> Any:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        # torch accepts the name of any device, and only its use shows whether the device is there.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        # The first line alone: torch's messages can be long.
        raise BadValue(f"--device {name}", [f"{str(error).partition(chr(10))[0]}; valid: cpu, cuda:0, ..."]) from error
    return device
