"""Test metric and advantage over the baseline against what is varied between conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from bench.analysis import numbers
from bench.analysis.bounds import UNBOUNDED
from bench.analysis.plots.context import (
    ACROSS,
    ACROSS_NARROW,
    EACH,
    MULTIPLE_HEIGHT,
    MULTIPLES,
    POINT,
    ROW_HEIGHT,
    ROWS,
    Drawing,
    FigureContext,
    name_panels,
    pages,
    pale,
)
from bench.analysis.plots.looks import Style
from bench.analysis.plots.style import (
    NEUTRAL,
    PANEL_HEIGHT,
    TICK_SIZE,
    bounds,
    finish,
    fold,
    panel_width,
    text_width,
    turn_ticks,
    value_axis,
    wide,
    with_margin,
)
from bench.analysis.stats import Interval
from bench.analysis.summary import Row
from bench.store.conditions import names, value_text, varied

# Sizes of training sets act by their ratio, so their axis is logarithmic even below a decade.
LOGARITHMIC = "train_size"
STEP = 2.5  # points between the labels at one value, so that their intervals stand side by side
STEP_IN_CATEGORY = 8.0
MARGIN = 0.07  # of the axis, on either side
NARROWEST = 0.6  # inches, of the name of a category; where there is less they are turned
STRIPE = "#F4F4F4"
# An open marker: some of the planned runs are missing.
INCOMPLETE: Style = {"markerfacecolor": "white"}

Pick = Callable[[Row], Interval | None]


@dataclass(frozen=True)
class Axis:
    """The varied column along the horizontal axis: each value, as text, with its place, in ascending order."""

    column: str
    name: str
    numeric: bool
    log: bool
    places: Mapping[str, float]

    def place(self, row: Row) -> float:
        return self.places[value_text(row.varied[self.column])]

    def step(self, labels: int, width: float) -> float:
        """Return the points between the labels at one value, for a panel of this many inches.

        Close values have fewer points between their labels.
        """
        places = list(self.places.values())
        drawn = np.log(places) if self.log else np.asarray(places)
        # The axis of categories goes half a step beyond the first and the last, so it is as long as their number.
        span = drawn[-1] - drawn[0] if self.numeric else len(drawn)
        usual = STEP if self.numeric else STEP_IN_CATEGORY
        # 72 points are an inch. All labels together take at most 0.8 of the way between the two closest values.
        return float(min(usual, 0.8 * 72 * width * np.diff(drawn).min() / span / labels))


def figures(context: FigureContext) -> Iterator[Drawing]:
    """Yield the figures of the metric beside its paired difference to the baseline.

    On the scale of the metric, the difference would be invisible. One varied column is the horizontal axis: the first
    numeric column, else the column with most values, but preferably not the task, whose metrics differ too much for
    one panel. Every combination of the other columns has a row of panels.
    """
    if len(context.conditions) < 2:
        return
    axis = _axis(varied(context.meta))
    facets: dict[str, list[Row]] = {}
    for row in context.best:
        facets.setdefault(_facet(row, axis), []).append(row)
    # If no optimizer has a seed in common with the baseline, the gap is drawn in the place of the difference.
    compared = any(_difference(row) for row in context.best)
    against = f"paired difference to {context.meta['baseline']}" if compared else "generalization gap"
    caption = (
        f"Test {context.metric} and {against} against {axis.name}: mean over seeds with 95% Student-t intervals. "
        f"Optimizers are drawn side by side at each {axis.name}."
    )
    picks = (_test, _difference if compared else _gap)
    if context.many:
        # The baseline is drawn in every panel and has none of its own.
        labels = [label for label in context.labels() if label != context.meta["baseline"]]
        for (facet, rows), pick in product(facets.items(), picks):
            for together in pages(labels, MULTIPLES):
                figure = _multiples(context, axis, facet, rows, pick, together)
                yield Drawing(figure, f"{caption} {EACH.format(context.meta['baseline'])}", _data(context, rows))
    elif len(facets) == 1:
        yield Drawing(_page(context, axis, facets, picks), caption, _data(context, context.best))
    else:
        for shown in context.split(picks):
            for page in pages(list(facets.items()), ROWS):
                data = _data(context, [row for _, rows in page for row in rows])
                yield Drawing(_page(context, axis, dict(page), shown), caption, data)


def _data(context: FigureContext, rows: Sequence[Row]) -> pd.DataFrame:
    metric = context.meta["metric"]
    return numbers.frame(rows, numbers.measured(metric, "test_metric", "gap_metric"), numbers.compared(metric))


def _axis(columns: Mapping[str, Sequence[Any]]) -> Axis:
    # Not empty: there are two conditions, so some column has two values.
    several = {column: values for column, values in columns.items() if len(values) > 1}
    column = max(several, key=lambda name: (_numeric(several[name]), name != "task", len(several[name])))
    values, name = columns[column], dict(zip(columns, names(columns), strict=True))[column]
    if not _numeric(values):
        return Axis(column, name, False, False, {value_text(value): place for place, value in enumerate(values)})
    values = sorted(values)
    return Axis(
        column, name, True, column == LOGARITHMIC or wide(values), {value_text(value): value for value in values}
    )


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _facet(row: Row, axis: Axis) -> str:
    others = [column for column in row.varied if column != axis.column]
    return ", ".join(
        f"{name}={value_text(row.varied[column])}" for column, name in zip(others, names(others), strict=True)
    )


def _page(context: FigureContext, axis: Axis, facets: Mapping[str, list[Row]], picks: Sequence[Pick]) -> Figure:
    alone = len(facets) == 1
    grid = [[(rows, pick) for pick in picks] for rows in facets.values()]
    # With several facets `figures` has already given each quantity a page of its own, where pages are narrow.
    grid = context.stacked(grid) if alone else grid
    figure, axes = context.panels(len(grid), len(grid[0]), sharex=True)
    height = PANEL_HEIGHT if alone else ROW_HEIGHT
    for line, panels in zip(grid, axes, strict=True):
        for (rows, pick), ax in zip(line, panels, strict=True):
            _scale(ax, axis, context.panel_width(2))
            _draw(figure, ax, context, axis, rows, pick)
            if alone:
                ax.set_ylabel(fold(_title(context, pick), height))
    if not alone:
        name_panels(axes, list(facets), [_title(context, pick) for pick in picks])
    for ax in axes[-1]:
        ax.set_xlabel(axis.name)
    finish(figure, _handles(context, axis), height)
    return figure


def _multiples(
    context: FigureContext, axis: Axis, facet: str, rows: list[Row], pick: Pick, labels: Sequence[str]
) -> Figure:
    figure, axes = context.multiples(labels, axis.name, _title(context, pick), facet, sharex=True, sharey=True)
    across = ACROSS_NARROW if context.narrow else ACROSS
    for ax, label in zip(axes, labels, strict=True):
        _scale(ax, axis, panel_width(across, context.width))
        _draw(figure, ax, context, axis, rows, pick, focus=label)
    finish(figure, context.key_of_multiples(marker=not axis.numeric), MULTIPLE_HEIGHT)
    return figure


def _title(context: FigureContext, pick: Pick) -> str:
    if pick is _test:
        return f"test {context.metric}{context.unit}"
    return f"difference to {context.meta['baseline']}{context.points}" if pick is _difference else context.gap


# ---- values --------------------------------------------------------------------------------------------------


def _test(row: Row) -> Interval | None:
    return row.test_metric


def _gap(row: Row) -> Interval | None:
    return row.gap_metric


def _difference(row: Row) -> Interval | None:
    return row.difference.difference if row.difference and row.difference.difference.n else None


# ---- a panel -------------------------------------------------------------------------------------------------


def _draw(
    figure: Figure,
    ax: Axes,
    context: FigureContext,
    axis: Axis,
    rows: Sequence[Row],
    pick: Pick,
    focus: str | None = None,
) -> None:
    """Draw one line per optimizer, each slightly beside the next; a line breaks where a condition has no finished run.

    A panel that is about one of many optimizers shows the others pale and without intervals, at their places.
    """
    here = [(row, interval.scaled(context.scale)) for row in rows if (interval := pick(row))]
    _, others = context.in_full([row for row, _ in here], focus)
    look_of_pale: Style = {} if axis.numeric else POINT
    pale(
        ax,
        [
            _means(axis, {axis.place(row): mean for row, mean in here if row in others and row.label == label})
            # One line per label, so that no line joins two optimizers.
            for label in dict.fromkeys(row.label for row in others)
        ],
        **look_of_pale,
    )
    baseline = context.meta["baseline"]
    labels = [label for label in context.labels() if focus is None or label in (baseline, focus)]
    for number, label in enumerate(labels):
        points = {axis.place(row): (row, interval) for row, interval in here if row.label == label}
        step = axis.step(len(labels), context.panel_width(2 if focus is None else ACROSS))
        # In inches, about the middle: half of the labels stand left of the value, half right of it.
        aside = (number - (len(labels) - 1) / 2) * step / 72
        # Moved on paper, not in data: the distance is the same on every scale of the axis.
        beside = ax.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        look = {**_look(context, label, axis), "transform": beside, "clip_on": False}
        ax.plot(*_means(axis, {place: mean for place, (_, mean) in points.items()}), **{**look, "marker": None})
        for place, (row, interval) in points.items():
            bar = {"marker": None, "linestyle": "-", "linewidth": 0.9}
            ax.plot([place, place], bounds(interval), **{**look, **bar})
            ax.plot(place, interval.mean, **{**look, **({} if interval.n == row.planned else INCOMPLETE)})
    if pick is _difference:
        ax.axhline(0, color=context.styles[baseline]["color"], linewidth=0.9)
    heights = [bound for _, interval in here for bound in bounds(interval)]
    # The line at 0 has to be inside the panel of differences.
    heights += [0.0] if pick is _difference or not heights else []
    ax.set_ylim(with_margin(heights, context.limits if pick is _test else UNBOUNDED))


def _means(axis: Axis, intervals: Mapping[float, Interval]) -> tuple[list[float], list[float]]:
    """Return a line over all places of the axis; it breaks where there is no interval."""
    places = list(axis.places.values())
    return places, [intervals[place].mean if place in intervals else np.nan for place in places]


def _look(context: FigureContext, label: str, axis: Axis) -> Style:
    """Return the usual look; between categories without connecting lines, since no value lies between them."""
    return context.styles[label] if axis.numeric else {**context.styles[label], "linestyle": "none"}


def _scale(ax: Axes, axis: Axis, width: float) -> None:
    """Set limits and ticks from the values, since points are drawn slightly beside their values."""
    places = list(axis.places.values())
    if not axis.numeric:
        _categories(ax, axis, width)
    elif axis.log:
        value_axis(ax, places, width, log=True)
        margin = (places[-1] / places[0]) ** MARGIN
        ax.set_xlim(places[0] / margin, places[-1] * margin)
    else:
        value_axis(ax, places, width, log=False)
        margin = MARGIN * (places[-1] - places[0])
        ax.set_xlim(places[0] - margin, places[-1] + margin)


def _categories(ax: Axes, axis: Axis, width: float) -> None:
    places = list(axis.places.values())
    ax.grid(visible=False, axis="x")
    # Stripes behind every second category show which points belong together.
    for place in places[1::2]:
        ax.axvspan(place - 0.5, place + 0.5, color=STRIPE, linewidth=0, zorder=0)
    ax.set_xlim(-0.5, len(places) - 0.5)
    room = 0.95 * width / len(places)
    names = [fold(name, max(room, NARROWEST), TICK_SIZE) for name in axis.places]
    ax.set_xticks(places, names)
    # Turned only if the names have no room even when they are folded.
    if room < NARROWEST and max(map(text_width, axis.places)) > room:
        turn_ticks(ax)


def _handles(context: FigureContext, axis: Axis) -> list[Artist]:
    handles: list[Artist] = [context.handle(label, line=axis.numeric, marker=True) for label in context.labels()]
    if not all(row.complete for row in context.best):
        look: Style = {"color": NEUTRAL, "linestyle": "none", "marker": "o", **INCOMPLETE}
        handles.append(Line2D([], [], label="some runs missing", **look))
    return handles
