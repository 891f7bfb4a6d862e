"""What every figure draws: the chosen rows, condition by condition, with their names, units and looks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.conditions import conditions, varied
from bench.analysis.plots.style import PANEL_HEIGHT, WIDTH, WIDTHS, Style, label_styles, panel_width, text_width
from bench.analysis.summary import Provenance, Row, all_rows, provenance, tried_rows

if TYPE_CHECKING:
    from bench.records import Results

T = TypeVar("T")
ROWS = 6  # of panels on a page, one a condition
ROW_HEIGHT = 1.45
CAUTION_SIZE = 7.0


class Drawing(NamedTuple):
    """A figure, what it shows in a sentence or two, and the numbers drawn, unrounded and in the unit of the figure."""

    figure: Figure
    caption: str
    data: pd.DataFrame


@dataclass(frozen=True)
class View:
    """An experiment as the figures see it.

    Attributes:
        rows: every configuration under every condition.
        tried: the same over the runs that it was chosen by, which are others where tuning is a phase of its own.
        best: the chosen one of each label and condition, those of them with a finished run.
        conditions: the conditions with a finished run, in order.
        several: whether anything is varied, so that panels have to name their condition.
        styles: the look of each label.
        source: where the numbers come from.
        width: of a figure, in inches.
    """

    meta: Mapping[str, Any]
    rows: list[Row]
    tried: list[Row]
    best: list[Row]
    conditions: list[str]
    several: bool
    styles: Mapping[str, Style]
    source: Provenance
    width: float = WIDTH

    @property
    def narrow(self) -> bool:
        """Whether there is room for one panel only, so that panels stand below each other."""
        return self.width < WIDTH

    @property
    def metric(self) -> str:
        return str(self.meta["metric"]["name"])

    @property
    def scale(self) -> float:
        return float(self.meta["metric"]["scale"])

    @property
    def unit(self) -> str:
        """The unit of the metric in brackets, e.g. " (%)"."""
        unit = self.meta["metric"]["unit"]
        return f" ({unit})" if unit else ""

    @property
    def points(self) -> str:
        """The unit of a difference of two metrics in brackets: percentages differ by points."""
        return " (points)" if self.meta["metric"]["unit"] == "%" else self.unit

    def chosen(self, condition: str) -> list[Row]:
        """The rows to draw under a condition, at most one a label."""
        return [row for row in self.best if row.condition == condition]

    def baseline(self, condition: str) -> Row | None:
        return next((row for row in self.chosen(condition) if row.label == self.meta["baseline"]), None)

    def labels(self) -> list[str]:
        """The labels that are drawn anywhere, in order."""
        return [label for label in self.meta["labels"] if any(row.label == label for row in self.best)]

    def handle(self, label: str, *, line: bool = True, marker: bool = False) -> Line2D:
        """Legend entry of a label; an incomplete one says over how many runs it is.

        The configuration is named if it is the same under all conditions.
        """
        rows = [row for row in self.rows if row.label == label and row.chosen]
        titles = {row.title for row in rows if row.done}
        done, planned = sum(row.done for row in rows), sum(row.planned for row in rows)
        lost = "" if done == planned else f", {done} of {planned} {'runs' if self.several else 'seeds'}"
        style = {
            **self.styles[label],
            **({} if marker else {"marker": None}),
            **({} if line else {"linestyle": "none"}),
        }
        return Line2D([], [], label=(titles.pop() if len(titles) == 1 else label) + lost, **style)

    def panel_width(self, columns: int) -> float:
        """About how wide each of so many panels is, in inches, where there is room for them beside each other."""
        return panel_width(1 if self.narrow else columns, self.width)

    def stacked(self, grid: Sequence[Sequence[T]]) -> list[list[T]]:
        """Panels in lines, or all below each other."""
        return [[panel] for line in grid for panel in line] if self.narrow else [list(line) for line in grid]

    def split(self, columns: Sequence[T]) -> list[list[T]]:
        """What stands beside each other on a page, for each page."""
        return [[column] for column in columns] if self.narrow else [list(columns)]

    def figure(self, width: float, height: float) -> Figure:
        """An empty figure, sizes in inches, with what must be said of the data above all panels."""
        figure = Figure(figsize=(width, height), layout="constrained")
        if self.source.caution:
            letters = int(len(self.source.caution) * 0.95 * width / text_width(self.source.caution, CAUTION_SIZE))
            figure.suptitle(textwrap.fill(self.source.caution, letters), fontsize=CAUTION_SIZE, fontstyle="italic")
        return figure

    def panels(self, rows: int, columns: int, **sharing: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
        """A figure of panels; flat ones where each row is a condition."""
        height = ROW_HEIGHT if self.several else PANEL_HEIGHT
        figure = self.figure(self.width, height * rows + 0.35 * (1 + self.several))
        return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **sharing))


def view_of(results: Results, width: str = "page") -> View:
    """Everything that figures need of the results, beside the curves; `width` is a key of WIDTHS."""
    meta, rows = results.meta, all_rows(results)
    best = [row for row in rows if row.chosen and row.done]
    return View(
        meta=meta,
        rows=rows,
        tried=tried_rows(results),
        best=best,
        conditions=[name for name in conditions(meta) if any(row.condition == name for row in best)],
        several=bool(varied(meta)),
        styles=label_styles(meta["labels"], meta["baseline"]),
        source=provenance(results),
        width=WIDTHS[width],
    )


def pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The items in pages of at most `size`, as even as they can be."""
    count = -(-len(items) // size)
    for page in range(count):
        yield items[page * len(items) // count : (page + 1) * len(items) // count]


def name_panels(axes: np.ndarray[Any, Any], conditions: Sequence[str], titles: Sequence[str]) -> None:
    """Conditions down the side, one a row of panels; what they show above the first row."""
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title)
    for ax, condition in zip(axes[:, 0], conditions, strict=True):
        ax.set_ylabel(folded(condition, 0.85 * ROW_HEIGHT))


def folded(condition: str, inches: float) -> str:
    """A condition on a line a setting, and two where one would be longer than so many inches."""
    lines = condition.replace(", ", ",\n").split("\n")
    return "\n".join(line if text_width(line, 8) <= inches else line.replace("=", "=\n") for line in lines)
