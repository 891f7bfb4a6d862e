"""Test metric against seconds of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from bench.analysis.plots.style import WIDTH, bounds, legend, panel_width
from bench.analysis.plots.view import View, folded, pages
from bench.analysis.stats import Interval
from bench.analysis.summary import Row

ACROSS = 3
PER_PAGE = 12

Point = tuple[Row, Interval, Interval]
"""A row with its seconds and its test metric."""


def figures(view: View) -> Iterator[Figure]:
    """With 95% t intervals, a named point an optimizer; with several conditions a small panel each, and a legend."""
    if not view.several:
        figure = view.figure(0.62 * WIDTH, 2.9)
        ax = figure.add_subplot()
        points = _draw(ax, view, view.conditions[0])
        ax.set(xlabel=_seconds(view), ylabel=f"test {view.metric}{view.unit}")
        _label_points(figure, ax, view, points)
        yield figure
        return
    for page in pages(view.conditions, PER_PAGE):
        yield _page(view, page)


def _page(view: View, conditions: Sequence[str]) -> Figure:
    across = 2 if len(conditions) in (2, 4) else ACROSS
    lines = -(-len(conditions) // across)
    figure = view.figure(WIDTH, 1.75 * lines + 0.6)
    for place, condition in enumerate(conditions):
        ax = figure.add_subplot(lines, across, place + 1)
        _draw(ax, view, condition)
        ax.set_title(folded(condition, panel_width(across)))
        if place % across == 0:
            ax.set_ylabel(f"test {view.metric}{view.unit}")
        if place + across >= len(conditions):
            ax.set_xlabel(_seconds(view))
    legend(figure, [view.handle(label, line=False, marker=True) for label in view.labels()])
    return figure


def _seconds(view: View) -> str:
    caution = ", on different hardware or versions" if view.source.mixed else ""
    return f"training time (s{caution})"


def _draw(ax: Axes, view: View, condition: str) -> list[Point]:
    points = [(row, row.train_seconds, row.test_metric.scaled(view.scale)) for row in view.chosen(condition)]
    for row, x, y in points:
        style = view.styles[row.label]
        ax.plot(bounds(x), [y.mean, y.mean], color=style["color"], linewidth=0.9)
        ax.plot([x.mean, x.mean], bounds(y), color=style["color"], linewidth=0.9)
        ax.plot(x.mean, y.mean, color=style["color"], marker=style["marker"])
    ax.set_xlim(0, 1.12 * max(bounds(x)[1] for _, x, _ in points))
    ax.margins(y=0.15)
    return points


# ---- names beside points -------------------------------------------------------------------------------------


def _label_points(figure: Figure, ax: Axes, view: View, points: Sequence[Point]) -> None:
    """Write each name beside its point, at the first place around it that covers nothing, or the least."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # fixes the layout, without which no text has a size
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = ax.get_window_extent(renderer)
    taken = []
    for _, x, y in points:
        for across, up in ((bounds(x), (y.mean, y.mean)), ((x.mean, x.mean), bounds(y))):
            taken.append(Bbox(ax.transData.transform(np.column_stack([across, up]))).padded(4))
    for row, x, y in points:
        text = ax.annotate(row.name, (x.mean, y.mean), xytext=(0, 0), textcoords="offset points")
        text.set(color=view.styles[row.label]["color"], fontsize=7.5, verticalalignment="center")
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
