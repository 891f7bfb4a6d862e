"""A table of your own: a CSV file with a column to predict."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.core.errors import BenchError, nearest
from bench.core.registry import register_task
from bench.data import cells as reading
from bench.data.datasets import FileSignature, signature
from bench.data.download import tell
from bench.data.splits import Indices, Split, quantile_bins, rarest_label
from bench.data.user_files import MISSING, TestShare, hold_out
from bench.tasks.scores import ClassWeights, ReportName, Scored, ScoreName

MOST_CATEGORIES = 50
"""A column of words with more different values than this is no category but a name or a text."""


@register_task("csv")
class CsvTable(Scored):
    """A CSV table of your own: predict a class, a number (`regression`), or several labels, from its other columns.

    Columns of numbers are standardised with the training rows' mean and deviation. Of a column of words (or one in
    `categorical`) each value that training rows have becomes a 0/1 input; values that only test rows have are all 0.
    Classes are numbered in the order of their names, numbers by size. A number to predict is standardised as well.
    What was done to the table, or looks like a mistake in it, is said at the start of a launch and under every table of
    results: cells that were filled, values in several spellings, columns that seem to number the rows.

    Args:
        path: the file, relative to the experiment file. Not it but what is in it is part of a run's identity.
        target: the column to predict; a list of columns of 0 and 1: labels, of which a row may have several.
        regression: the target is a number; loss is the squared error, score R2.
        metric: what choices and comparisons are made by: "accuracy", "balanced_accuracy", "macro_f1", "auroc" or
            "average_precision"; of numbers "r2", "mae" or "rmse"; of several labels "macro_f1", "micro_f1", "accuracy",
            "auroc" or "average_precision". Default: accuracy, of numbers R2, of labels macro F1.
        report: further scores, of the same names, in records.csv; "per_class" for a table by class.
        class_weights: "balanced": in the loss every class weighs the same, however many examples it has.
        categorical: columns of numbers that stand for categories.
        drop: columns to leave out (row numbers, names).
        missing: "refuse" rows with empty cells, or "fill" them: numbers by the training rows' mean, words by a
            category of their own. Empty are also ?, NA, N/A, NaN and null.
        separator: between columns; "\\t" for tabs.
        decimal: "." or ",": what stands before the fraction of a number.
        test: share of the rows that is the test set, the same in every run: of each class or, of a number to predict,
            of each tenth of its values.

    Raises:
        BenchError: the file is not as it should be, and the message names the line, the column, and what was expected;
            or a score or class weights do not fit what is predicted.
    """

    def __init__(
        self,
        *,
        path: str,
        target: str | list[str],
        regression: bool = False,
        metric: ScoreName | None = None,
        report: list[ReportName] = [],  # noqa: B006 - never changed
        class_weights: ClassWeights = "none",
        categorical: list[str] = [],  # noqa: B006
        drop: list[str] = [],  # noqa: B006
        missing: Literal["refuse", "fill"] = "refuse",
        separator: Annotated[str, Field(min_length=1, max_length=1)] = ",",
        decimal: reading.Decimal = ".",
        test: TestShare = 0.2,
    ) -> None:
        # Frozen and of tuples, so that it can be a part of the cache's key in `_read`.
        self.multi_label = isinstance(target, list)
        targets = (target,) if isinstance(target, str) else tuple(target)
        if self.multi_label and (regression or class_weights != "none" or len({*targets}) < max(2, len(targets))):
            raise BenchError(
                f"{path}: task.target as a list is for at least 2 different columns of labels, without regression and "
                f"class_weights; got {list(targets)}"
            )
        settings = _Settings(
            targets, regression, tuple(categorical), tuple(drop), missing == "fill", separator, decimal, test
        )
        self.regression, self.title = regression, Path(path).stem
        self.path = path
        # Read here, not in `load`: only the table tells how many inputs and outputs the model needs.
        self.class_names, self._train, self._test, self.unit, self.note = _read(signature(Path(path)), settings)
        self.input_shape = tuple(self._train.inputs.shape[1:])
        self.num_outputs = 1 if regression else len(self.class_names)
        self.choose(metric, report, where=path, regression=regression)
        if self.multi_label:
            self.loss_name = "mean over labels of the binary cross-entropy (nats)"
        elif not regression:
            self.weigh(class_weights, self._train.targets)
        elif class_weights == "none":
            self.loss_name = "squared error (of the standardised target)"
        else:
            raise BenchError(f"{path}: task.class_weights is for classes, and task.regression = true predicts numbers")

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """Return the path itself, as the only file of the task."""
        if not path.is_file():
            beside = [file.name for file in path.parent.glob("*.csv")] if path.parent.is_dir() else []
            raise BenchError(f"{path} is not a file; {nearest(path.name, beside)}")
        return [path]

    def fetch(self) -> None:
        """Print what was done to the table."""
        if self.note:
            tell(f"{self.path}: {self.note}")

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set.

        Inputs are (N, inputs) float32; targets are (N,) int64, or float32 for regression.
        """
        return self._train, self._test

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2 if self.regression else super().losses(outputs, targets)


