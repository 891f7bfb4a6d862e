"""The loss around final weights: along a direction, with bands over seeds, and over a plane, side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullLocator

from bench.analysis.plots.context import (
    EACH,
    MULTIPLE_HEIGHT,
    MULTIPLES,
    ROWS,
    Drawing,
    FigureContext,
    name_panels,
    pages,
    pale,
)
from bench.analysis.plots.style import finish, fold, wide
from bench.analysis.sharpness import around
from bench.analysis.stats import half_width

LEVELS = 13
PLANES = 9  # on a page
CMAP = "viridis"  # even in lightness, and the same for all eyes
LOSS = "loss (training examples)"
ALONG = "along the filter-normalised direction"


def lines(context: FigureContext) -> Iterator[Drawing]:
    """Yield figures of mean loss along each seed's direction, a panel per condition; none if no run was measured."""
    points = around(context.study, "line")
    shown = [condition for condition in context.conditions if (points["condition"] == condition).any()]
    caption = (
        "Loss along a random direction of filter-normalised length (Li et al. 2018), the same for all optimizers of a "
        "seed: mean over the measured seeds of each chosen configuration, with its 95% Student-t band."
    )
    if context.many and shown:
        yield from _multiples(context, points, shown, caption)
        return
    for page in pages(shown, ROWS):
        here = points[points["condition"].isin(page)]
        mean = _mean(here)
        figure, axes = context.panels(len(page), 1)
        # One scale for the page, so that its panels can be compared; `wide` needs at least one value.
        log = wide(sorted(mean["mean"].dropna()) or [0.0])
        for condition, (ax,) in zip(page, axes, strict=True):
            _line(ax, context, mean[mean["condition"] == condition], condition, log=log)
        axes[-1][0].set_xlabel(ALONG)
        if context.several:
            name_panels(axes, page, [LOSS])
        else:
            axes[0][0].set_ylabel(LOSS)
        handles = [context.handle(label) for label in context.labels() if (here["optimizer"] == label).any()]
        finish(figure, handles, context.panel_height)
        yield Drawing(figure, caption, _numbers(context, mean))


def _multiples(context: FigureContext, points: pd.DataFrame, shown: Sequence[str], caption: str) -> Iterator[Drawing]:
    """Yield the same for many optimizers: a figure per condition, a panel per optimizer."""
    for condition in shown:
        mean = _mean(points[points["condition"] == condition])
        measured = [label for label in context.beside_baseline(condition) if (mean["optimizer"] == label).any()]
        for labels in pages(measured, MULTIPLES):
            figure, axes = context.multiples(
                context.named(labels, condition), ALONG, LOSS, condition, sharex=True, sharey=True
            )
            log = wide(sorted(mean["mean"].dropna()) or [0.0])
            for ax, label in zip(axes, labels, strict=True):
                _line(ax, context, mean, condition, log=log, focus=label)
            finish(figure, context.key_of_multiples(), MULTIPLE_HEIGHT)
            yield Drawing(figure, f"{caption} {EACH.format(context.meta['baseline'])}", _numbers(context, mean))


def _numbers(context: FigureContext, mean: pd.DataFrame) -> pd.DataFrame:
    return mean.drop(columns=[] if context.several else ["condition"]).rename(columns=_column)


def planes(context: FigureContext) -> Iterator[Drawing]:
    """Yield figures of loss over the plane of two directions, one per condition, with a panel per optimizer.

    Levels and axes are shared.
    """
    points = around(context.study, "plane").dropna(subset="loss")
    for condition in context.conditions:
        here = points[points["condition"] == condition]
        measured = [row.label for row in context.chosen(condition) if (here["optimizer"] == row.label).any()]
        for labels in pages(measured, PLANES):
            yield _planes(context, here, labels, condition)


