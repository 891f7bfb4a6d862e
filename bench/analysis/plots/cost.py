"""Test metric against what training costs, in seconds and in passes, with the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox, ScaledTranslation

from bench.analysis.pareto import on_front
from bench.analysis.plots.style import NEUTRAL, Style, bounds, legend, panel_width, text_width, with_margin
from bench.analysis.plots.view import Drawing, View, folded, pages
from bench.analysis.stats import Interval
from bench.analysis.summary import Row, to_frame

COSTS = ("train_seconds", "passes")
ACROSS = 3
PER_PAGE = 12
NAME_SIZE = 7.5
LONGEST = 0.5  # of a panel, as far as a name may reach
MOST_NAMES = 8  # in a panel; more cover each other
STEP, SPREAD = 5.0, 16.0  # points between those of equal cost, and between all of them at the most
FRONT: Style = {"color": NEUTRAL, "linewidth": 0.8, "linestyle": (0, (3, 2)), "zorder": 1}

Point = tuple[Row, Interval, Interval]
"""A row with what it costs and its test metric."""


def figures(view: View) -> Iterator[Drawing]:
    """With 95% t intervals, a point an optimizer, named unless they are many, against seconds and against passes.

    With several conditions a small panel each and a legend, first against seconds, then against passes.
    """
    caption = (
        f"Test {view.metric} against {{}}: mean over seeds with 95% Student-t intervals. Dashed: the Pareto front, "
        "beyond which no optimizer here is better at that cost."
    )
    if not view.several:
        yield Drawing(_single(view), caption.format("training time and passes"), _data(view, view.conditions))
        return
    for cost, words in zip(COSTS, ("training time", "passes"), strict=True):
        for page in pages(view.conditions, PER_PAGE):
            yield Drawing(_page(view, page, cost), caption.format(words), _data(view, page))


def _data(view: View, conditions: Sequence[str]) -> pd.DataFrame:
    """The points, and whether each is on the front of its condition by either cost."""
    chosen = [(condition, view.chosen(condition)) for condition in conditions]
    frame = to_frame([row for _, rows in chosen for row in rows], [*COSTS, "test_metric"], view.meta["metric"])
    fronts = {
        f"on_front_of_{cost}": [bool(flag) for _, rows in chosen for flag in _on_front(view, _points(view, rows, cost))]
        for cost in COSTS
    }
    return frame.assign(**fronts)


def _single(view: View) -> Figure:
    rows = view.chosen(view.conditions[0])
    grid = view.stacked([COSTS])
    figure = view.figure(view.width, 2.8 * len(grid) + (0.9 if len(rows) > MOST_NAMES else 0.0))
    axes = figure.subplots(len(grid), len(grid[0]), squeeze=False, sharey=True)
    for ax, cost in zip(axes.flat, COSTS, strict=True):
        _draw(figure, ax, view, _points(view, rows, cost))
        ax.set_xlabel(_title(view, cost))
    for ax in axes[:, 0]:
        ax.set_ylabel(f"test {view.metric}{view.unit}")
    names = {row.label: row.name for row in rows}
    too_long = max(map(text_width, names.values())) > LONGEST * view.panel_width(len(COSTS))  # to stand at a point
    if too_long or len(names) > MOST_NAMES:
        legend(figure, [view.handle(label, line=False, marker=True) for label in names])
        names = {label: label for label in names}
    if len(names) > MOST_NAMES:
        return figure
    figure.draw_without_rendering()  # fixes the layout, without which no text has a size
    for ax, cost in zip(axes.flat, COSTS, strict=True):
        _label_points(figure, ax, view, _points(view, rows, cost), names)
    return figure


def _page(view: View, conditions: Sequence[str], cost: str) -> Figure:
    across = 2 if view.narrow or len(conditions) in (2, 4) else ACROSS
    lines = -(-len(conditions) // across)
    figure = view.figure(view.width, 1.75 * lines + 0.6)
    for place, condition in enumerate(conditions):
        ax = figure.add_subplot(lines, across, place + 1)
        _draw(figure, ax, view, _points(view, view.chosen(condition), cost))
        ax.set_title(folded(condition, panel_width(across, view.width)))
        if place % across == 0:
            ax.set_ylabel(f"test {view.metric}{view.unit}")
        if place + across >= len(conditions):
            ax.set_xlabel(_title(view, cost))
    handles = [view.handle(label, line=False, marker=True) for label in view.labels()]
    legend(figure, [*handles, Line2D([], [], label="Pareto front", **FRONT)])
    return figure


def _title(view: View, cost: str) -> str:
    if cost == "passes":
        return "forward-backward passes"
    return f"training time (s{', on different hardware or versions' if view.source.mixed else ''})"


def _points(view: View, rows: Sequence[Row], cost: str) -> list[Point]:
    return [(row, _cost(row, cost), row.test_metric.scaled(view.scale)) for row in rows]


def _cost(row: Row, cost: str) -> Interval:
    """Passes are those of the plan, the same for every seed."""
    return row.train_seconds if cost == "train_seconds" else Interval(1, row.passes, np.nan, np.nan)


def _on_front(view: View, points: Sequence[Point]) -> Sequence[bool]:
    better = view.meta["metric"]["higher_is_better"]
    return list(on_front([x.mean for _, x, _ in points], [y.mean for _, _, y in points], higher_is_better=better))


def _draw(figure: Figure, ax: Axes, view: View, points: Sequence[Point]) -> None:
    """Points of equal cost stand a little beside each other."""
    costs = [x.mean for _, x, _ in points]
    for number, (row, x, y) in enumerate(points):
        alike = costs.count(x.mean)
        aside = min(STEP, SPREAD / alike) * (costs[:number].count(x.mean) - (alike - 1) / 2) / 72
        beside = ax.transData + ScaledTranslation(aside, 0, figure.dpi_scale_trans)
        look: Style = {"color": view.styles[row.label]["color"], "transform": beside}
        ax.plot(bounds(x), [y.mean, y.mean], linewidth=0.9, **look)
        ax.plot([x.mean, x.mean], bounds(y), linewidth=0.9, **look)
        ax.plot(x.mean, y.mean, marker=view.styles[row.label]["marker"], **look)
    right = 1.15 * max(bounds(x)[1] for _, x, _ in points)
    front = sorted((x.mean, y.mean) for on, (_, x, y) in zip(_on_front(view, points), points, strict=True) if on)
    ax.step([*(x for x, _ in front), right], [*(y for _, y in front), front[-1][1]], where="post", **FRONT)
    ax.set_xlim(0, right)
    heights = [bound for _, _, y in points for bound in bounds(y)]
    ax.set_ylim(with_margin(heights))  # drawn beside their places, the points set no limits


# ---- names beside points -------------------------------------------------------------------------------------


def _label_points(figure: Figure, ax: Axes, view: View, points: Sequence[Point], names: Mapping[str, str]) -> None:
    """Write each name beside its point, at the first place around it that covers nothing, or the least."""
    canvas = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = ax.get_window_extent(renderer)
    taken = []
    for _, x, y in points:
        for across, up in ((bounds(x), (y.mean, y.mean)), ((x.mean, x.mean), bounds(y))):
            taken.append(Bbox(ax.transData.transform(np.column_stack([across, up]))).padded(4))
    for row, x, y in points:
        text = ax.annotate(names[row.label], (x.mean, y.mean), xytext=(0, 0), textcoords="offset points")
        text.set(color=view.styles[row.label]["color"], fontsize=NAME_SIZE, verticalalignment="center")
        tried = []
        for *offset, side in _places():
            text.set(position=offset, horizontalalignment=side)
            box = text.get_window_extent(renderer)
            tried.append((_crowding(box, taken, frame), box, {"position": offset, "ha": side}))
        _, box, place = min(tried, key=lambda attempt: attempt[0])
        text.set(**place)
        taken.append(box)


def _places() -> Iterable[tuple[float, float, str]]:
    """Offsets from a point, in points, nearest first: diagonal places, then above, below and beside."""
    for distance in (6, 10, 15, 21, 28):
        for dy in (0.9, -0.9):
            yield distance, dy * distance, "left"
            yield -distance, dy * distance, "right"
        yield 0, 1.6 * distance, "center"
        yield 0, -1.6 * distance, "center"
        yield 1.3 * distance, 0, "left"
        yield -1.3 * distance, 0, "right"


def _crowding(box: Bbox, taken: list[Bbox], frame: Bbox) -> float:
    """Area in square pixels that a box shares with others or has outside the frame; 0 is a free place."""
    inside = _shared(box, frame)
    return sum(_shared(box, other) for other in taken) + box.width * box.height - inside


def _shared(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return both.width * both.height if both else 0.0
