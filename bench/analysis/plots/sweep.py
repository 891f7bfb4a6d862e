"""Metric and generalization gap against swept hyperparameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis import numbers
from bench.analysis.bounds import UNBOUNDED
from bench.analysis.plots.context import (
    MULTIPLE_HEIGHT,
    MULTIPLES,
    ROWS,
    SHARING,
    Drawing,
    FigureContext,
    name_panels,
    pages,
)
from bench.analysis.plots.looks import Style
from bench.analysis.plots.style import NEUTRAL, bounds, finish, fold, points, value_axis, wide, with_margin
from bench.analysis.stats import Interval
from bench.analysis.summary import Row
from bench.store.selection import phased

FIELDS = ("test_metric", "gap_metric")
OF_TUNING = ("val_metric",)  # its runs never saw the test set
ACROSS = 2
FEW = 2  # seeds: the t intervals of so few would fill every panel (t is 12.7), so only the CSV has them
MARGIN = 0.12  # share of the range of heights, so that rings are drawn whole
ACROSS_OF_MANY = 4
SQUEEZED = 1 / 3  # share of a panel: good values that fill no more of it are squeezed by a failed region
FAR = 0.1  # share of the best value: what is not farther below it has not failed
FEWEST = 3  # good values: with fewer, nothing is called squeezed
BEYOND = (
    "Arrows at an edge, with their value where there is room, stand for what lies beyond it; there, intervals may run "
    "out of the panel."
)
LISTED = 12  # so many values have a tick each; more of them were drawn from a range
VALIDATION: Style = {"markersize": 3, "markerfacecolor": "white"}
CHOSEN: Style = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.1}
ONE_OF_MANY: Style = {"linestyle": "none", "alpha": 0.8}

Line = tuple[str, str]
"""Condition and swept hyperparameter of a row of panels."""


def figures(context: FigureContext) -> Iterator[Drawing]:
    """Yield a row of panels per hyperparameter; with several conditions, a figure each with a row per condition.

    An optimizer that sweeps one number has a line over that number. An optimizer that sweeps several has a point per
    configuration in the panel of each number. If tuning is a phase of its own, there are validation panels only.
    """
    # `tried`, not `rows`: a search is shown by the runs that the choice was made on.
    sweeps = [row for row in context.tried if row.label in context.meta["sweeps"] and _numbers(row) and row.scored]
    keys = sorted({key for row in sweeps for key in _numbers(row)})
    # Runs of a phase of tuning have no test metric and no gap.
    fields = OF_TUNING if phased(context.meta) else FIELDS
    if not keys:
        return
    if len({row.label for row in sweeps}) > SHARING:
        yield from _multiples(context, sweeps, fields)
        return
    if not context.several:
        lines = [(context.conditions[0], key) for key in keys]
        yield Drawing(_figure(context, sweeps, lines, fields), _caption(context, sweeps, keys), _data(context, sweeps))
        return
    for key in keys:
        of_key = [row for row in sweeps if key in _numbers(row)]
        conditions = [name for name in context.conditions if any(row.condition == name for row in of_key)]
        for shown in context.split(fields):
            for page in pages(conditions, ROWS):
                figure = _page(context, of_key, [(condition, key) for condition in page], shown)
                data = _data(context, [row for row in of_key if row.condition in page])
                yield Drawing(figure, _caption(context, of_key, [key]), data)


def _multiples(context: FigureContext, sweeps: list[Row], fields: Sequence[str]) -> Iterator[Drawing]:
    """Yield a figure per condition and field, with a panel for each number that an optimizer sweeps."""
    for condition, field in product(context.conditions, fields):
        here = [row for row in sweeps if row.condition == condition]
        panels = dict.fromkeys((row.label, key) for row in here for key in _numbers(row))
        for page in pages(list(panels), MULTIPLES):
            figure, axes = context.multiples(
                [label for label, _ in page], "", _title(context, field), condition, sharey=True
            )
            drawn = [row for row in here if any(row.label == label for label, _ in page)]
            # One scale for all panels of the page, so that optimizers can be compared.
            limits = _limits(
                context, [*drawn, *([reference] if (reference := _baseline(context, condition)) else [])], field
            )
            for ax, (label, key) in zip(axes, page, strict=True):
                _draw(ax, context, [row for row in here if row.label == label], (condition, key), field, limits)
                ax.set_xlabel(key)
            finish(figure, _handles(context, drawn, named=False), MULTIPLE_HEIGHT)
            caption = _caption(context, drawn, list(dict.fromkeys(key for _, key in page)))
            yield Drawing(figure, f"{caption} A panel for each optimizer that sweeps it.", _data(context, drawn))


def _numbers(row: Row) -> dict[str, float]:
    """Return the swept values of a configuration that are numbers."""
    # bool is a subtype of int in Python, hence the second test.
    numbers = {key: value for key, value in row.swept.items() if isinstance(value, int | float)}
    return {key: float(value) for key, value in numbers.items() if not isinstance(value, bool) and not pd.isna(value)}


def _caption(context: FigureContext, sweeps: Sequence[Row], keys: Sequence[str]) -> str:
    *others, last = keys
    several = any(len(row.swept) > 1 for row in sweeps)
    each = "; optimizers that sweep several have a point a configuration" if several else ""
    what = f"Sensitivity to {', '.join(others)}{' and ' if others else ''}{last}"
    if phased(context.meta):
        return (
            f"{what}: validation {context.metric} in the runs for tuning, mean over seeds with 95% Student-t "
            f"intervals where there are more than {FEW}{each}. A ring marks what was chosen. {BEYOND}"
        )
    return (
        f"{what}: mean over seeds with 95% Student-t intervals{each}. Small open markers are validation "
        f"{context.metric}, a ring marks the value chosen by it. {BEYOND}"
    )


def _data(context: FigureContext, sweeps: Sequence[Row]) -> pd.DataFrame:
    fields = ["val_metric", *(() if phased(context.meta) else FIELDS), "chosen"]
    frame = numbers.frame(sweeps, numbers.measured(context.meta["metric"], *fields))
    for key in dict.fromkeys(key for row in sweeps for key in row.swept):
        frame[key] = [row.swept.get(key) for row in sweeps]
    return frame


def _figure(context: FigureContext, sweeps: list[Row], lines: Sequence[Line], fields: Sequence[str]) -> Figure:
    panels = [(line, field) for line in lines for field in fields]
    across = min(ACROSS, len(panels))
    grid = context.stacked([panels[start : start + across] for start in range(0, len(panels), across)])
    figure, axes = context.panels(len(grid), len(grid[0]))
    for row in axes:
        # The last line may have fewer panels than places: all are switched off here, used ones on again below.
        for ax in row:
            ax.set_axis_off()
    for beside, row in zip(grid, axes, strict=True):
        for (line, field), ax in zip(beside, row, strict=False):
            ax.set_axis_on()
            _draw(ax, context, sweeps, line, field)
            ax.set(xlabel=line[1], ylabel=fold(_title(context, field), context.panel_height))
    finish(figure, _handles(context, sweeps), context.panel_height)
    return figure


def _page(context: FigureContext, sweeps: list[Row], lines: Sequence[Line], fields: Sequence[str]) -> Figure:
    figure, axes = context.panels(len(lines), len(fields), sharex=True)
    for line, row in zip(lines, axes, strict=True):
        for ax, field in zip(row, fields, strict=True):
            _draw(ax, context, sweeps, line, field)
    for ax in axes[-1]:
        ax.set_xlabel(lines[0][1])
    name_panels(axes, [condition for condition, _ in lines], [_title(context, field) for field in fields])
    finish(figure, _handles(context, sweeps), context.panel_height)
    return figure


def _title(context: FigureContext, field: str) -> str:
    if field == "gap_metric":
        return context.gap
    return f"{'validation ' if field == 'val_metric' else ''}{context.metric}{context.unit}"


def _draw(
    ax: Axes,
    context: FigureContext,
    sweeps: list[Row],
    line: Line,
    field: str,
    limits: tuple[float, float] | None = None,
) -> None:
    condition, key = line
    # 1. The baseline, behind everything else.
    if baseline := _baseline(context, condition):
        _band(ax, getattr(baseline, field).scaled(context.scale), context.styles[baseline.label])
    # 2. Every label: a line over its values, or points if several numbers are swept, which no line can join.
    rows = [row for row in sweeps if key in _numbers(row) and row.condition == condition]
    for label in dict.fromkeys(row.label for row in rows):
        of_label = sorted((row for row in rows if row.label == label), key=lambda row: _numbers(row)[key])
        if len(of_label[0].swept) == 1:
            _line(ax, context, {_numbers(row)[key]: row for row in of_label}, field)
        else:
            _points(ax, context, of_label, key, field)
    # 3. The limits, and only then the arrows, which stand for what lies beyond them.
    ax.set_ylim(limits or _limits(context, [*rows, *([baseline] if baseline else [])], field))
    _mark_beyond(ax, context, rows, key, field)
    # 4. Ticks, at the values under all conditions, so that the panels of a page share them.
    values = sorted({_numbers(row)[key] for row in sweeps if key in _numbers(row)})
    if len(values) <= LISTED:
        value_axis(ax, values, context.panel_width(ACROSS if limits is None else ACROSS_OF_MANY), log=wide(values))
    elif wide(values):
        ax.set_xscale("log")


def _limits(context: FigureContext, rows: Sequence[Row], field: str) -> tuple[float, float]:
    """Return limits around everything drawn, within the possible values of the metric.

    Where a region failed, as where a rate is too large, it would squeeze all others: the panel ends before it.
    """
    kept = _worth_a_look(context, rows, field)
    # Next to a failed region intervals are wide, too: there, only that of the choice sets limits.
    whole = kept if len(kept) == len(rows) else [row for row in kept if row.chosen]
    heights = [getattr(row, field).mean * context.scale for row in kept]
    heights += [bound for row in whole for bound in _drawn(getattr(row, field).scaled(context.scale))]
    # Validation is drawn beside the test metric, so it has to fit as well.
    if field == "test_metric":
        heights += [row.val_metric.mean * context.scale for row in kept]
    return with_margin(heights, UNBOUNDED if field == "gap_metric" else context.limits, MARGIN)


def _worth_a_look(context: FigureContext, rows: Sequence[Row], field: str) -> list[Row]:
    """Return the rows without those of a failed region: far worse than the rest, which lies close together."""
    # A gap says nothing of how well a region does: where both splits fail, it may be 0.
    judged_by = "test_metric" if field == "gap_metric" else field
    means = np.array([getattr(row, judged_by).mean for row in rows])
    if np.isfinite(means).sum() < FEWEST:
        return list(rows)
    # Turned so that more is better. NaN is never good, so a row without a mean is left out of a squeezed panel.
    worth = means if context.meta["metric"]["higher_is_better"] else -means
    best, worst = np.nanmax(worth), np.nanmin(worth)
    # If all are close to the best one, no region has failed.
    if best - worst <= FAR * abs(best):
        return list(rows)
    # The good half of the range; what is below it failed only if the good ones are several and lie close together.
    good = worth >= (best + worst) / 2
    if good.sum() < FEWEST or best - worth[good].min() > SQUEEZED * (best - worst):
        return list(rows)
    shown = np.array([kept or row.chosen for row, kept in zip(rows, good, strict=True)])
    # The gap of a failed region may be as those of the others, and then squeezes nothing.
    drawn = np.array([getattr(row, field).mean for row in rows])
    if np.ptp(drawn[shown]) > SQUEEZED * np.ptp(drawn[np.isfinite(drawn)]):
        return list(rows)
    return [row for row, kept in zip(rows, shown, strict=True) if kept]


def _mark_beyond(ax: Axes, context: FigureContext, rows: Sequence[Row], key: str, field: str) -> None:
    """Draw an arrow with the value at the edge of the panel, for each value beyond the edge."""
    low, high = ax.get_ylim()
    for row in rows:
        mean = getattr(row, field).mean * context.scale
        # Holds for NaN, too, which has no edge to stand at.
        if not (mean < low or mean > high):
            continue
        edge, up = (high, True) if mean > high else (low, False)
        look: Style = {"color": context.styles[row.label]["color"], "marker": "^" if up else "v", "clip_on": False}
        ax.plot(_numbers(row)[key], edge, **look, markersize=5, linestyle="none", zorder=5)
        if len(rows) <= LISTED:
            text = ax.annotate(
                f"{mean:.3g}", (_numbers(row)[key], edge), (0, -7 if up else 6), textcoords="offset points"
            )
            # in_layout=False: the layout would otherwise make room around the panel for the number.
            text.set(fontsize=points(6.5), color=NEUTRAL, horizontalalignment="center", in_layout=False)
            text.set_verticalalignment("top" if up else "bottom")


def _drawn(interval: Interval) -> tuple[float, float]:
    """Return the bounds of an interval over more than a few seeds; otherwise the mean twice."""
    return bounds(interval) if interval.n > FEW else (interval.mean, interval.mean)


def _baseline(context: FigureContext, condition: str) -> Row | None:
    """Return the row of the baseline's chosen configuration, computed, as all rows here, from the runs for choosing."""
    baseline = context.meta["baseline"]
    chosen = (row for row in context.tried if row.label == baseline and row.condition == condition and row.chosen)
    return next((row for row in chosen if row.scored), None)