@dataclass(frozen=True)
class _Settings:
    targets: tuple[str, ...]
    regression: bool
    categorical: tuple[str, ...]
    drop: tuple[str, ...]
    fill: bool
    separator: str
    decimal: reading.Decimal
    test: float


@dataclass(frozen=True)
class _Table:
    """A file's rows as text.

    Attributes:
        lines: of each row, where it ends in the file.
        remarks: sentences on what was done to it, or looks like a mistake.
        filled: empty cells that were filled, by column.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    remarks: list[str] = field(default_factory=list)
    filled: dict[str, int] = field(default_factory=dict)

    def column(self, name: str) -> list[str]:
        index = self.header.index(name)
        return [row[index].strip() for row in self.rows]

    def fault(self, row: int, name: str, what: str) -> BenchError:
        return BenchError(f'{self.path}, line {self.lines[row]}, column "{name}": {what}')


@functools.lru_cache(maxsize=4)
def _read(file: FileSignature, settings: _Settings) -> tuple[list[str], Split, Split, float, str]:
    """Return class names ([] for regression), training and test set, the unit of numbers to predict, and remarks."""
    # 1. The file, the settings that name its columns, and the target.
    table = _table(file[0], settings.separator)
    for name in (*settings.targets, *settings.categorical, *settings.drop):
        if name not in table.header:
            raise BenchError(f'{table.path} has no column "{name}"; {nearest(name, table.header)}')
    # 2. The test set takes the same share of every class or, of a number, of every tenth of its values.
    several = len(settings.targets) > 1
    names, targets = _labels(table, settings) if several else _targets(table, settings.targets[0], settings)
    classes = quantile_bins(targets) if settings.regression else rarest_label(targets) if several else targets
    # Tenths have no names: in messages they are called by the column.
    groups = names or [settings.targets[0]] * (int(classes.max()) + 1)
    if several:
        classes = _grouped(classes)
        groups = ["some labels"] * (int(classes.max()) + 1)
    train, test = hold_out(classes, settings.test, str(table.path), groups)
    # 3. The inputs. Means, deviations and categories are those of `train`: nothing of the test rows goes into them.
    inputs = [
        column
        for name in table.header
        if name not in settings.targets and name not in settings.drop
        for column in _inputs(table, name, train, settings)
    ]
    if not inputs:
        raise BenchError(f"{table.path} has no column beside the target to learn from")
    # 4. A number to predict is standardised by the training rows as well.
    unit = _deviation(targets, train) if settings.regression else 1.0
    if settings.regression:
        targets = _standardised(targets, train).astype(np.float32)
    x, y = torch.from_numpy(np.stack(inputs, axis=1).astype(np.float32)), torch.from_numpy(targets)
    note = " ".join(filter(None, [*table.remarks, reading.on_filled(table.filled)]))
    return names, Split(x[train], y[train]), Split(x[test], y[test]), unit, note


def _table(path: Path, separator: str) -> _Table:
    rows, lines = list[list[str]](), list[int]()
    try:
        # csv needs newline="" to keep line breaks inside quotes; utf-8-sig drops the byte order mark of Excel.
        with open(path, encoding="utf-8-sig", newline="") as file:
            # strict: a stray quote is an error, not a part of a cell.
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                # The reader gives an empty list for a blank line.
                if not row:
                    continue
                if len(row) != len(header):
                    raise BenchError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}"
                    )
                # A cell with line breaks covers several lines of the file, so rows alone do not give the line.
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    except csv.Error as error:
        raise BenchError(f"{path}, line {reader.line_num}: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise BenchError(f"{path}: every column needs a unique name in the first line; {twice or 'one has none'}")
    if not rows:
        raise BenchError(f"{path} has no rows under its header")
    return _Table(path, header, rows, lines)


def _labels(table: _Table, settings: _Settings) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the names of the labels, and which of them each row has, shape (N, labels)."""
    columns = []
    for name in settings.targets:
        numbers = [reading.number(cell, settings.decimal) for cell in table.column(name)]
        for row, number in enumerate(numbers):
            if number not in (0, 1):
                cell = table.column(name)[row]
                raise table.fault(row, name, f'"{cell}" is neither 0 nor 1, which a column among several targets has')
        having = numbers.count(1)
        if not 3 <= having <= len(numbers) - 3:
            raise BenchError(
                f'{table.path}: column "{name}" has 1 in {having} of {len(numbers)} rows; a label needs at least '
                "3 rows with it and 3 without it, to train, to validate and to test"
            )
        columns.append(numbers)
    return list(settings.targets), np.array(columns, dtype=np.float32).T


