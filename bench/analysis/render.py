"""A table of results in its four forms: Markdown, LaTeX, CSV and the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text
from tabulate import tabulate

from bench.analysis.latex import latex
from bench.store.run_folder import write_atomic

FORMATS = ("md", "tex", "csv")
EMPTY = "–"
DAGGER = "†"
SECTION = "§"
WIDE = 100  # columns from which the terminal has room between those of a table
NARROWEST = 12  # columns for the names, however narrow the terminal


@dataclass(frozen=True)
class Table:
    """Text cells for people and the same numbers, unrounded, for machines.

    `name` is the file stem, `experiment` makes the LaTeX label unique, `caption` is a list of sentences.
    `answer` are paragraphs that say what the table shows; the terminal has them at its end instead (`say`).
    `numbers` has one line per row: metrics in the unit of the text (columns named "... [%]"), losses as stored,
    times in seconds. The first `keys` columns name the condition of a row; rows of one condition stand together, as a
    block that every format sets apart in its way.
    """

    experiment: str
    name: str
    title: str
    caption: list[str]
    columns: list[str]
    rows: list[list[str]]
    footnotes: list[str]
    numbers: pd.DataFrame
    keys: int = 0
    answer: Sequence[str] = ()

    def blocks(self) -> list[tuple[str, list[list[str]]]]:
        """Return each condition's name and rows, without the condition's columns; one block, "", if nothing varies."""
        blocks: dict[str, list[list[str]]] = {}
        for row in self.rows:
            named = zip(self.columns[: self.keys], row, strict=False)
            blocks.setdefault(", ".join(f"{name}={value}" for name, value in named), []).append(row[self.keys :])
        return list(blocks.items())


def render(table: Table, form: str) -> str:
    """Return the table as text: "md" (GitHub), "tex" (line 1 names its packages) or "csv" (unrounded, one header line).

    Raises ValueError for any other `form`. The same table gives the same bytes.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown table format {form!r}, expected one of {', '.join(FORMATS)}")
    if form == "tex":
        return latex(table, _stacked(table)[table.keys :])
    return {"md": _markdown, "csv": _csv}[form](table)


def show(tables: Sequence[Table], console: Console) -> None:
    """Print tables for the terminal, the first one last, where the reader's eye is.

    Names fold, headers stack and conditions are headings, so that 80 columns are enough.

    A sentence under several tables is said under the first of them only.
    """
    said: set[str] = set()
    paragraphs = []
    for table in tables:
        caption = " ".join(sentence for sentence in table.caption if sentence not in said)
        notes = [note for note in table.footnotes if note not in said]
        paragraphs.append([text for text in (caption, *notes) if text])
        said |= {*table.caption, *table.footnotes}
    for table, below in reversed(list(zip(tables, paragraphs, strict=True))):
        console.print(Text(table.title, style="bold"), "", _grid(table, console.width), sep="\n")
        for text in below:
            filled = textwrap.fill(text, console.width - 1, subsequent_indent="  ", break_on_hyphens=False)
            console.print(Text(filled, style="dim"))
        console.print()


def say(question: str, answer: Sequence[str], console: Console) -> None:
    """Print the question of an experiment and its answer, a paragraph each."""
    console.print(Text(question, style="bold"))
    for paragraph in answer:
        console.print(Text(textwrap.fill(paragraph, console.width - 1, subsequent_indent="  ", break_on_hyphens=False)))
    console.print()


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


# ---- formats -------------------------------------------------------------------------------------------------


def _grid(table: Table, width: int) -> Text:
    """Return the table in plain text.

    A rich.table.Table of 2,000 rows would take longer than all other work on the table.
    """
    gap = " " * (3 if width >= WIDE else 1)
    return Text("\n\n").join(_panel(part, width, gap) for part in _panels(table, width, gap))


def _panels(table: Table, width: int, gap: str) -> Iterator[Table]:
    """Yield the table, split by columns into several if even its narrowest form is wider than the terminal."""
    start = table.keys + 1
    columns = zip(_stacked(table), *table.rows, strict=True)
    names, *others = [max(map(len, [*head, *cells])) for head, *cells in columns][table.keys :]
    panels: list[list[int]] = []
    room = 0
    for place, widest in enumerate(others, start):
        room -= len(gap) + widest
        if room < 0 or not panels:
            panels.append([])
            room = width - min(names, NARROWEST) - len(gap) - widest
        panels[-1].append(place)
    for panel in panels:
        places = [*range(start), *panel]
        rows = [[row[place] for place in places] for row in table.rows]
        yield replace(table, columns=[table.columns[place] for place in places], rows=rows)


def _panel(table: Table, width: int, gap: str) -> Text:
    heads, blocks = _stacked(table)[table.keys :], table.blocks()
    columns = zip(*(row for _, rows in blocks for row in rows), strict=True)
    widest = [max(map(len, [*head, *cells])) for head, cells in zip(heads, columns, strict=True)]
    room = width - sum(widest[1:]) - len(gap) * len(widest[1:])
    widths = [min(widest[0], max(room, NARROWEST)), *widest[1:]]

    text = Text(no_wrap=True, overflow="ignore")
    depth = max(map(len, heads))
    for stack in zip(*([""] * (depth - len(head)) + head for head in heads), strict=True):
        text.append(_line(stack, widths, gap), style="bold")
    text.append("─" * (sum(widths) + len(gap) * len(widths[1:])) + "\n")
    for number, (condition, rows) in enumerate(blocks):
        text.append("\n" * bool(number))
        text.append(f"{condition}\n" * bool(condition), style="bold")
        for name, *cells in rows:
            start, *more = textwrap.wrap(name, widths[0])
            text.append(_line([start, *cells], widths, gap))
            text.append("".join(f"{part}\n" for part in more))
    text.rstrip()
    return text


def _line(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    """Return cells side by side, the first flush left, all others flush right."""
    first, *others = map(str.rjust, cells, widths)
    return gap.join([first.strip().ljust(widths[0]), *others]).rstrip() + "\n"


def _markdown(table: Table) -> str:
    cells = [[cell.replace("|", r"\|") for cell in row] for row in _named_once(table)]
    align = ["left"] * (table.keys + 1) + ["right"] * (len(table.columns) - table.keys - 1)
    grid = tabulate(cells, table.columns, tablefmt="pipe", colalign=align, disable_numparse=True)
    notes = "".join(f"- {note}\n" for note in table.footnotes)
    below = [*table.answer, " ".join(table.caption), notes.rstrip("\n")]
    return "\n\n".join([f"**{table.title}**", grid, *filter(None, below)]) + "\n"


def _csv(table: Table) -> str:
    return table.numbers.to_csv(index=False, lineterminator="\n")


def _named_once(table: Table) -> Iterator[list[str]]:
    """Yield the rows, with the condition named only in the first row of its block."""
    before: list[str] = []
    for row in table.rows:
        condition = row[: table.keys]
        yield row if condition != before else [""] * table.keys + row[table.keys :]
        before = condition


def _stacked(table: Table) -> list[list[str]]:
    """Return every header broken into lines no wider than its column's cells need, to keep the table narrow."""
    stacked = []
    for header, *cells in zip(table.columns, *table.rows, strict=True):
        widest = max(map(len, [*header.split(), *cells]))
        stacked.append(textwrap.wrap(header, widest, break_on_hyphens=False))
    return stacked
