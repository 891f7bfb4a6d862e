"""The command that puts many result sets into one picture."""

from __future__ import annotations

from pathlib import Path

import click

from bench.cli import options
from bench.cli.evidence import read_results
from bench.core import terminal
from bench.core.errors import BenchError

FOLDER = "atlas"


@click.command()
@click.argument("results", nargs=-1, metavar="[RESULTS]...")
@click.option("--method", default="sam", show_default=True, help="Method whose differences to its base are wanted.")
@click.option("--no-published", is_flag=True, help="Leave out the published pairs of SAM and its base.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), help="Folder to write. [default: OUT/atlas]")
@options.out
def atlas(results: tuple[str, ...], method: str, no_published: bool, into: Path | None, out: Path) -> None:
    """Show where SAM helps, over many result sets.

    RESULTS are names under results/, folders, or archives of `bench export`; without any, all result sets under
    results/. Prints the answer and writes tables, figures and a page with filters.
    """
    from bench.analysis.atlas import atlas as make
    from bench.analysis.atlas import page, tables
    from bench.analysis.atlas.figures import figures
    from bench.analysis.plots.rendering import render
    from bench.analysis.render.terminal import show
    from bench.analysis.study import Study

    names = results or tuple(sorted(path.parent.name for path in out.glob("*/experiment.json")))
    if not names:
        raise BenchError(f"{out} holds no results; name some, or `bench run` makes them")
    made = make([Study(read_results(name, out)) for name in names], method, published=not no_published)
    built = tables.tables(made)
    drawn = {name: render(one, ("png", "pdf", "svg")) for name, one in figures(made).items()}
    path = page.write(made, built, drawn, into or out / FOLDER)
    show(built[:2], terminal.console())
    print(*built[0].answer, sep="\n\n")
    print(path)
