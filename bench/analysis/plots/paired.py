"""Seed by seed: from the baseline to each optimizer, and the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.choice import reported
from bench.analysis.conditions import KEY, keyed
from bench.analysis.plots.style import NEUTRAL, Style, bounds, legend, text_width
from bench.analysis.plots.view import ROWS, Drawing, View, name_panels, pages
from bench.analysis.stats import Interval, mean_interval

if TYPE_CHECKING:
    from bench.records import Results

REACH = 0.27  # of the way between two optimizers, on either side of each, in which its seeds are drawn
SEED: Style = {"markersize": 3.2, "markerfacecolor": "white", "markeredgewidth": 0.8, "linestyle": "none"}
MEAN: Style = {"markersize": 5.5, "linestyle": "none"}

Panel = tuple[str, str]
"""A condition and the column of `_pairs` to draw, "value" or "difference"."""


def figures(view: View, results: Results) -> Iterator[Drawing]:
    """A line a seed from the baseline to each optimizer beside the differences; with several conditions a row each."""
    pairs = _pairs(view, results)
    shown = [condition for condition in view.conditions if (pairs["condition"] == condition).any()]
    baseline = view.meta["baseline"]
    caption = (
        f"Test {view.metric} seed by seed: a line from {baseline} to each optimizer, same initial weights, batches and "
        f"noise; beside it the differences, with their mean and its 95% Student-t interval."
    )
    if shown and not view.several:
        grid = view.stacked([[(shown[0], "value"), (shown[0], "difference")]])
        figure, axes = view.panels(len(grid), len(grid[0]))
        _fill(view, pairs, axes, grid)
        legend(figure, _handles(view))
        for ax, (_, column) in zip(axes.flat, [panel for line in grid for panel in line], strict=True):
            ax.set_ylabel(_title(view, column))
        yield Drawing(figure, caption, _data(view, pairs))
    elif shown:
        for columns in view.split(["value", "difference"]):
            for page in pages(shown, ROWS):
                yield Drawing(
                    _page(view, pairs, page, columns), caption, _data(view, pairs[pairs["condition"].isin(page)])
                )


def _page(view: View, pairs: pd.DataFrame, conditions: Sequence[str], columns: Sequence[str]) -> Figure:
    figure, axes = view.panels(len(conditions), len(columns), sharex=True)
    _fill(view, pairs, axes, [[(condition, column) for column in columns] for condition in conditions])
    name_panels(axes, conditions, [_title(view, column) for column in columns])
    legend(figure, _handles(view))
    return figure


def _pairs(view: View, results: Results) -> pd.DataFrame:
    """Every seed that an optimizer's chosen configuration and the baseline's have both finished, in the unit shown.

    Columns: condition, optimizer, config, seed, baseline, value, difference.
    """
    records = keyed(reported(results.records))
    column = f"test_{view.meta['metric']['key']}"
    done = records[(records["status"] == "done") & records[column].notna()]
    value = (view.scale * done.set_index([*KEY, "seed"])[column].astype(float)).sort_index()
    frames = []
    for row in view.best:
        base = view.baseline(row.condition)
        if base is None or row.label == base.label:
            continue
        ours, theirs = (value.loc[(one.condition, one.label, one.config)] for one in (row, base))
        both = pd.DataFrame({"baseline": theirs, "value": ours}).dropna().rename_axis("seed").reset_index()
        frames.append(both.assign(condition=row.condition, optimizer=row.label, config=row.config))
    columns = [*KEY, "seed", "baseline", "value"]
    pairs: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return pairs[columns].assign(difference=pairs["value"] - pairs["baseline"])


def _data(view: View, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs under the names and in the unit of the other files, with the mean difference of each optimizer."""
    metric = view.meta["metric"]
    unit = f" [{metric['unit']}]" if metric["unit"] else ""
    of_each = pairs.groupby(KEY, sort=False)["difference"]
    intervals = of_each.transform("size").to_frame("n")
    found = {key: mean_interval(values) for key, values in of_each}
    keys = list(pairs[KEY].itertuples(index=False, name=None))
    for part in ("mean", "low", "high"):
        intervals[f"difference_{part}{unit}"] = [getattr(found[key], part) for key in keys]
    names = {"value": f"test_{metric['key']}", "baseline": f"test_{metric['key']}_of_baseline"}
    named = pairs.rename(columns={**{old: new + unit for old, new in names.items()}, "difference": f"difference{unit}"})
    joined = named.join(intervals)
    return joined if view.several else joined.drop(columns="condition")


# ---- panels --------------------------------------------------------------------------------------------------


def _title(view: View, column: str) -> str:
    if column == "value":
        return f"test {view.metric}{view.unit}"
    return f"difference to {view.meta['baseline']}{view.points}"


def _fill(view: View, pairs: pd.DataFrame, axes: np.ndarray[Any, Any], grid: Sequence[Sequence[Panel]]) -> None:
    for line, row in zip(grid, axes, strict=True):
        for (condition, column), ax in zip(line, row, strict=True):
            here = pairs[pairs["condition"] == condition]
            labels = [label for label in view.labels() if label != view.meta["baseline"]]
            for place, label in enumerate(labels):
                (_lines if column == "value" else _differences)(
                    ax, view, here[here["optimizer"] == label], label, place
                )
            _name(ax, labels, view.panel_width(2))


def _lines(ax: Axes, view: View, pairs: pd.DataFrame, label: str, place: int) -> None:
    """A line a seed, from the baseline's dot on the left to the optimizer's marker on the right."""
    style, base = view.styles[label], view.styles[view.meta["baseline"]]
    x = (place - REACH, place + REACH)
    for ends in pairs[["baseline", "value"]].to_numpy(float):
        ax.plot(x, ends, color=style["color"], linewidth=0.8, alpha=0.75)
    for at, column, look in ((x[0], "baseline", base), (x[1], "value", style)):
        ax.plot([at] * len(pairs), pairs[column], **{**SEED, "color": look["color"], "marker": look["marker"]})


def _differences(ax: Axes, view: View, pairs: pd.DataFrame, label: str, place: int) -> None:
    """A dot a seed, and beside them the mean with its interval."""
    ax.axhline(0, color=view.styles[view.meta["baseline"]]["color"], linewidth=0.9, zorder=1)
    if pairs.empty:
        return
    style = view.styles[label]
    look = {"color": style["color"], "marker": style["marker"]}
    spread = np.linspace(-REACH, REACH / 2, len(pairs)) if len(pairs) > 1 else [-REACH / 2]
    ax.plot(place + np.asarray(spread), pairs["difference"], **{**SEED, **look})
    interval: Interval = mean_interval(pairs["difference"])
    at = place + 1.3 * REACH
    ax.plot([at, at], bounds(interval), color=style["color"], linewidth=1.2)
    ax.plot(at, interval.mean, **{**MEAN, **look})


def _name(ax: Axes, labels: Sequence[str], width: float) -> None:
    ax.grid(visible=False, axis="x")
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_xticks(range(len(labels)), labels)
    if max(map(text_width, labels)) > 0.95 * width / len(labels):
        ax.tick_params(axis="x", labelrotation=30)
        for text in ax.get_xticklabels():
            text.set_horizontalalignment("right")


def _handles(view: View) -> list[Artist]:
    handles: list[Artist] = [view.handle(label, line=False, marker=True) for label in view.labels()]
    return [*handles, Line2D([], [], label="one seed", color=NEUTRAL, marker="o", **SEED)]
