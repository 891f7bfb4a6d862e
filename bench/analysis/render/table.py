"""The table of results that every renderer takes: cells for people, numbers for machines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

EMPTY = "–"
DAGGER = "†"
SECTION = "§"


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
            # The shorter side ends the pairs: only the first cells of a row name its condition.
            named = zip(self.columns[: self.keys], row, strict=False)
            blocks.setdefault(", ".join(f"{name}={value}" for name, value in named), []).append(row[self.keys :])
        # A dict keeps the order in which conditions first appear, which is that of the rows.
        return list(blocks.items())

    def stacked(self) -> list[list[str]]:
        """Return every header broken into lines no wider than its column's cells need, to keep the table narrow."""
        stacked = []
        for header, *cells in zip(self.columns, *self.rows, strict=True):
            widest = max(map(len, [*header.split(), *cells]))
            # A name such as sgd-2x stays on one line.
            stacked.append(textwrap.wrap(header, widest, break_on_hyphens=False))
        return stacked