def _line(ax: Axes, context: FigureContext, points: Mapping[float, Row], field: str) -> None:
    """Draw one label: its line over the swept values, validation beside test, a ring around the choice."""
    style = context.styles[next(iter(points.values())).label]
    x = list(points)
    intervals = [getattr(row, field).scaled(context.scale) for row in points.values()]
    ax.plot(x, [interval.mean for interval in intervals], **style)
    low, high = zip(*map(_drawn, intervals), strict=True)
    ax.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    if field == "test_metric":
        validation = [row.val_metric.mean * context.scale for row in points.values()]
        ax.plot(x, validation, **{**style, "linewidth": 0.7, **VALIDATION})
    for (value, row), interval in zip(points.items(), intervals, strict=True):
        if row.chosen:
            ax.plot(value, interval.mean, color=style["color"], marker="o", **CHOSEN)


def _points(ax: Axes, context: FigureContext, rows: Sequence[Row], key: str, field: str) -> None:
    """Draw one label that sweeps several hyperparameters: a point per configuration, a ring around the choice."""
    style = context.styles[rows[0].label]
    for row in rows:
        x, interval = _numbers(row)[key], getattr(row, field).scaled(context.scale)
        ax.plot([x, x], _drawn(interval), color=style["color"], linewidth=0.7, alpha=0.5)
        ax.plot(x, interval.mean, **{**style, **ONE_OF_MANY})
        if row.chosen:
            ax.plot(x, interval.mean, color=style["color"], marker="o", **CHOSEN)


