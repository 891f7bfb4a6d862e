"""Tables as Markdown, LaTeX and CSV; for the terminal see `terminal.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tabulate import tabulate

from bench.analysis.render import latex
from bench.analysis.render.table import Table
from bench.store.run_folder import write_atomic

FORMATS = ("md", "tex", "csv")


def render(table: Table, form: str, *, bare: bool = False) -> str:
    """Return the table as text: "md" (GitHub), "tex" (line 1 names its packages) or "csv" (unrounded, one header line).

    Raises ValueError for any other `form`. The same table gives the same bytes.

    Args:
        bare: the grid alone, without title, caption, answer and footnotes: in LaTeX the tabular.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown table format {form!r}, expected one of {', '.join(FORMATS)}")
    if form == "tex":
        # LaTeX has conditions as headings above their rows, so their columns have no header.
        return (latex.bare if bare else latex.latex)(table, table.stacked()[table.keys :])
    if form == "md":
        return _grid(table) + "\n" if bare else _markdown(table)
    return _csv(table)


def write(tables: Sequence[Table], folder: Path) -> list[Path]:
    """Write every table as <folder>/tables/<name>.{md,tex,csv}, atomically; gives the paths written."""
    paths = []
    for table in tables:
        for form in FORMATS:
            path = folder / "tables" / f"{table.name}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, render(table, form))
            paths.append(path)
    return paths


def _markdown(table: Table) -> str:
    notes = "".join(f"- {note}\n" for note in table.footnotes)
    below = [*table.answer, " ".join(table.caption), notes.rstrip("\n")]
    return "\n\n".join([f"**{table.title}**", _grid(table), *filter(None, below)]) + "\n"


def _grid(table: Table) -> str:
    # An unescaped bar would start another cell.
    cells = [[cell.replace("|", r"\|") for cell in row] for row in _named_once(table)]
    align = ["left"] * (table.keys + 1) + ["right"] * (len(table.columns) - table.keys - 1)
    # disable_numparse: tabulate would otherwise write 0.50 as 0.5, and cells would lose the decimals they were given.
    return tabulate(cells, table.columns, tablefmt="pipe", colalign=align, disable_numparse=True)


def _csv(table: Table) -> str:
    # The same line ending on every system, so that the same table gives the same bytes.
    return table.numbers.to_csv(index=False, lineterminator="\n")


def _named_once(table: Table) -> Iterator[list[str]]:
    """Yield the rows, with the condition named only in the first row of its block."""
    before: list[str] = []
    for row in table.rows:
        condition = row[: table.keys]
        yield row if condition != before else [""] * table.keys + row[table.keys :]
        before = condition
