"""A table of your own: a CSV file with a column to predict."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.data import Stamp, stamp
from bench.errors import BenchError, nearest
from bench.registry import register_task
from bench.tasks.base import Metric, Split, Task
from bench.tasks.own import MISSING, Indices, TestShare, hold_out

MOST_CATEGORIES = 50
"""A column of words with more different values than this is no category but a name or a text."""

R2 = Metric(
    "r2", "R2", "", 1.0, True, "1 minus the squared error as a share of that of always guessing the split's mean"
)


@register_task("csv")
class CsvTable(Task):
    """A table of your own, with a header: numbers and words in, a class or a number (`regression`) out.

    Columns of numbers are standardised with the training rows' mean and deviation. Of a column of words (or one in
    `categorical`) each value that training rows have becomes a 0/1 input; values that only test rows have are all 0.
    Classes are numbered in the order of their names, numbers by size. A number to predict is standardised as well.

    Args:
        path: the file, relative to the experiment file. Not it but what is in it is part of a run's identity.
        target: the column to predict.
        regression: the target is a number; loss is the squared error, score R2.
        categorical: columns of numbers that stand for categories.
        drop: columns to leave out (row numbers, names).
        missing: "refuse" rows with empty cells, or "fill" them: numbers by the training rows' mean, words by a
            category of their own. Empty are also ?, NA, N/A, NaN and null.
        separator: between columns; "\\t" for tabs.
        test: share of the rows (of each class) that is the test set, the same in every run.

    Raises:
        BenchError: the file is not as it should be; the message names the line, the column, and what was expected.
    """

    def __init__(
        self,
        *,
        path: str,
        target: str,
        regression: bool = False,
        categorical: list[str] = [],  # noqa: B006 - never changed
        drop: list[str] = [],  # noqa: B006
        missing: Literal["refuse", "fill"] = "refuse",
        separator: Annotated[str, Field(min_length=1, max_length=1)] = ",",
        test: TestShare = 0.2,
    ) -> None:
        settings = _Settings(target, regression, tuple(categorical), tuple(drop), missing == "fill", separator, test)
        self.regression, self.title = regression, Path(path).stem
        self.class_names, self._train, self._test = _read(stamp(Path(path)), settings)
        self.input_shape = tuple(self._train.inputs.shape[1:])
        self.num_outputs = 1 if regression else len(self.class_names)
        if regression:
            self.metric, self.loss_name = R2, "squared error (of the standardised target)"

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """The file itself."""
        if not path.is_file():
            beside = [file.name for file in path.parent.glob("*.csv")] if path.parent.is_dir() else []
            raise BenchError(f"{path} is not a file; {nearest(path.name, beside)}")
        return [path]

    def load(self) -> tuple[Split, Split]:
        """Inputs (N, inputs) float32; targets (N,) int64, or float32 for regression."""
        return self._train, self._test

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2 if self.regression else super().losses(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        if not self.regression:
            return super().score(outputs, targets)
        predicted, true = outputs[:, 0].double(), targets.double()
        spread = (true - true.mean()).square().sum().item()
        return 1 - (predicted - true).square().sum().item() / spread if spread else 0.0


@dataclass(frozen=True)
class _Settings:
    target: str
    regression: bool
    categorical: tuple[str, ...]
    drop: tuple[str, ...]
    fill: bool
    separator: str
    test: float


@dataclass(frozen=True)
class _Table:
    """A file's rows as text.

    Attributes:
        lines: of each row, where it ends in the file.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        index = self.header.index(name)
        return [row[index].strip() for row in self.rows]

    def fault(self, row: int, name: str, what: str) -> BenchError:
        return BenchError(f'{self.path}, line {self.lines[row]}, column "{name}": {what}')


@functools.lru_cache(maxsize=4)
def _read(file: Stamp, settings: _Settings) -> tuple[list[str], Split, Split]:
    """Class names ([] for regression), training set and test set."""
    table = _table(file[0], settings.separator)
    for name in (settings.target, *settings.categorical, *settings.drop):
        if name not in table.header:
            raise BenchError(f'{table.path} has no column "{name}"; {nearest(name, table.header)}')
    names, targets = _targets(table, settings)
    classes = np.zeros(len(targets), np.int64) if settings.regression else targets
    train, test = hold_out(classes, settings.test, str(table.path), names or [settings.target])
    inputs = [
        column
        for name in table.header
        if name != settings.target and name not in settings.drop
        for column in _inputs(table, name, train, settings)
    ]
    if not inputs:
        raise BenchError(f"{table.path} has no column beside the target to learn from")
    if settings.regression:
        targets = _standardised(targets, train).astype(np.float32)
    x, y = torch.from_numpy(np.stack(inputs, axis=1).astype(np.float32)), torch.from_numpy(targets)
    return names, Split(x[train], y[train]), Split(x[test], y[test])


