"""Metrics and generalization gap over the course of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from bench.analysis.bounds import UNBOUNDED, Bounds, of_difference
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
from bench.analysis.plots.looks import Style
from bench.analysis.plots.style import finish, fold, with_margin
from bench.analysis.stats import half_width
from bench.store.conditions import KEY, first_few, keyed
from bench.store.selection import reported

START = 0.3  # share of an optimizer's epochs that set no limits: where curves begin says little
ALIKE = 2.0  # a curve up to this many times as long as the shortest still shares its axis
AXES = {"epoch": "epoch", "passes": "forward-backward passes"}
LINE = ["condition", "optimizer"]

Panel = tuple[str, str, str]
"""Condition, horizontal and vertical column."""


def evaluated_often(runs: pd.DataFrame) -> bool:
    """Return whether any run was evaluated more than once, so that there are curves to draw."""
    return bool((runs.groupby("run_id").size() > 1).any())


def curves(context: FigureContext, runs: pd.DataFrame) -> Iterator[Drawing]:
    """Yield figures of test and train metric against epochs and, if epochs differ in cost, against passes."""
    what = f"Test and train {context.metric} over training"
    titles = {
        "test_metric": f"test {context.metric}{context.unit}",
        "train_metric": f"train {context.metric}{context.study.captions.true_labels}{context.unit}",
    }
    if not _passes_differ(runs):
        yield from _figures(context, runs, [("epoch", y) for y in titles], titles, what)
    elif context.several:  # three panels are as many as fit beside each other
        columns = [("epoch", "test_metric"), ("passes", "test_metric"), ("epoch", "train_metric")]
        yield from _figures(context, runs, columns, titles, what)
    else:
        yield from _figures(context, runs, [(x, y) for x in AXES for y in titles], titles, what)


def gap(context: FigureContext, runs: pd.DataFrame) -> Iterator[Drawing]:
    """Yield figures of the generalization gap of loss and metric against epochs."""
    # Several kinds of loss have no unit in common.
    unit = "" if context.study.captions.losses() else " (nats)"
    titles = {
        "gap_loss": f"test − train loss{unit}",
        "gap_metric": context.gap,
    }
    what = f"Generalization gap of loss and {context.metric} over training"
    yield from _figures(context, runs, [("epoch", y) for y in titles], titles, what)


def chosen_curves(context: FigureContext) -> pd.DataFrame:
    """Return the curves of the chosen configurations' finished runs, with gaps, metrics in the unit shown."""
    results, metric = context.study.results, context.meta["metric"]
    done = results.records.loc[results.records["status"] == "done", "run_id"]
    curves = keyed(reported(results.curves))
    wanted = pd.MultiIndex.from_tuples([(row.condition, row.label, row.config) for row in context.best])
    # By configuration too: one run may stand under several labels, chosen under one of them only.
    curves = curves[pd.MultiIndex.from_frame(curves[KEY]).isin(wanted) & curves["run_id"].isin(done)]
    test = metric["scale"] * curves[f"test_{metric['key']}"]
    train = metric["scale"] * curves[f"train_clean_{metric['key']}"]
    # Positive is worse on the test set, as in the records.
    gap = train - test if metric["higher_is_better"] else test - train
    gaps = {"gap_loss": curves["test_loss"] - curves["train_clean_loss"], "gap_metric": gap}
    of = curves["run_id"].map(_sampled(results.records))
    return curves.assign(test_metric=test, train_metric=train, **gaps, sampled=of)


def _sampled(records: pd.DataFrame) -> Mapping[str, float]:
    """Return, by run_id, the training examples evaluated before the last epoch, for runs that evaluate a sample."""
    if not {"eval_train", "examples"} <= {*records}:
        return {}
    size = pd.to_numeric(records["eval_train"], errors="coerce")
    # Examples per epoch are the size of the training set; a sample of at least that size is no sample.
    fewer = size < records["examples"] / records["epochs"]
    return dict(zip(records.loc[fewer, "run_id"], size[fewer], strict=True))


def _passes_differ(runs: pd.DataFrame) -> bool:
    """Return whether an epoch takes some optimizers more passes than others under the same condition."""
    # Level 0 of the index is the condition: sizes of training sets must not count as a difference.
    costs = (runs["passes"] / runs["epoch"]).groupby([runs[column] for column in LINE]).mean().groupby(level=0)
    # A tolerance of 0.1%, so that rounding of the means is no difference.
    return bool((costs.max() >= 1.001 * costs.min()).any())


