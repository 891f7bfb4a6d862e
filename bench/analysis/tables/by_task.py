"""The table by task: a row for each score that a task reports, a column for each optimizer, the average of a suite.

The average is that of GLUE (Wang et al. 2019, arXiv:1804.07461, section 3): the scores of a task are averaged first,
then the tasks, each counting the same however large it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from bench.analysis import bounds
from bench.analysis.render.table import DAGGER, EMPTY, SECTION, Table
from bench.analysis.stats import Interval, mean_interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import footnotes
from bench.store import selection
from bench.store.conditions import KEY, keyed, merged, names, value_text

INTERVAL = "95% interval"
Scores = dict[tuple[str, str], pd.DataFrame]
"""(condition, label) -> what the task reports of the chosen configuration, (finished seeds, columns), or NaN."""


@dataclass(frozen=True)
class Block:
    """The chosen rows that differ in task and label alone.

    `axes` is what else is varied, {column: value}; `name` the same as text, "" where there is nothing else.
    """

    axes: Mapping[str, Any]
    name: str
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)  # (task, label) -> its row


@dataclass(frozen=True)
class Line:
    """The same number of every label: one line of the table, one line per label in its CSV.

    Attributes:
        shown: the name of the line.
        task, column: what is measured, in the words of records.csv.
        cells: label -> the interval over seeds, of metrics as fractions.
        incomplete: the labels to mark with a dagger.
        degenerate: those to mark with a section sign.
        tasks: label -> how many tasks it is over.
        signed: whether it is a difference.
    """

    block: Block
    shown: str
    task: str
    column: str
    cells: dict[str, Interval]
    incomplete: set[str]
    tasks: dict[str, int]
    signed: bool = False
    degenerate: set[str] = field(default_factory=set)


class ByTask:
    """The content of the table, computed from the chosen rows and their runs."""

    def __init__(self, study: Study) -> None:
        self.captions, self.meta = study.captions, study.meta
        self.labels: list[str] = study.meta["labels"]
        self.tasks: list[str] = self.captions.varied["task"]
        self.axes = [column for column in self.captions.varied if column != "task"]
        self.blocks = list(_blocks(study.chosen, self.axes))
        self.suite = self.captions.suite(self.tasks)
        self.scores = _scores(study)
        # skipna=False: a seed that lacks one score has no mean, not one over fewer scores than other seeds.
        self.means = {key: runs.mean(axis=1, skipna=False).dropna() for key, runs in self.scores.items()}

    def lines(self) -> Iterator[Line]:
        """Yield every line in order: per block its tasks, then the average and its difference to the baseline's."""
        for block in self.blocks:
            for task in self.tasks:
                for column in self.captions.reported(task):
                    yield self._measured(block, task, column)
            if self.suite:
                yield self._average(block)
                if len(self.labels) > 1:
                    yield self._difference(block)

    def notes(self) -> Iterator[str]:
        """Yield notes on what the cells lack, other than runs."""
        among = [block.name for block in self.blocks]
        yield from merged(self._unmeasured(), among)
        # All that follows is about the average, which only the tasks of a suite have.
        if not self.suite:
            return
        ran, all_tasks = len(self.tasks), self.suite["tasks"]
        if ran < all_tasks:
            yield (
                f"The {self.average} is over {ran} of {self.suite['name']}'s {all_tasks} tasks: "
                f"{self.captions.titles(self.tasks)}. It cannot be compared with an average over other tasks."
            )
        yield from merged(self._without(), among)
        yield from merged(self._fewer_seeds(), among)

    @property
    def average(self) -> str:
        """Return the name of the average, e.g. "GLUE average"."""
        return f"{self.suite['name']} average" if self.suite else ""

    # ---- lines -----------------------------------------------------------------------------------------------

    def _measured(self, block: Block, task: str, column: str) -> Line:
        rows = {label: block.rows[task, label] for label in self.labels}
        cells = {label: self._interval(self.scores[row.condition, label][column]) for label, row in rows.items()}
        return Line(
            block,
            self.captions.score_of(task, column),
            task,
            column,
            cells,
            {label for label, interval in cells.items() if interval.n < rows[label].planned},
            dict.fromkeys(self.labels, 1),
            degenerate={label for label, row in rows.items() if row.degenerate},
        )

    def _average(self, block: Block) -> Line:
        # A label's average is over the tasks that it has; if they are not all, it is marked and a footnote says so.
        over = {label: self._ran(block, label) for label in self.labels}
        cells = {label: self._interval(self._averages(block, label, tasks)) for label, tasks in over.items()}
        incomplete = {label for label in self.labels if self._lacks(block, label, cells[label])}
        counts = {label: len(tasks) for label, tasks in over.items()}
        return Line(block, self.average, self.average, "", cells, incomplete, counts)

    def _difference(self, block: Block) -> Line:
        """Return the difference to the baseline, seed by seed, over the tasks that both have."""
        baseline = self.captions.baseline
        theirs = self._ran(block, baseline)
        # Over the tasks that both have: otherwise the difference would be one between tasks.
        both = {label: [task for task in self._ran(block, label) if task in theirs] for label in self.labels}
        cells = {
            # Series subtract by seed; a seed without both averages is NaN and not counted.
            label: self._interval(
                self._averages(block, label, tasks) - self._averages(block, baseline, tasks), of_difference=True
            )
            for label, tasks in both.items()
            if label != baseline
        }
        incomplete = {label for label, interval in cells.items() if self._lacks(block, label, interval, theirs)}
        counts = {label: len(tasks) for label, tasks in both.items()}
        name = f"difference to {baseline}"
        return Line(block, name, self.average, name, cells, incomplete, counts, signed=True)

    # ---- parts -----------------------------------------------------------------------------------------------

    def _interval(self, values: pd.Series, *, of_difference: bool = False) -> Interval:
        limits = bounds.of_difference if of_difference else bounds.of_metric
        return mean_interval(values).within(*limits(self.meta["metric"]))

    def _means(self, block: Block, task: str, label: str) -> pd.Series:
        """Return each seed's mean of the task's scores, without the seeds that lack one of them."""
        return self.means[block.rows[task, label].condition, label]

    def _ran(self, block: Block, label: str) -> list[str]:
        return [task for task in self.tasks if len(self._means(block, task, label))]

    def _averages(self, block: Block, label: str, tasks: Iterable[str]) -> pd.Series:
        """Return each seed's average over the tasks, for the seeds that have finished all tasks."""
        means = [self._means(block, task, label) for task in tasks]
        # The inner join keeps the seeds that have every task.
        return pd.concat(means, axis=1, join="inner").mean(axis=1) if means else pd.Series(dtype=float)

    def _planned(self, block: Block, label: str) -> int:
        return max(block.rows[task, label].planned for task in self.tasks)

    def _lacks(self, block: Block, label: str, interval: Interval, others: Sequence[str] | None = None) -> bool:
        """Return whether an average covers less than planned: fewer seeds or, on either side, fewer tasks."""
        fewer_tasks = any(len(ran) < len(self.tasks) for ran in (self._ran(block, label), others) if ran is not None)
        return fewer_tasks or interval.n < self._planned(block, label)

    # ---- footnotes -------------------------------------------------------------------------------------------

    def _unmeasured(self) -> Iterator[tuple[str, str, str]]:
        """Yield notes on finished runs that lack a score, as those of older versions may."""
        for block in self.blocks:
            for (task, label), row in block.rows.items():
                for column, values in self.scores[row.condition, label].items():
                    known = int(values.notna().sum())
                    if known < row.done:
                        score = self.captions.score_of(task, str(column))
                        yield block.name, f"{DAGGER} {score} of {label}", f": in {known} of {row.done} finished runs."

    def _without(self) -> Iterator[tuple[str, str, str]]:
        """Yield notes on labels whose average is over fewer tasks, grouped by the tasks that they lack.

        Labels that have none of the tasks are left out.
        """
        for block in self.blocks:
            lacking: dict[tuple[str, ...], list[str]] = {}
            for label in self.labels:
                ran = self._ran(block, label)
                missing = tuple(task for task in self.tasks if task not in ran)
                if ran and missing:
                    lacking.setdefault(missing, []).append(label)
            for missing, labels in lacking.items():
                said = (
                    f": without {self.captions.titles(missing)}, and not to be compared with averages over other "
                    "tasks; differences are over the tasks that both have."
                )
                yield block.name, f"{DAGGER} {self.average} of {', '.join(labels)}", said

    def _fewer_seeds(self) -> Iterator[tuple[str, str, str]]:
        for block in self.blocks:
            for label, interval in self._average(block).cells.items():
                planned = self._planned(block, label)
                # A label without any finished run is covered by the footnote on missing runs.
                if self._ran(block, label) and interval.n < planned:
                    seeds = f"over the {interval.n} of {planned} seeds that" if interval.n else "no seed"
                    yield block.name, f"{DAGGER} {self.average} of {label}", f": {seeds} finished all of its tasks."