def _table(path: Path, separator: str) -> _Table:
    rows, lines = list[list[str]](), list[int]()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise BenchError(
                        f"{path}, line {reader.line_num}: {len(row)} cells, but the header has {len(header)}"
                    )
                rows.append(row)
                lines.append(reader.line_num)
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read: {error}") from error
    except csv.Error as error:
        raise BenchError(f"{path}, line {reader.line_num}: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice or "" in header:
        raise BenchError(f"{path}: every column needs a name of its own in the first line; {twice or 'one has none'}")
    if not rows:
        raise BenchError(f"{path} has no rows under its header")
    return _Table(path, header, rows, lines)


def _targets(table: _Table, settings: _Settings) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Class names and class numbers; or, for regression, no names and the numbers themselves."""
    cells = table.column(settings.target)
    for row, cell in enumerate(cells):
        if cell.lower() in MISSING:
            raise table.fault(row, settings.target, "the target is missing; take the row out")
        if settings.regression and _number(cell) is None:
            raise table.fault(row, settings.target, f'"{cell}" is no number, which regression = true asks for')
    if settings.regression:
        return [], np.array([float(cell) for cell in cells])
    distinct = set(cells)
    numbers = {cell: number for cell in distinct if (number := _number(cell)) is not None}
    names = sorted(distinct, key=lambda cell: (numbers[cell], cell) if len(numbers) == len(distinct) else (0.0, cell))
    if len(names) < 2:
        raise BenchError(f'{table.path}: column "{settings.target}" has one class only, "{names[0]}"')
    if len(names) > len(cells) // 3:
        raise BenchError(
            f'{table.path}: column "{settings.target}" has {len(names)} different values in {len(cells)} rows, too '
            "many for classes; if it is a number to predict, say task.regression = true"
        )
    return names, np.array([names.index(cell) for cell in cells])


Column = np.ndarray[Any, np.dtype[np.float64]]


def _inputs(
    table: _Table,
    name: str,
    train: Indices,
    settings: _Settings,
) -> list[Column]:
    """The model's inputs that a column makes."""
    cells = table.column(name)
    missing = [cell.lower() in MISSING for cell in cells]
    if any(missing) and not settings.fill:
        raise table.fault(missing.index(True), name, 'empty; fill such cells with task.missing = "fill"')
    numbers = [None if empty else _number(cell) for cell, empty in zip(cells, missing, strict=True)]
    known, parsed = len(cells) - sum(missing), sum(number is not None for number in numbers)
    if name not in settings.categorical and parsed == known:
        column = np.array([math.nan if number is None else number for number in numbers])
        if np.isnan(column[train]).all():
            raise BenchError(f'{table.path}: column "{name}" is empty in all rows to train on; task.drop = ["{name}"]')
        column[np.isnan(column)] = np.nanmean(column[train])
        return [_standardised(column, train)]
    if name not in settings.categorical and parsed > known / 2:
        row = next(row for row, number in enumerate(numbers) if number is None and not missing[row])
        raise table.fault(
            row,
            name,
            f'"{cells[row]}" is no number, as most of the column are; if they are categories, say so: '
            f'task.categorical = ["{name}"]',
        )
    values = np.array(["" if empty else cell for cell, empty in zip(cells, missing, strict=True)])
    categories = sorted(set(values[train]))
    if len(categories) > MOST_CATEGORIES:
        raise BenchError(
            f'{table.path}: column "{name}" has {len(categories)} different words (at most {MOST_CATEGORIES} make a '
            f'category); leave it out: task.drop = ["{name}"]'
        )
    return [(values == category).astype(np.float64) for category in categories]


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _standardised(column: Column, train: Indices) -> Column:
    """Minus the mean, by the deviation, of the training rows; a constant column is 0."""
    standardised: Column = (column - column[train].mean()) / (column[train].std() or 1.0)
    return standardised
