"""Test metric against what training costs, in seconds and in passes, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from bench.analysis import numbers
from bench.analysis.plots.context import (
    EACH,
    MULTIPLE_HEIGHT,
    MULTIPLES,
    POINT,
    Drawing,
    FigureContext,
    folded,
    pages,
    pale,
)
from bench.analysis.plots.looks import Style
from bench.analysis.plots.style import NEUTRAL, bounds, finish, fold, panel_width, with_margin
from bench.analysis.stats import Interval, on_front
from bench.analysis.summary import Row

COSTS = {"train_seconds": "training time", "passes": "passes"}
ACROSS = 3
PER_PAGE = 12
HEIGHT, HEIGHT_OF_MANY = 2.3, 1.2  # inches, of a panel
STEP, SPREAD = 5.0, 16.0  # points between those of equal cost, and between all of them at the most
FRONT: Style = {"color": NEUTRAL, "linewidth": 0.8, "linestyle": (0, (3, 2)), "zorder": 1}

Point = tuple[Row, Interval, Interval]
"""A row with what it costs and its test metric."""


def figures(context: FigureContext) -> Iterator[Drawing]:
    """Yield figures of one point per optimizer, with 95% t intervals, against seconds and against passes.

    With several conditions each has a small panel, first against seconds, then against passes. Many optimizers
    have a small panel each, in a figure for each condition and cost.
    """
    # Formatted again below: the doubled braces keep the places for the cost and for a remark.
    caption = (
        f"Test {context.metric} against {{}}: mean over seeds with 95% Student-t intervals. Dashed: the Pareto front, "
        f"beyond which no optimizer here is better at that cost. {{}}"
    )
    if context.many:
        for condition, (cost, words) in product(context.conditions, COSTS.items()):
            for labels in pages(context.beside_baseline(condition), MULTIPLES):
                figure = _multiples(context, condition, cost, labels)
                said = caption.format(words, EACH.format(context.meta["baseline"]))
                yield Drawing(figure, said, _data(context, [condition]))
    elif not context.several:
        yield Drawing(
            _single(context),
            caption.format("training time and passes", _moved(context, context.conditions, COSTS)).rstrip(),
            _data(context, context.conditions),
        )
    else:
        for cost, words in COSTS.items():
            for page in pages(context.conditions, PER_PAGE):
                said = caption.format(words, _moved(context, page, [cost])).rstrip()
                yield Drawing(_page(context, page, cost), said, _data(context, page))


def _moved(context: FigureContext, conditions: Sequence[str], costs: Iterable[str]) -> str:
    """Return the remark that points are drawn beside their true positions, if any are."""
    alike = any(_alike(_points(context, context.chosen(condition), cost)) for condition in conditions for cost in costs)
    return "Points of equal cost are drawn side by side." if alike else ""


def _alike(points: Sequence[Point]) -> bool:
    costs = [x.mean for _, x, _ in points]
    return len(set(costs)) < len(costs)


def _data(context: FigureContext, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the points, and whether each is on its condition's Pareto front by either cost."""
    chosen = [(condition, context.chosen(condition)) for condition in conditions]
    every = [row for _, rows in chosen for row in rows]
    frame = numbers.frame(every, numbers.measured(context.meta["metric"], *COSTS, "test_metric"))
    # A front per condition: what is cheap under one condition may be dear under another.
    fronts = {
        f"on_front_of_{cost}": [
            bool(flag) for _, rows in chosen for flag in _on_front(context, _every_point(context, rows, cost))
        ]
        for cost in COSTS
    }
    return frame.assign(**fronts)


def _single(context: FigureContext) -> Figure:
    rows = context.chosen(context.conditions[0])
    grid = context.stacked([list(COSTS)])
    figure, axes = context.panels(len(grid), len(grid[0]), sharey=True)
    of_panel = dict(zip(axes.flat, COSTS, strict=True))
    for ax, cost in of_panel.items():
        _draw(figure, ax, context, _points(context, rows, cost))
        title = _title(context, cost, _alike(_points(context, rows, cost)))
        # A label in the middle of a panel may be a little wider than it.
        ax.set_xlabel(fold(title, context.panel_width(len(COSTS)) + 0.2))
    for ax in axes[:, 0]:
        ax.set_ylabel(fold(f"test {context.metric}{context.unit}", HEIGHT))
    handles = [context.handle(row.label, line=False, marker=True) for row in rows]
    finish(figure, [*handles, Line2D([], [], label="Pareto front", **FRONT)], HEIGHT)
    return figure


