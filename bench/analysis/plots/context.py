"""The context of every figure: the chosen rows of each condition, with names, units and looks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import bounds
from bench.analysis.bounds import Bounds
from bench.analysis.captions import gap_of
from bench.analysis.plots.looks import Style, styles_of
from bench.analysis.plots.style import NARROW, PANEL_HEIGHT, WIDTH, fold, panel_width, points, text_width
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.core.meta import Meta
from bench.store.conditions import conditions, varied

T = TypeVar("T")
ROWS = 6  # of panels on a page, one a condition
ROW_HEIGHT = 1.45
SHARING = 6  # optimizers in one panel; more have a panel each
ACROSS, ACROSS_NARROW = 4, 2  # small panels beside each other
MULTIPLES = 20  # small panels on a page
MULTIPLE_HEIGHT = 1.15
MULTIPLE_SIZE = 7.0
# zorder 1 lies below matplotlib's 2 for lines: the others never cover the panel's own optimizer.
PALE: Style = {"color": "#CFCFCF", "linewidth": 0.8, "linestyle": "-", "zorder": 1.0}
POINT: Style = {"marker": "o", "markersize": 3.5, "linestyle": "none"}
EACH = "A panel for each optimizer, with {} in all of them and the others pale."
CAUTION_SIZE = 7.0


class Drawing(NamedTuple):
    """A figure, what it shows in a sentence or two, and the numbers drawn, unrounded and in the unit of the figure."""

    figure: Figure
    caption: str
    data: pd.DataFrame


@dataclass(frozen=True)
class FigureContext:
    """An experiment as the figures see it.

    Attributes:
        study: the experiment.
        best: the chosen row of each label and condition, if the row has a score.
        conditions: the conditions that have such a row, in order.
        several: whether anything is varied, so that panels have to name their condition.
        styles: the look of each label.
        width: of a figure, in inches.
    """

    study: Study
    best: list[Row]
    conditions: list[str]
    several: bool
    styles: Mapping[str, Style]
    width: float = WIDTH

    @property
    def meta(self) -> Meta:
        return self.study.meta

    @property
    def rows(self) -> list[Row]:
        return self.study.rows

    @property
    def tried(self) -> list[Row]:
        return self.study.tried

    @property
    def narrow(self) -> bool:
        """Return whether there is room for one panel only, so that panels stand below each other."""
        return self.width < NARROW

    @property
    def metric(self) -> str:
        return str(self.meta["metric"]["name"])

    @property
    def gap(self) -> str:
        """Return the axis label of the generalization gap, with its unit."""
        return f"{gap_of(self.meta['metric'])}{self.points}"

    @property
    def scale(self) -> float:
        return float(self.meta["metric"]["scale"])

    @property
    def unit(self) -> str:
        """Return the unit of the metric in brackets, e.g. " (%)"."""
        unit = self.meta["metric"]["unit"]
        return f" ({unit})" if unit else ""

    @property
    def limits(self) -> Bounds:
        """Return the lowest and the highest value of the metric, in the unit shown."""
        low, high = bounds.of_metric(self.meta["metric"])
        return low * self.scale, high * self.scale

    @property
    def points(self) -> str:
        """Return the unit of a difference of two metrics in brackets: percentages differ by points."""
        return " (points)" if self.meta["metric"]["unit"] == "%" else self.unit

    def chosen(self, condition: str) -> list[Row]:
        """Return the rows to draw under a condition, at most one per label."""
        return [row for row in self.best if row.condition == condition]

    def baseline(self, condition: str) -> Row | None:
        return next((row for row in self.chosen(condition) if row.label == self.meta["baseline"]), None)

    def labels(self) -> list[str]:
        """Return the labels that are drawn anywhere, in order."""
        return [label for label in self.meta["labels"] if any(row.label == label for row in self.best)]

    def handle(self, label: str, *, line: bool = True, marker: bool = False) -> Line2D:
        """Return the legend entry of a label; for an incomplete label it gives the number of runs.

        The configuration is named if it is the same under all conditions.
        """
        rows = [row for row in self.rows if row.label == label and row.chosen]
        # One title for all conditions means that the same configuration was chosen everywhere.
        titles = {row.title for row in rows if row.scored}
        done, planned = sum(row.scored for row in rows), sum(row.planned for row in rows)
        # With one condition a run is a seed; with several, a label has more runs than seeds.
        lost = "" if done == planned else f", {done} of {planned} {'runs' if self.several else 'seeds'}"
        style = {
            **self.styles[label],
            **({} if marker else {"marker": None}),
            **({} if line else {"linestyle": "none"}),
        }
        return Line2D([], [], label=(titles.pop() if len(titles) == 1 else label) + lost, **style)

    def panel_width(self, columns: int) -> float:
        """Return the approximate width in inches of each of this many panels, if they fit beside each other."""
        return panel_width(1 if self.narrow else columns, self.width)

    def stacked(self, grid: Sequence[Sequence[T]]) -> list[list[T]]:
        """Return the panels in lines, or all below each other."""
        return [[panel] for line in grid for panel in line] if self.narrow else [list(line) for line in grid]

    def split(self, columns: Sequence[T]) -> list[list[T]]:
        """Return, per page, the columns that stand beside each other."""
        return [[column] for column in columns] if self.narrow else [list(columns)]

    def in_full(self, rows: Sequence[Row], focus: str | None) -> tuple[list[Row], list[Row]]:
        """Return the rows to draw in full (the focused label and the baseline) and the rows to draw pale."""
        shown = {focus, self.meta["baseline"]}
        full = [row for row in rows if focus is None or row.label in shown]
        return full, [row for row in rows if row not in full]

    def figure(self, heading: str = "") -> Figure:
        """Return an empty figure, with warnings about the data and the heading above all panels."""
        # Only the width is final: `finish` sets the height once all panels are filled.
        figure = Figure(figsize=(self.width, self.width), layout="constrained")
        said = [fold(text, 0.95 * self.width, CAUTION_SIZE) for text in (self.study.source.caution, heading) if text]
        if said:
            figure.suptitle("\n".join(said), fontsize=points(CAUTION_SIZE), fontstyle="italic")
        return figure

    def panels(self, rows: int, columns: int, **sharing: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
        """Return a figure with a grid of panels."""
        figure = self.figure()
        return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **sharing))

    @property
    def panel_height(self) -> float:
        """Return the height of a panel in inches; panels are flat if each row of them is a condition."""
        return ROW_HEIGHT if self.several else PANEL_HEIGHT

    # ---- many optimizers: a panel each -----------------------------------------------------------------------

    @property
    def many(self) -> bool:
        """Return whether the labels are too many to share a panel."""
        return len(self.labels()) > SHARING

    def multiples(
        self, titles: Sequence[str], x: str, y: str, heading: str = "", **sharing: Any
    ) -> tuple[Figure, list[Axes]]:
        """Return a figure with one small panel per title; `x` and `y` label the outer axes."""
        across = min(len(titles), ACROSS_NARROW if self.narrow else ACROSS)
        figure = self.figure(heading)
        # -(-a // b) rounds up: the last line of panels may be short, and its empty places are removed below.
        grid = np.asarray(figure.subplots(-(-len(titles) // across), across, squeeze=False, **sharing)).ravel()
        for ax, title in zip(grid, titles, strict=False):
            name = fold(title, panel_width(across, self.width) + 0.15, MULTIPLE_SIZE)
            ax.set_title(name, fontsize=points(MULTIPLE_SIZE))
        for ax in grid[len(titles) :]:
            ax.remove()
        for ax in grid[max(0, len(titles) - across) : len(titles)]:  # nothing stands below these
            # A shared axis has labels below the lowest line only, which is not where every column ends.
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(fold(x, panel_width(across, self.width) + 0.1))
        for ax in grid[: len(titles) : across]:
            ax.set_ylabel(fold(y, MULTIPLE_HEIGHT))
        return figure, list(grid[: len(titles)])

    def named(self, labels: Sequence[str], condition: str) -> list[str]:
        """Return a panel title per label: the label with its configuration chosen under the condition."""
        names = {row.label: row.name for row in self.chosen(condition)}
        return [names[label] for label in labels]

    def beside_baseline(self, condition: str) -> list[str]:
        """Return the labels that have a panel each: all but the baseline, which stands in every panel."""
        return [row.label for row in self.chosen(condition) if row.label != self.meta["baseline"]]

    def key_of_multiples(self, *, marker: bool = False) -> list[Line2D]:
        """Return the legend of small panels: one entry for the baseline, one for the pale lines."""
        baseline = self.meta["baseline"]
        # A baseline without a score is drawn nowhere, so the legend must not name it.
        own = [self.handle(baseline, line=not marker, marker=marker)] if baseline in self.labels() else []
        look = POINT if marker else {}
        return [*own, Line2D([], [], label="the other optimizers", **{**PALE, **look})]


def context_of(study: Study, width: float = WIDTH) -> FigureContext:
    """Return everything that figures need of a study, except the curves; `width` is in inches."""
    meta = study.meta
    # Rows without a score have no point to draw; tables show them.
    best = [row for row in study.chosen if row.scored]
    return FigureContext(
        study=study,
        best=best,
        conditions=[name for name in conditions(meta) if any(row.condition == name for row in best)],
        several=bool(varied(meta)),
        # By all labels, drawn or not: looks stay the same while runs are still missing.
        styles=styles_of(meta),
        width=width,
    )


def pages(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in pages of at most `size`, as even as possible."""
    count = -(-len(items) // size)
    for page in range(count):
        # The remainder is spread: 7 items on pages of 6 are 3 and 4, not 6 and 1.
        yield items[page * len(items) // count : (page + 1) * len(items) // count]


def pale(ax: Axes, lines: Iterable[tuple[Iterable[float], Iterable[float]]], **look: Any) -> None:
    """Draw the lines of all other labels in a pale colour, as one artist."""
    x: list[float] = []
    y: list[float] = []
    for across, up in lines:
        # NaN interrupts a line, so that many lines fit into one artist.
        x += [*across, np.nan]
        y += [*up, np.nan]
    if x:
        ax.plot(x, y, **{**PALE, **look})


def name_panels(axes: np.ndarray[Any, Any], conditions: Sequence[str], titles: Sequence[str]) -> None:
    """Name the conditions down the side, one per row of panels, and what the panels show above the first row."""
    width = axes[0, 0].figure.get_figwidth()
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(fold(title, panel_width(len(titles), width)))
    for ax, condition in zip(axes[:, 0], conditions, strict=True):
        ax.set_ylabel(folded(condition, 0.85 * ROW_HEIGHT))


def folded(condition: str, inches: float) -> str:
    """Break a condition into a line per setting, and into more lines if one would be longer than this many inches."""
    lines = condition.replace(", ", ",\n").split("\n")
    # A setting that is too long is broken at its "=" first, and only then within words.
    parts = [line if text_width(line, 8) <= inches else line.replace("=", "=\n") for line in lines]
    return "\n".join(fold(part, inches) for line in parts for part in line.split("\n"))
