"""Seed by seed: from the baseline to each optimizer, and the differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.analysis.bounds import of_difference
from bench.analysis.plots.context import ROWS, Drawing, FigureContext, folded, pages
from bench.analysis.plots.looks import Style
from bench.analysis.plots.style import NEUTRAL, TICK_SIZE, bounds, finish, fold, with_margin
from bench.analysis.stats import Interval, mean_interval
from bench.store.conditions import KEY, keyed
from bench.store.selection import reported

REACH = 0.27  # share of the distance between two rows, within which the seeds of a row are drawn on either side of it
LOWEST, LINE = 0.3, 0.12  # inches: a row, and a line of its name
LONGEST, LONGEST_NARROW = 1.35, 0.85  # inches of a name, beyond which it is folded
TALLEST = 8.0  # inches of all panels on a page
SEED: Style = {
    "clip_on": False,
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgewidth": 0.8,
    "linestyle": "none",
}
MEAN: Style = {"markersize": 5.5, "linestyle": "none"}

Panel = tuple[str, str]
"""A condition and the column of `_pairs` to draw, "value" or "difference"."""


def figures(context: FigureContext) -> Iterator[Drawing]:
    """Yield figures of one line per seed from the baseline to each optimizer, beside the differences.

    With several conditions each has a row of panels. Optimizers have a row each and are named at its side, since their
    names may be long and numerous.
    """
    pairs = _pairs(context)
    conditions = [condition for condition in context.conditions if (pairs["condition"] == condition).any()]
    if not conditions:
        return
    caption = (
        f"Test {context.metric} seed by seed: a line from {context.meta['baseline']} (above) to each optimizer "
        "(below), same initial weights, batches and noise; beside it the differences, one seed below the other, with "
        "their mean and its 95% Student-t interval."
    )
    names = _names(context)
    height = sum(names.values()) + 0.06
    columns = ["value", "difference"]
    if context.several:
        # As many conditions as fit into TALLEST inches, each with 0.4 inches beside its rows.
        on_page = max(1, min(ROWS, int(TALLEST / (height + 0.4))))
        shown = [(beside, page) for beside in context.split(columns) for page in pages(conditions, on_page)]
        grids = [[[(condition, column) for column in beside] for condition in page] for beside, page in shown]
    else:
        grids = [context.stacked([[(conditions[0], column) for column in columns]])]
    for grid in grids:
        figure = _figure(context, pairs, grid, list(names))
        finish(figure, _handles(context), height)
        here = {condition for line in grid for condition, _ in line}
        yield Drawing(figure, caption, _data(context, pairs[pairs["condition"].isin(here)]))


def _figure(
    context: FigureContext, pairs: pd.DataFrame, grid: Sequence[Sequence[Panel]], names: Sequence[str]
) -> Figure:
    figure, axes = context.panels(len(grid), len(grid[0]), sharey=True)
    labels = [label for label in context.labels() if label != context.meta["baseline"]]
    for line, row in zip(grid, axes, strict=True):
        for (condition, column), ax in zip(line, row, strict=True):
            here = pairs[pairs["condition"] == condition]
            draw = _lines if column == "value" else _differences
            for place, label in enumerate(labels):
                draw(ax, context, here[here["optimizer"] == label], label, place)
            # With several conditions a column of panels shows one quantity, named below its last panel.
            if line is grid[-1] or not context.several:
                ax.set_xlabel(fold(_title(context, column), context.panel_width(2) - 0.9))
            if column == "value":
                ax.set_xlim(with_margin(here[["baseline", "value"]].to_numpy(float), context.limits))
            ax.grid(visible=False, axis="y")
            ax.set_yticks(range(len(labels)), names)
            # The axis points down, so that the first optimizer is at the top, as in tables.
            ax.set_ylim(len(labels) - 0.4, -0.6)
        if context.several:
            row[0].set_ylabel(folded(line[0][0], 0.3 * len(labels)))
    return figure


def _names(context: FigureContext) -> dict[str, float]:
    """Return the text beside each row, with its height in inches."""
    room = LONGEST_NARROW if context.narrow else LONGEST
    handles = [context.handle(label) for label in context.labels() if label != context.meta["baseline"]]
    names = [fold(str(handle.get_label()), room, TICK_SIZE) for handle in handles]
    return {name: max(LOWEST, LINE * (name.count("\n") + 2)) for name in names}


def _pairs(context: FigureContext) -> pd.DataFrame:
    """Return every seed finished by an optimizer's chosen configuration and the baseline's, in the unit shown.

    Columns: condition, optimizer, config, seed, baseline, value, difference.
    """
    records = keyed(reported(context.study.results.records))
    column = f"test_{context.meta['metric']['key']}"
    done = records[(records["status"] == "done") & records[column].notna()]
    # Sorted: pandas warns when it has to look up a part of an unsorted key.
    value = (context.scale * done.set_index([*KEY, "seed"])[column].astype(float)).sort_index()
    frames = []
    for row in context.best:
        base = context.baseline(row.condition)
        if base is None or row.label == base.label:
            continue
        ours, theirs = (value.loc[(one.condition, one.label, one.config)] for one in (row, base))
        # The two sides are matched by seed; a seed that one side lacks is NaN, and dropped.
        both = pd.DataFrame({"baseline": theirs, "value": ours}).dropna().rename_axis("seed").reset_index()
        frames.append(both.assign(condition=row.condition, optimizer=row.label, config=row.config))
    columns = [*KEY, "seed", "baseline", "value"]
    # `concat` raises if it gets no frame, and the columns are needed all the same.
    pairs: pd.DataFrame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    return pairs[columns].assign(difference=pairs["value"] - pairs["baseline"])


def _data(context: FigureContext, pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of the figure's CSV: every pair, with its optimizer's mean difference and bounds."""
    metric = context.meta["metric"]
    unit = f" [{metric['unit']}]" if metric["unit"] else ""
    # Mean and bounds belong to an optimizer, so they are repeated on the line of each of its seeds.
    of_each = pairs.groupby(KEY, sort=False)["difference"]
    intervals = of_each.transform("size").to_frame("n")
    interval_of = {key: _interval(context, values) for key, values in of_each}
    keys = list(pairs[KEY].itertuples(index=False, name=None))
    for part in ("mean", "low", "high"):
        intervals[f"difference_{part}{unit}"] = [getattr(interval_of[key], part) for key in keys]
    names = {"value": f"test_{metric['key']}", "baseline": f"test_{metric['key']}_of_baseline"}
    named = pairs.rename(columns={**{old: new + unit for old, new in names.items()}, "difference": f"difference{unit}"})
    joined = named.join(intervals)
    return joined if context.several else joined.drop(columns="condition")


