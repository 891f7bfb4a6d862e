"""Metric and generalization gap against swept hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.plots.style import NEUTRAL, Style, legend, value_axis, wide
from bench.analysis.plots.view import ROWS, Drawing, View, name_panels, pages
from bench.analysis.stats import Interval
from bench.analysis.summary import Row, to_frame

FIELDS = ("test_metric", "gap_metric")
VALIDATION: Style = {"markersize": 3, "markerfacecolor": "white"}
CHOSEN: Style = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.1}

Line = tuple[str, str]
"""Condition and swept hyperparameter of a row of panels."""


def figures(view: View) -> Iterator[Drawing]:
    """A row of panels for each hyperparameter; with several conditions a figure for each, a row a condition."""
    sweeps = [row for row in view.rows if row.label in view.meta["sweeps"] and row.sweep_point and row.done]
    keys = sorted({row.sweep_point[0] for row in sweeps if row.sweep_point})
    fields = FIELDS if any(row.test_metric.n for row in sweeps) else FIELDS[:1]
    if not view.several:
        if keys:
            figure = _figure(view, sweeps, [(view.conditions[0], key) for key in keys], fields)
            yield Drawing(figure, _caption(view, keys), _data(view, sweeps))
        return
    for key in keys:
        of_key = [row for row in sweeps if _of(row, key)]
        conditions = [name for name in view.conditions if any(row.condition == name for row in of_key)]
        for shown in view.split(fields):
            for page in pages(conditions, ROWS):
                figure = _page(view, of_key, [(condition, key) for condition in page], shown)
                data = _data(view, [row for row in of_key if row.condition in page])
                yield Drawing(figure, _caption(view, [key]), data)


def _caption(view: View, keys: Sequence[str]) -> str:
    return (
        f"Sensitivity to {' and '.join(keys)}: mean over seeds with 95% Student-t bands; small open markers are "
        f"validation {view.metric}, a ring is the value chosen by it."
    )


def _data(view: View, sweeps: Sequence[Row]) -> pd.DataFrame:
    points = [row.sweep_point for row in sweeps if row.sweep_point]
    frame = to_frame(sweeps, ["val_metric", *FIELDS, "chosen"], view.meta["metric"])
    return frame.assign(hyperparameter=[key for key, _ in points], value=[value for _, value in points])


def _figure(view: View, sweeps: list[Row], lines: Sequence[Line], fields: Sequence[str]) -> Figure:
    grid = view.stacked([[(line, field) for field in fields] for line in lines])
    figure, axes = view.panels(len(grid), len(grid[0]))
    for panels, row in zip(grid, axes, strict=True):
        for (line, field), ax in zip(panels, row, strict=True):
            _draw(ax, view, sweeps, line, field)
            ax.set(xlabel=line[1], ylabel=_title(view, field))
    legend(figure, _handles(view, sweeps))
    return figure


def _page(view: View, sweeps: list[Row], lines: Sequence[Line], fields: Sequence[str]) -> Figure:
    figure, axes = view.panels(len(lines), len(fields), sharex=True)
    for line, row in zip(lines, axes, strict=True):
        for ax, field in zip(row, fields, strict=True):
            _draw(ax, view, sweeps, line, field)
            ax.margins(y=0.15)  # flat panels would cut the rings
    for ax in axes[-1]:
        ax.set_xlabel(lines[0][1])
    name_panels(axes, [condition for condition, _ in lines], [_title(view, field) for field in fields])
    legend(figure, _handles(view, sweeps))
    return figure


def _title(view: View, field: str) -> str:
    return f"{view.metric}{view.unit}" if field == "test_metric" else f"train − test {view.metric}{view.points}"


def _of(row: Row, key: str) -> bool:
    return row.sweep_point is not None and row.sweep_point[0] == key


def _draw(ax: Axes, view: View, sweeps: list[Row], line: Line, field: str) -> None:
    condition, key = line
    if baseline := view.baseline(condition):
        _band(ax, getattr(baseline, field).scaled(view.scale), view.styles[baseline.label])
    rows = [row for row in sweeps if _of(row, key) and row.condition == condition]
    for label in dict.fromkeys(row.label for row in rows):
        points = {row.sweep_point[1]: row for row in rows if row.label == label and row.sweep_point}
        _points(ax, view, dict(sorted(points.items())), field)
    values = sorted({row.sweep_point[1] for row in sweeps if _of(row, key) and row.sweep_point})
    value_axis(ax, values, view.panel_width(2), log=wide(values))


def _points(ax: Axes, view: View, points: dict[float, Row], field: str) -> None:
    """One label: its line over the swept values, validation beside test, a ring around the choice."""
    style = view.styles[next(iter(points.values())).label]
    x = list(points)
    found = [getattr(row, field).scaled(view.scale) for row in points.values()]
    ax.plot(x, [interval.mean for interval in found], **style)
    low, high = [interval.low for interval in found], [interval.high for interval in found]
    ax.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    if field == "test_metric":
        validation = [row.val_metric.mean * view.scale for row in points.values()]
        ax.plot(x, validation, **{**style, "linewidth": 0.7, **VALIDATION})
    for (value, row), interval in zip(points.items(), found, strict=True):
        if row.chosen:
            ax.plot(value, interval.mean, color=style["color"], marker="o", **CHOSEN)


def _band(ax: Axes, interval: Interval, style: Style) -> None:
    ax.axhline(interval.mean, color=style["color"], linewidth=0.9)
    if interval.n > 1:
        ax.axhspan(interval.low, interval.high, color=style["color"], alpha=0.08, linewidth=0)


def _handles(view: View, sweeps: list[Row]) -> list[Artist]:
    labels = dict.fromkeys(row.label for row in sweeps)
    handles = [Line2D([], [], label=label, **view.styles[label]) for label in labels]
    baselines = {row.name for row in map(view.baseline, view.conditions) if row}
    if baselines:
        name = baselines.pop() if len(baselines) == 1 else f"{view.meta['baseline']}, chosen"
        colour = view.styles[view.meta["baseline"]]["color"]
        handles.append(Line2D([], [], color=colour, label=name, linewidth=0.9))
    for label, look in (("test", {}), ("validation", VALIDATION), ("chosen on validation", CHOSEN)):
        handles.append(Line2D([], [], color=NEUTRAL, linestyle="none", marker="o", label=label, **look))
    return list(handles)