def _grouped(strata: Indices) -> Indices:
    """Return strata, counted from 0, in which those of fewer than 3 rows are part of the largest."""
    _, groups, counts = np.unique(strata, return_inverse=True, return_counts=True)
    groups[counts[groups] < 3] = counts.argmax()
    return np.unique(groups, return_inverse=True)[1]


def _targets(table: _Table, target: str, settings: _Settings) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return class names and class numbers; or, for regression, no names and the numbers themselves."""
    cells = table.column(target)
    for row, cell in enumerate(cells):
        if cell.lower() in MISSING:
            raise table.fault(row, target, "the target is missing; remove the row")
        if settings.regression and reading.number(cell, settings.decimal) is None:
            hint = _hint(cell, target)
            raise table.fault(row, target, f'"{cell}" is not a number, which regression = true needs{hint}')
    if settings.regression:
        numbers = [reading.number(cell, settings.decimal) for cell in cells]
        _check_sizes(table, target, numbers)
        return [], np.array(numbers, dtype=np.float64)
    chosen = reading.spellings(cells, settings.decimal)
    table.remarks.append(reading.on_spellings(target, chosen))
    sizes = {name: reading.size(name, settings.decimal) for name in chosen.values()}
    # Classes that are all numbers are ordered by size, others by name.
    as_numbers = None not in sizes.values()
    names = sorted(sizes, key=lambda name: (sizes[name] or 0.0 if as_numbers else 0.0, name))
    if len(names) < 2:
        raise BenchError(f'{table.path}: column "{target}" has one class only, "{names[0]}"')
    # Classes with fewer than three rows on average: most likely the column is a number to predict.
    if len(names) > len(cells) // 3:
        hint = _hint(cells[0], target)
        hint = f'; "{cells[0]}" is not a number{hint}' if hint else ""
        raise BenchError(
            f'{table.path}: column "{target}" has {len(names)} different values in {len(cells)} rows, too '
            f"many for classes; if it is a number to predict, set task.regression = true{hint}"
        )
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.array([number_of[chosen[cell]] for cell in cells])


Column = np.ndarray[Any, np.dtype[np.float64]]


def _inputs(
    table: _Table,
    name: str,
    train: Indices,
    settings: _Settings,
) -> list[Column]:
    """Return the model's inputs that are made from a column."""
    cells = table.column(name)
    missing = [cell.lower() in MISSING for cell in cells]
    if any(missing) and not settings.fill:
        raise table.fault(missing.index(True), name, 'empty; fill such cells with task.missing = "fill"')
    table.filled[name] = sum(missing)
    numbers = [
        None if empty else reading.number(cell, settings.decimal) for cell, empty in zip(cells, missing, strict=True)
    ]
    known, parsed = len(cells) - sum(missing), sum(number is not None for number in numbers)
    if name not in settings.categorical:
        # A column is one of numbers if each of its cells, empty ones aside, is a number.
        if parsed == known:
            _check_sizes(table, name, numbers)
            return [_number_input(table, name, numbers, train)]
        _check_words(table, name, cells, numbers, missing)
    chosen = reading.spellings(
        [cell for cell, empty in zip(cells, missing, strict=True) if not empty], settings.decimal
    )
    table.remarks.extend([reading.on_spellings(name, chosen), reading.on_ids(name, cells, None)])
    # Empty cells that are to be filled become a category of their own, called "".
    values = np.array(["" if empty else chosen[cell] for cell, empty in zip(cells, missing, strict=True)])
    # Only values of training rows are categories: a model could learn nothing about others.
    categories = sorted(set(values[train]))
    if len(categories) > MOST_CATEGORIES:
        raise BenchError(
            f'{table.path}: column "{name}" has {len(categories)} different words (at most {MOST_CATEGORIES} make a '
            f'category); leave it out: task.drop = ["{name}"]'
        )
    return [(values == category).astype(np.float64) for category in categories]