def table(study: Study) -> Table:
    """Return the table "tasks" of an experiment that varies the task."""
    content = ByTask(study)
    lines = list(content.lines())
    text = [[*map(value_text, line.block.axes.values()), *cells] for line in lines for cells in _cells(line, content)]
    caption = [*_caption(content), *study.captions.closing()]
    notes = [
        *footnotes.choices(study),
        *content.notes(),
        *footnotes.budget(study.chosen, "column"),
        *study.captions.cut(),
    ]
    columns = [*names(content.axes), "task", *content.labels]
    title = f"{content.meta['title']}: by task"
    numbers = _numbers(lines, content)
    return Table(content.meta["name"], "tasks", title, caption, columns, text, notes, numbers, len(content.axes))


def _caption(content: ByTask) -> Iterator[str]:
    captions = content.captions
    metric = captions.meta["metric"]
    yield (
        f"Test scores{captions.times} after the last epoch; {captions.better} is better. Mean over seeds ± "
        f"half-width of the 95% Student-t interval. {captions.metric.capitalize()}: {metric['definition']}."
    )
    if not content.suite:
        return
    yield (
        f"{content.average}: for each seed that finished every task the unweighted mean over the tasks of the mean of "
        "their scores."
    )
    if len(content.labels) > 1:
        yield f"Below: its difference to that of {captions.baseline}, paired by seed, with its 95% t interval."