def _page(context: FigureContext, conditions: Sequence[str], cost: str) -> Figure:
    # Four panels stand two by two: with three side by side the second line would have a single panel.
    across = 2 if context.narrow or len(conditions) in (2, 4) else ACROSS
    lines = -(-len(conditions) // across)
    figure = context.figure()
    alike = any(_alike(_points(context, context.chosen(condition), cost)) for condition in conditions)
    for place, condition in enumerate(conditions):
        ax = figure.add_subplot(lines, across, place + 1)
        _draw(figure, ax, context, _points(context, context.chosen(condition), cost))
        ax.set_title(folded(condition, panel_width(across, context.width)))
        if place % across == 0:
            ax.set_ylabel(fold(f"test {context.metric}{context.unit}", HEIGHT_OF_MANY))
        # The lowest panel of its column names the axis.
        if place + across >= len(conditions):
            ax.set_xlabel(fold(_title(context, cost, alike), panel_width(across, context.width)))
    handles = [context.handle(label, line=False, marker=True) for label in context.labels()]
    finish(figure, [*handles, Line2D([], [], label="Pareto front", **FRONT)], HEIGHT_OF_MANY)
    return figure


def _multiples(context: FigureContext, condition: str, cost: str, labels: Sequence[str]) -> Figure:
    # In small panels no point is moved sideways, so the title has no remark on it.
    x, y = _title(context, cost, False), f"test {context.metric}{context.unit}"
    figure, axes = context.multiples(context.named(labels, condition), x, y, condition, sharex=True, sharey=True)
    points = _points(context, context.chosen(condition), cost)
    for ax, label in zip(axes, labels, strict=True):
        _draw(figure, ax, context, points, focus=label)
    handles = [*context.key_of_multiples(marker=True), Line2D([], [], label="Pareto front", **FRONT)]
    finish(figure, handles, MULTIPLE_HEIGHT)
    return figure


def _title(context: FigureContext, cost: str, alike: bool) -> str:
    mixed = ["on different versions"] * context.study.source.mixed + ["on the hardware of most runs"] * bool(
        context.study.source.clock
    )
    said = mixed if cost == "train_seconds" else []
    said += ["equal ones side by side"] if alike else []
    name = "forward-backward passes" if cost == "passes" else "training time"
    unit = ["s"] if cost == "train_seconds" else []
    return f"{name} ({', '.join([*unit, *said])})" if unit or said else name


def _points(context: FigureContext, rows: Sequence[Row], cost: str) -> list[Point]:
    """Return the points that can be drawn: those with a run on the hardware whose times are compared."""
    return [point for point in _every_point(context, rows, cost) if not np.isnan(point[1].mean)]


def _every_point(context: FigureContext, rows: Sequence[Row], cost: str) -> list[Point]:
    return [(row, _cost(row, cost), row.test_metric.scaled(context.scale)) for row in rows]


def _cost(row: Row, cost: str) -> Interval:
    """Return a row's cost; passes have no interval, since the plan fixes them for every seed."""
    return row.train_seconds if cost == "train_seconds" else Interval(1, row.passes, np.nan, np.nan)


def _on_front(context: FigureContext, points: Sequence[Point]) -> Sequence[bool]:
    better = context.meta["metric"]["higher_is_better"]
    return list(on_front([x.mean for _, x, _ in points], [y.mean for _, _, y in points], higher_is_better=better))


def _draw(figure: Figure, ax: Axes, context: FigureContext, points: Sequence[Point], focus: str | None = None) -> None:
    """Draw the points; those of equal cost stand slightly apart, unless the panel is about one of them."""
    if not points:
        return
    full, others = context.in_full([row for row, _, _ in points], focus)
    pale(ax, [([x.mean], [y.mean]) for row, x, y in points if row in others], **POINT)
    drawn = [point for point in points if point[0] in full]
    costs = [x.mean for _, x, _ in drawn]
    for number, (row, x, y) in enumerate(drawn):
        # How many points share this cost; a panel about one optimizer has only two in full and moves none.
        alike = costs.count(x.mean) if focus is None else 1
        # Spread about the true place in the order of the labels; / 72 turns points into inches.
        aside = min(STEP, SPREAD / alike) * (costs[:number].count(x.mean) - (alike - 1) / 2) / 72 if alike > 1 else 0.0
        beside = ax.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        look: Style = {**context.styles[row.label], "transform": beside, "clip_on": False}
        bar = {**look, "marker": None, "linestyle": "-", "linewidth": 0.9}
        ax.plot(bounds(x), [y.mean, y.mean], **bar)
        ax.plot([x.mean, x.mean], bounds(y), **bar)
        ax.plot(x.mean, y.mean, **{**look, "linestyle": "none"})
    # The front goes on to the right edge: more cost gives nothing better than its last point.
    right = 1.15 * max(bounds(x)[1] for _, x, _ in points)
    front = sorted((x.mean, y.mean) for on, (_, x, y) in zip(_on_front(context, points), points, strict=True) if on)
    # "post": the score of a point holds until the next point of the front is affordable.
    ax.step([*(x for x, _ in front), right], [*(y for _, y in front), front[-1][1]], where="post", **FRONT)
    # From 0, so that twice the cost is twice as far to the right.
    ax.set_xlim(0, right)
    heights = [bound for _, _, y in points for bound in bounds(y)]
    ax.set_ylim(with_margin(heights, context.limits))  # drawn beside their places, the points set no limits