def _number_input(table: _Table, name: str, numbers: list[float | None], train: Indices) -> Column:
    """Return a column of numbers as the model's input; None is replaced by the training rows' mean."""
    # A column with empty cells cannot be one of row numbers.
    if None not in numbers:
        table.remarks.append(reading.on_ids(name, table.column(name), [number or 0.0 for number in numbers]))
    column = np.array([math.nan if number is None else number for number in numbers])
    if np.isnan(column[train]).all():
        raise BenchError(f'{table.path}: column "{name}" is empty in all rows to train on; task.drop = ["{name}"]')
    column[np.isnan(column)] = np.nanmean(column[train])
    return _standardised(column, train)


def _check_sizes(table: _Table, name: str, numbers: Sequence[float | None]) -> None:
    """Raise BenchError if a number is too large to compute a mean and a deviation with."""
    for row, number in enumerate(numbers):
        if number is not None and abs(number) > reading.LARGEST:
            cell = table.column(name)[row]
            raise table.fault(
                row, name, f'"{cell}" is too large to compute with; if it stands for a missing value, empty the cell'
            )


def _check_words(table: _Table, name: str, cells: list[str], numbers: list[float | None], missing: list[bool]) -> None:
    """Raise BenchError if most cells of a text column are not words: numbers, dates or amounts."""
    kinds = [
        "a number" if number is not None else reading.no_word(cell) for cell, number in zip(cells, numbers, strict=True)
    ]
    known = [kind for kind, empty in zip(kinds, missing, strict=True) if not empty]
    # The column is taken for words if at most half of its cells are numbers, dates and the like.
    if sum(kind is not None for kind in known) <= len(known) / 2:
        return
    as_categories = f'if they are categories, set task.categorical = ["{name}"]'
    # The first cell that is no number: it keeps the column from being read as numbers.
    row = next(row for row, number in enumerate(numbers) if number is None and not missing[row])
    if sum(kind == "a number" for kind in known) > len(known) / 2:
        hint = _hint(cells[row], name)
        raise table.fault(row, name, f'"{cells[row]}" is not a number like most of the column{hint}; {as_categories}')
    row = next(row for row, kind in enumerate(kinds) if kind in reading.NO_WORDS and not missing[row])
    raise table.fault(row, name, f'"{cells[row]}" is not a word{_hint(cells[row], name)}; {as_categories}')


def _hint(cell: str, column: str) -> str:
    """Return, as the end of a sentence, the remedy for a cell that is neither a number nor a word."""
    kind = reading.no_word(cell)
    return f" but {kind}: {reading.REMEDIES[kind].format(column=column)}" if kind else ""


def _standardised(column: Column, train: Indices) -> Column:
    """Return the column minus the mean, divided by the deviation, of the training rows; a constant column is 0."""
    standardised: Column = (column - column[train].mean()) / _deviation(column, train)
    return standardised


def _deviation(column: Column, train: Indices) -> float:
    return float(column[train].std()) or 1.0
