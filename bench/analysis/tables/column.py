"""A column of a table: its text and the numbers in the table's CSV, side by side, so that they cannot drift apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import pandas as pd

from bench.analysis.numbers import Numbers
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store.conditions import names, value_text

T = TypeVar("T")


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table whose lines are items of one type.

    Attributes:
        head: the title above the cells; "" for numbers that only the CSV has.
        cell: the text of an item.
        numbers: the columns of an item in the CSV, by name, unrounded; {} where another column has them.
    """

    head: str
    cell: Callable[[T], str] = str
    numbers: Callable[[T], Numbers] = lambda item: {}


def hidden(numbers: Callable[[T], Numbers]) -> Column[T]:
    """Return a column that only the CSV has."""
    return Column("", numbers=numbers)


def build(
    study: Study,
    name: str,
    title: str,
    columns: Iterable[Column[T]],
    items: Sequence[T],
    *,
    caption: Iterable[str],
    notes: Iterable[str],
    row: Callable[[T], Row],
    condition_in_numbers: bool = True,
    keys: int = 0,
) -> Table:
    """Return a table with one line per item, led by the item's condition if anything is varied.

    Args:
        study: the experiment.
        name: file name without ending.
        title: what the table shows, behind the experiment's title.
        columns: those of an item, in the order of the CSV; the shown ones are the text's, too.
        items: one per line of the table.
        caption: the first sentences of the caption; those that end every caption follow.
        notes: the footnotes.
        row: returns the row whose condition an item stands under.
        condition_in_numbers: whether the CSV has the condition's name beside its values.
        keys: the number of leading columns, besides the condition's, that name a block of lines.
    """
    captions = study.captions
    axes = zip(names(captions.varied), captions.varied, strict=True)
    condition: list[Column[T]] = [_axis(head, column, row) for head, column in axes]
    # The text has the values of the condition in columns; the CSV has its name as well, as records.csv has it.
    if condition and condition_in_numbers:
        condition.insert(0, hidden(lambda item: {"condition": row(item).condition}))
    heads, rows, frame = lines([*condition, *columns], items)
    return Table(
        experiment=study.meta["name"],
        name=name,
        title=f"{study.meta['title']}: {title}",
        caption=[*caption, *captions.closing()],
        columns=heads,
        rows=rows,
        footnotes=list(notes),
        numbers=frame,
        # The leading columns that name a block: those of the condition, then those asked for.
        keys=len(captions.varied) + keys,
    )


def lines(columns: Sequence[Column[T]], items: Sequence[T]) -> tuple[list[str], list[list[str]], pd.DataFrame]:
    """Return the heads, the cells of each item, and the numbers of each item for the CSV."""
    # A column without a head is in the CSV alone.
    shown = [column for column in columns if column.head]
    numbers = [{key: value for column in columns for key, value in column.numbers(item).items()} for item in items]
    return (
        [column.head for column in shown],
        [[column.cell(item) for column in shown] for item in items],
        pd.DataFrame(numbers),
    )


def _axis(head: str, column: str, row: Callable[[T], Row]) -> Column[T]:
    return Column(
        head, lambda item: value_text(row(item).varied[column]), lambda item: {column: row(item).varied[column]}
    )