# ---- panels --------------------------------------------------------------------------------------------------


def _title(context: FigureContext, column: str) -> str:
    if column == "value":
        return f"test {context.metric}{context.unit}"
    return f"difference to {context.meta['baseline']}{context.points}"


def _lines(ax: Axes, context: FigureContext, pairs: pd.DataFrame, label: str, place: int) -> None:
    """Draw one line per seed, from the baseline's dot above to the optimizer's marker below."""
    style, base = context.styles[label], context.styles[context.meta["baseline"]]
    y = (place - REACH, place + REACH)
    for ends in pairs[["baseline", "value"]].to_numpy(float):
        ax.plot(ends, y, color=style["color"], linewidth=0.8, alpha=0.75)
    for at, column, look in ((y[0], "baseline", base), (y[1], "value", style)):
        ax.plot(pairs[column], [at] * len(pairs), **{**SEED, "color": look["color"], "marker": look["marker"]})


def _differences(ax: Axes, context: FigureContext, pairs: pd.DataFrame, label: str, place: int) -> None:
    """Draw one dot per seed, and below the dots their mean with its interval."""
    # Drawn before the return below: a panel without pairs has the line of no difference, too.
    ax.axvline(0, color=context.styles[context.meta["baseline"]]["color"], linewidth=0.9, zorder=1)
    if pairs.empty:
        return
    style = context.styles[label]
    look = {"color": style["color"], "marker": style["marker"]}
    # Seeds fill the row down to REACH / 2 below its middle; their mean has the room below that.
    spread = np.linspace(-REACH, REACH / 2, len(pairs)) if len(pairs) > 1 else [-REACH / 2]
    ax.plot(pairs["difference"], place + np.asarray(spread), **{**SEED, **look})
    interval = _interval(context, pairs["difference"])
    at = place + 1.2 * REACH
    ax.plot(bounds(interval), [at, at], color=style["color"], linewidth=1.2)
    ax.plot(interval.mean, at, **{**MEAN, **look})


def _interval(context: FigureContext, differences: pd.Series) -> Interval:
    low, high = of_difference(context.meta["metric"])
    return mean_interval(differences).within(low * context.scale, high * context.scale)


def _handles(context: FigureContext) -> list[Artist]:
    """Return the legend: the other optimizers are named beside their rows."""
    baseline = context.handle(context.meta["baseline"], line=False, marker=True)
    one = Line2D([], [], label="one seed", color=NEUTRAL, marker="o", **SEED)
    mean = Line2D([], [], label="mean of the differences", color=NEUTRAL, marker="D", **{**MEAN, "linestyle": "-"})
    return [baseline, one, mean]