def _figures(
    context: FigureContext, runs: pd.DataFrame, columns: Sequence[tuple[str, str]], titles: Mapping[str, str], what: str
) -> Iterator[Drawing]:
    """Yield all pages of panels: one per pair of columns, a row per condition; a grid if there is one condition."""
    if runs.empty:
        return
    means = {y: _mean_curves(runs, y, _bounds(context, y)) for _, y in columns}
    caption = f"{what}: mean over the finished seeds of each chosen configuration, with its 95% Student-t band."
    if sizes := sorted(set(runs["sampled"].dropna())):
        some = " or ".join(f"{size:,.0f}" for size in sizes)
        caption += f" Before the last epoch, training points are of {some} examples, drawn once for all runs."
    caption += _gaps(runs, list(titles))
    if context.many:
        for condition, (x, y) in product(context.conditions, columns):
            for labels in pages(context.beside_baseline(condition), MULTIPLES):
                figure = _multiples(context, means, (condition, x, y), titles, labels)
                said = f"{caption} {EACH.format(context.meta['baseline'])}"
                yield Drawing(figure, said, _data(context, {y: means[y]}, [condition]))
        return
    if not context.several:
        (condition,) = context.conditions
        grid = [[(condition, x, y) for y in titles] for x in dict.fromkeys(x for x, _ in columns)]
        yield Drawing(_single(context, means, grid, titles), caption, _data(context, means, [condition]))
        return
    for beside in context.split(columns):
        for shown in pages(context.conditions, ROWS):
            grid = [[(condition, *column) for column in beside] for condition in shown]
            data = _data(context, {y: means[y] for _, y in beside}, shown)
            yield Drawing(_page(context, means, grid, titles), caption, data)


def _gaps(runs: pd.DataFrame, columns: Sequence[str]) -> str:
    """Return which evaluations have no finite number to draw; "" if all have one."""
    odd = runs[runs[columns].isna().any(axis=1)]
    groups: Any = odd.groupby([*LINE, "seed"], sort=False)["epoch"]
    each = [
        f"{', '.join(filter(None, (condition, label)))}, seed {seed} (epoch {', '.join(map(str, epochs))})"
        for (condition, label, seed), epochs in groups
    ]
    return f" Not finite, and left out: {first_few(each)}." if each else ""


def _data(context: FigureContext, means: Mapping[str, pd.DataFrame], shown: Sequence[str]) -> pd.DataFrame:
    """Return the points of these curves, a line per condition, label and epoch."""
    key, unit = context.meta["metric"]["key"], context.meta["metric"]["unit"]
    names = {"test_metric": f"test_{key}", "train_metric": f"train_clean_{key}", "gap_metric": f"gap_{key}"}
    columns = [*(LINE if context.several else LINE[1:]), "epoch", "passes"]
    frames = []
    for y, mean in means.items():
        suffix = f" [{unit}]" if unit and y in names else ""
        bounds = {part: f"{names.get(y, y)}_{part}{suffix}" for part in ("mean", "low", "high")}
        here = mean[mean["condition"].isin(shown)].rename(columns={"count": "n", **bounds})
        frames.append(here.set_index([*columns, "n"])[list(bounds.values())])
    # Conditions and labels in the order of the experiment; the stable sort keeps the epochs ascending.
    places = {name: place for place, name in enumerate([*shown, *context.meta["labels"]])}
    joined: pd.DataFrame = pd.concat(frames, axis=1).reset_index()
    return joined.sort_values(columns[:-2], key=lambda names: names.map(places), kind="stable")


def _single(
    context: FigureContext,
    means: Mapping[str, pd.DataFrame],
    grid: Sequence[Sequence[Panel]],
    titles: Mapping[str, str],
) -> Figure:
    grid = context.stacked(grid)
    figure, axes = context.panels(len(grid), len(grid[0]))
    for line, row in zip(grid, axes, strict=True):
        for panel, ax in zip(line, row, strict=True):
            _draw(ax, context, means, panel)
            ax.set(xlabel=AXES[panel[1]], ylabel=fold(titles[panel[2]], context.panel_height))
            ax.set_xlim(left=0)
    finish(figure, [context.handle(label) for label in context.labels()], context.panel_height)
    return figure