def _planes(context: FigureContext, here: pd.DataFrame, labels: Sequence[str], condition: str) -> Drawing:
    most = 2 if context.narrow else 3
    across, side = min(len(labels), most), context.width / most
    down = math.ceil(len(labels) / across)
    figure = context.figure()
    axes = np.asarray(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True))
    # Losses above a hundred times the median say no more than that: all of them have the last shade.
    low, high = here["loss"].min(), min(here["loss"].max(), 100 * here["loss"].median())
    # Logarithmic levels need positive losses that differ.
    # Losses that are all alike have no levels of their own: one shade, whatever the upper end.
    top = high if high > low else low + 1.0
    levels = np.geomspace(low, high, LEVELS) if low > 0 and high > low else np.linspace(low, top, LEVELS)
    norm = LogNorm(levels[0], levels[-1]) if low > 0 and high > low else None
    names = {row.label: row.name for row in context.chosen(condition)}
    for ax, label in zip(axes.flat, labels, strict=False):
        # contourf takes rows as y and columns as x.
        grid = here[here["optimizer"] == label].pivot(index="beta", columns="alpha", values="loss")
        drawn = ax.contourf(grid.columns, grid.index, grid, levels, norm=norm, cmap=CMAP, extend="max")
        ax.contour(grid.columns, grid.index, grid, levels, norm=norm, colors="white", linewidths=0.35)
        ax.plot(0, 0, marker="+", color="white", markersize=7, markeredgewidth=1.1)
        ax.set_title(fold(names[label], side - 0.3))
        ax.set(aspect="equal", xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
        ax.grid(visible=False)
    used = list(axes.flat[: len(labels)])
    for ax in axes.flat[len(labels) :]:
        ax.remove()
    # The last panel of each column: nothing stands below it.
    for ax in used[-across:]:
        ax.set_xlabel("first direction")
        ax.tick_params(labelbottom=True)
    for ax in used[::across]:
        ax.set_ylabel("second direction")
    bar = figure.colorbar(drawn, ax=used, location="bottom", shrink=0.6, aspect=40, pad=0.02)
    bar.set_label(LOSS)
    # A logarithmic bar would have ticks of its own between the levels.
    bar.ax.xaxis.set_minor_locator(NullLocator())
    # The first level, the last, and three between.
    shown = [float(level) for level in levels[:: (LEVELS - 1) // 4]]
    bar.set_ticks(shown, labels=[f"{level:,.0f}" if level >= 100 else f"{level:.2g}" for level in shown])
    finish(figure, [], side - 0.45)
    # `bench measure` takes the plane of one seed per optimizer and condition, the first.
    seed = int(here["seed"].iloc[0])
    caption = (
        f"Loss over the plane of two filter-normalised directions (Li et al. 2018) around the final weights (+) of "
        f"seed {seed}{f' under {condition}' if condition else ''}: the same directions, axes and levels for all "
        "optimizers."
    )
    columns = [*(["condition"] if context.several else []), "optimizer", "seed", "alpha", "beta", "loss"]
    return Drawing(figure, caption, here[here["optimizer"].isin(labels)][columns])


def _line(
    ax: Axes, context: FigureContext, mean: pd.DataFrame, condition: str, *, log: bool, focus: str | None = None
) -> None:
    full, others = context.in_full(context.chosen(condition), focus)
    measured = dict(iter(mean.groupby("optimizer", sort=False)))
    pale(ax, [(measured[row.label]["alpha"], measured[row.label]["mean"]) for row in others if row.label in measured])
    for row in full:
        here, style = mean[mean["optimizer"] == row.label], context.styles[row.label]
        ax.plot(here["alpha"], here["mean"], **{**style, "marker": None})
        # A log axis has no place for bounds at 0 or below: the band ends a decade under the lowest mean.
        low = here["low"].clip(lower=here["mean"].min() / 10) if log else here["low"]
        ax.fill_between(here["alpha"], low, here["high"], color=style["color"], alpha=0.15, linewidth=0)
    if log:
        ax.set_yscale("log")
    ax.set_xlim(mean["alpha"].min(), mean["alpha"].max())


def _mean(points: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and t bounds over the seeds, one line per condition, label and place."""
    groups = points.groupby(["condition", "optimizer", "alpha"], sort=False)["loss"]
    means = groups.agg(["count", "mean", "std"])
    half = half_width(means["count"], means["std"])
    bounded = means.assign(low=means["mean"] - half, high=means["mean"] + half).drop(columns="std")
    return bounded.rename(columns={"count": "n"}).reset_index()


def _column(name: str) -> str:
    return f"loss_{name}" if name in ("mean", "low", "high") else name