def _cells(line: Line, content: ByTask) -> Iterator[list[str]]:
    """Yield a line as one row of text, or a line of differences as two rows, since one would be too wide for a page."""
    captions, shown = content.captions, [line.cells.get(label) for label in content.labels]
    marks = [DAGGER * (label in line.incomplete) + SECTION * (label in line.degenerate) for label in content.labels]
    if not line.signed:
        yield [line.shown, *(captions.mean(cell) + mark for cell, mark in zip(shown, marks, strict=True) if cell)]
        return
    # A difference has no cell for the baseline.
    means = [EMPTY if cell is None else captions.signed_mean(cell) for cell in shown]
    yield [line.shown, *map(str.__add__, means, marks)]
    yield [INTERVAL, *(EMPTY if cell is None else captions.signed_bounds(cell) for cell in shown)]


def _numbers(lines: Sequence[Line], content: ByTask) -> pd.DataFrame:
    unit = f" [{content.captions.unit}]" if content.captions.unit else ""
    data: list[dict[str, Any]] = []
    for line in lines:
        for label, interval in line.cells.items():
            # An average is of no single task, so there is no row and no configuration.
            row, shown = line.block.rows.get((line.task, label)), interval.scaled(content.captions.scale)
            data.append(
                {
                    **line.block.axes,
                    "task": line.task,
                    "score": line.column,
                    "optimizer": label,
                    "config": row.config if row else "",
                    "tasks": line.tasks[label],
                    "n": interval.n,
                    **{f"{part}{unit}": getattr(shown, part) for part in ("mean", "low", "high")},
                }
            )
    return pd.DataFrame(data)


def _blocks(best: Sequence[Row], axes: Sequence[str]) -> Iterable[Block]:
    blocks: dict[str, Block] = {}
    for row in best:
        name = ", ".join(f"{column.rpartition('.')[2]}={value_text(row.varied[column])}" for column in axes)
        block = blocks.setdefault(name, Block({column: row.varied[column] for column in axes}, name))
        block.rows[row.varied["task"], row.label] = row
    return blocks.values()


def _scores(study: Study) -> Scores:
    records = keyed(selection.reported(study.results.records))
    done = records[records["status"] == "done"]
    groups = {key: runs.set_index("seed") for key, runs in done.groupby(KEY, sort=False)}
    # For a label without a finished run: no lines, but the same columns.
    none = done.iloc[:0].set_index("seed")
    scores = {}
    for row in study.chosen:
        runs = groups.get((row.condition, row.label, row.config), none)
        columns = list(study.captions.reported(row.varied["task"]))
        # A score that an older run did not record becomes a column of NaN.
        scores[row.condition, row.label] = runs.reindex(columns=columns).astype(float)
    return scores
