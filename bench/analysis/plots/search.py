"""Where in their search spaces the trials lay, how well they did on validation, and which were chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from bench.analysis.choice import number, phased
from bench.analysis.plots.style import NEUTRAL, legend, wide, with_margin
from bench.analysis.plots.view import ROWS, Drawing, View, name_panels, pages
from bench.analysis.summary import Row, to_frame

CHOSEN: Mapping[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.3}
BEYOND = 0.06  # share of an axis that lies outside what was searched


def figures(view: View) -> Iterator[Drawing]:
    """A panel for each hyperparameter; with several conditions a row of them each."""
    tried = [row for row in view.tried if row.done and row.condition in view.conditions_tried]
    keys = [
        key
        for key in dict.fromkeys(key for row in tried for key in row.swept)
        if all(number(row.swept[key]) for row in tried if key in row.swept)
    ]
    if not keys:
        return
    for shown in view.split(keys) if view.several else [keys]:
        for conditions in pages(view.conditions_tried, ROWS):
            rows = [row for row in tried if row.condition in conditions]
            yield Drawing(_figure(view, rows, conditions, shown), _caption(view, shown), _data(view, rows, shown))


def _figure(view: View, rows: Sequence[Row], conditions: Sequence[str], keys: Sequence[str]) -> Figure:
    grid = [[(condition, key) for key in keys] for condition in conditions]
    if not view.several:
        grid = view.stacked(grid)
    figure, axes = view.panels(len(grid), len(grid[0]), sharey="row")
    for panels, line in zip(grid, axes, strict=True):
        for (condition, key), ax in zip(panels, line, strict=True):
            here = [row for row in rows if row.condition == condition]
            _draw(ax, view, [row for row in here if key in row.swept], key)
            ax.set_ylim(with_margin([row.val_metric.mean * view.scale for row in here]))
            ax.set_xlabel(key if panels is grid[-1] or not view.several else "")
        line[0].set_ylabel(f"validation {view.metric}{view.unit}")
    if view.several:
        name_panels(axes, conditions, [f"validation {view.metric}{view.unit}"] * len(keys))
    legend(figure, _handles(view, rows))
    return figure


def _draw(ax: Axes, view: View, rows: Sequence[Row], key: str) -> None:
    spaces = phased(view.meta)["tune"]["spaces"]
    searched = [spaces[label][key] for label in dict.fromkeys(row.label for row in rows)]
    ends = [end for space in searched for end in _ends(space)]
    log = any(isinstance(space, Mapping) and space.get("log") for space in searched) or wide(sorted(ends))
    for row in rows:
        style = {**view.styles[row.label], "linestyle": "none"}
        place = (row.swept[key], row.val_metric.mean * view.scale)
        ax.plot(*place, **style)
        if row.chosen:
            ax.plot(*place, color=style["color"], marker="o", **CHOSEN)
    if log:
        ax.set_xscale("log")
        room = (max(ends) / min(ends)) ** BEYOND
        ax.set_xlim(min(ends) / room, max(ends) * room)
        ax.xaxis.set_major_locator(LogLocator(numticks=6))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        room = BEYOND * (max(ends) - min(ends))
        ax.set_xlim(min(ends) - room, max(ends) + room)


def _ends(space: Any) -> list[float]:
    return [space["low"], space["high"]] if isinstance(space, Mapping) else [min(space), max(space)]


def _caption(view: View, keys: Sequence[str]) -> str:
    seeds = len(phased(view.meta)["tune"]["seeds"])
    over = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    return (
        f"Trials of tuning over {', '.join(keys)}: validation {view.metric} of each ({over}); each axis is as long as "
        "what was searched, a ring is what was chosen. The test set plays no part."
    )


def _data(view: View, rows: Sequence[Row], keys: Sequence[str]) -> pd.DataFrame:
    frame = to_frame(rows, ["val_metric", "chosen"], view.meta["metric"])
    return frame.assign(**{key: [row.swept.get(key) for row in rows] for key in keys})


def _handles(view: View, rows: Sequence[Row]) -> list[Artist]:
    labels = dict.fromkeys(row.label for row in rows)
    handles = [Line2D([], [], label=label, **{**view.styles[label], "linestyle": "none"}) for label in labels]
    ring = Line2D([], [], color=NEUTRAL, linestyle="none", marker="o", label="chosen", **CHOSEN)
    return [*handles, ring]