def _page(
    context: FigureContext, means: Mapping[str, pd.DataFrame], grid: list[list[Panel]], titles: Mapping[str, str]
) -> Figure:
    figure, axes = context.panels(len(grid), len(grid[0]))
    for line, row in zip(grid, axes, strict=True):
        for panel, ax in zip(line, row, strict=True):
            _draw(ax, context, means, panel)
    for (_, x, y), column in zip(grid[0], axes.T, strict=True):
        _align(column, [means[y].loc[means[y]["condition"] == line[0][0], x].max() for line in grid])
        column[-1].set_xlabel(AXES[x])
    name_panels(axes, [line[0][0] for line in grid], [titles[y] for _, _, y in grid[0]])
    finish(figure, [context.handle(label) for label in context.labels()], context.panel_height)
    return figure


def _multiples(
    context: FigureContext,
    means: Mapping[str, pd.DataFrame],
    panel: Panel,
    titles: Mapping[str, str],
    labels: Sequence[str],
) -> Figure:
    condition, x, y = panel
    figure, axes = context.multiples(
        context.named(labels, condition), AXES[x], titles[y], condition, sharex=True, sharey=True
    )
    for ax, label in zip(axes, labels, strict=True):
        _draw(ax, context, means, panel, focus=label)
    # The axes are shared, so one call is enough.
    axes[0].set_xlim(left=0)
    finish(figure, context.key_of_multiples(), MULTIPLE_HEIGHT)
    return figure


def _align(column: Sequence[Axes], ends: Sequence[float]) -> None:
    """Give a column of panels one horizontal axis, unless the curves end far apart, as with sizes of training sets."""
    alike = max(ends) <= ALIKE * min(ends)
    for ax, end in zip(column, ends, strict=True):
        ax.set_xlim(0, 1.05 * (max(ends) if alike else end))
        ax.tick_params(labelbottom=not alike or ax is column[-1])


def _draw(
    ax: Axes, context: FigureContext, means: Mapping[str, pd.DataFrame], panel: Panel, focus: str | None = None
) -> None:
    condition, x, y = panel
    here = means[y][means[y]["condition"] == condition]
    full, others = context.in_full(context.chosen(condition), focus)
    curves = dict(iter(here.groupby("optimizer", sort=False)))
    pale(ax, [(curves[row.label][x], curves[row.label]["mean"]) for row in others if row.label in curves])
    for row in full:
        if row.label in curves:
            _line(ax, curves[row.label], x, context.styles[row.label])
    ax.set_ylim(_limits(here, _bounds(context, y)))
    ax.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _line(ax: Axes, mean: pd.DataFrame, x: str, style: Style) -> None:
    marker = style["marker"] if len(mean) == 1 else None  # a line of one point would not be seen
    ax.plot(mean[x], mean["mean"], **{**style, "marker": marker})
    ax.fill_between(mean[x], mean["low"], mean["high"], color=style["color"], alpha=0.15, linewidth=0)


def _bounds(context: FigureContext, column: str) -> Bounds:
    """Return the lowest and highest possible value of a column, in the unit shown."""
    if column in ("test_metric", "train_metric"):
        return context.limits
    low, high = of_difference(context.meta["metric"]) if column == "gap_metric" else UNBOUNDED
    return low * context.scale, high * context.scale


def _mean_curves(runs: pd.DataFrame, column: str, limits: Bounds) -> pd.DataFrame:
    """Return the mean and t bounds of a column over the seeds, one line per condition, label and epoch."""
    groups = runs.groupby([*LINE, "epoch"], sort=True)
    means = groups[column].agg(["count", "mean", "std"]).join(groups["passes"].mean())
    half = half_width(means["count"], means["std"])
    # Cut at the bounds of the metric, as intervals in tables are.
    low, high = (means["mean"] - half).clip(lower=limits[0]), (means["mean"] + half).clip(upper=limits[1])
    bounded: pd.DataFrame = means.assign(low=low, high=high)
    return bounded.reset_index()


def _limits(means: pd.DataFrame, limits: Bounds) -> tuple[float, float]:
    """Return vertical limits around the curves after their first epochs, so that the ends can be told apart."""
    # Each optimizer's own last epoch: one with twice the epochs also takes twice as long to begin.
    last = means.groupby("optimizer")["epoch"].transform("max")
    late = means[means["epoch"] > START * last]
    return with_margin(late[["mean", "low", "high"]].to_numpy(), limits)
