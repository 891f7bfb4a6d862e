"""Tables and answers in a terminal of any width from 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from bench.analysis.render.table import Table

WIDE = 100  # columns of the terminal, from which those of a table stand three blanks apart instead of one
NARROWEST = 12  # columns for the names, however narrow the terminal


def show(tables: Sequence[Table], console: Console) -> None:
    """Print tables in reverse order, so that the first table is next to the prompt.

    Names fold, headers stack and conditions are headings, so that 80 columns are enough.

    A sentence under several tables is said under the first of them only.
    """
    said: set[str] = set()
    paragraphs = []
    # 1. What is new below each table, in their own order: the first table keeps all of its sentences.
    for table in tables:
        caption = " ".join(sentence for sentence in table.caption if sentence not in said)
        notes = [note for note in table.footnotes if note not in said]
        paragraphs.append([text for text in (caption, *notes) if text])
        said |= {*table.caption, *table.footnotes}
    # 2. Print from the last to the first.
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


def _grid(table: Table, width: int) -> Text:
    """Return the table in plain text.

    A rich.table.Table of 2,000 rows would take longer than all other work on the table.
    """
    gap = " " * (3 if width >= WIDE else 1)
    return Text("\n\n").join(_panel(part, width, gap) for part in _panels(table, width, gap))


def _panels(table: Table, width: int, gap: str) -> Iterator[Table]:
    """Yield the table, split by columns into several if even its narrowest form is wider than the terminal."""
    # The condition and the name of a row are repeated in every panel: its cells are read by them.
    start = table.keys + 1
    columns = zip(table.stacked(), *table.rows, strict=True)
    names, *others = [max(map(len, [*head, *cells])) for head, *cells in columns][table.keys :]
    panels: list[list[int]] = []
    room = 0
    for place, widest in enumerate(others, start):
        room -= len(gap) + widest
        # A column that is wider than the terminal still has a panel of its own.
        if room < 0 or not panels:
            panels.append([])
            # Names fold, so they are counted at their narrowest.
            room = width - min(names, NARROWEST) - len(gap) - widest
        panels[-1].append(place)
    for panel in panels:
        places = [*range(start), *panel]
        rows = [[row[place] for place in places] for row in table.rows]
        yield replace(table, columns=[table.columns[place] for place in places], rows=rows)


def _panel(table: Table, width: int, gap: str) -> Text:
    heads, blocks = table.stacked()[table.keys :], table.blocks()
    columns = zip(*(row for _, rows in blocks for row in rows), strict=True)
    widest = [max(map(len, [*head, *cells])) for head, cells in zip(heads, columns, strict=True)]
    room = width - sum(widest[1:]) - len(gap) * len(widest[1:])
    widths = [min(widest[0], max(room, NARROWEST)), *widest[1:]]

    # The lines are laid out already: rich must neither wrap nor cut them.
    text = Text(no_wrap=True, overflow="ignore")
    depth = max(map(len, heads))
    # Empty lines come first, so that short headers stand next to their cells.
    for stack in zip(*([""] * (depth - len(head)) + head for head in heads), strict=True):
        text.append(_line(stack, widths, gap), style="bold")
    text.append("─" * (sum(widths) + len(gap) * len(widths[1:])) + "\n")
    for number, (condition, rows) in enumerate(blocks):
        text.append("\n" * bool(number))
        text.append(f"{condition}\n" * bool(condition), style="bold")
        for name, *cells in rows:
            # The first line of a folded name has the cells; the others stand below it, alone.
            start, *more = textwrap.wrap(name, widths[0])
            text.append(_line([start, *cells], widths, gap))
            text.append("".join(f"{part}\n" for part in more))
    text.rstrip()
    return text


def _line(cells: Sequence[str], widths: Sequence[int], gap: str) -> str:
    """Return cells side by side, the first flush left, all others flush right."""
    first, *others = map(str.rjust, cells, widths)
    return gap.join([first.strip().ljust(widths[0]), *others]).rstrip() + "\n"