def _band(ax: Axes, interval: Interval, style: Style) -> None:
    ax.axhline(interval.mean, color=style["color"], linewidth=0.9)
    if interval.n > FEW and interval.known:
        ax.axhspan(interval.low, interval.high, color=style["color"], alpha=0.08, linewidth=0)


def _handles(context: FigureContext, sweeps: list[Row], *, named: bool = True) -> list[Artist]:
    """Return the legend; without `named` it omits the optimizers, as panels that have their names as titles need."""
    several = {row.label for row in sweeps if len(row.swept) > 1}
    handles = [
        Line2D([], [], label=label, **{**context.styles[label], **(ONE_OF_MANY if label in several else {})})
        for label in dict.fromkeys(row.label for row in sweeps)
        if named
    ]
    baselines = {row.name for row in (_baseline(context, condition) for condition in context.conditions) if row}
    if baselines:
        alone = len(baselines) == 1 and context.meta["baseline"] not in several
        name = baselines.pop() if alone else f"{context.meta['baseline']}, chosen"
        colour = context.styles[context.meta["baseline"]]["color"]
        handles.append(Line2D([], [], color=colour, label=name, linewidth=0.9))
    kinds: list[tuple[str, Style]] = [("test", {}), ("validation", VALIDATION)]
    for label, look in [*([] if phased(context.meta) else kinds), ("chosen on validation", CHOSEN)]:
        handles.append(Line2D([], [], color=NEUTRAL, linestyle="none", marker="o", label=label, **look))
    return list(handles)
