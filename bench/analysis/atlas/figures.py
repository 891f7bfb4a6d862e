"""The figures of the atlas: the forest of all differences, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.analysis.atlas import Atlas
from bench.analysis.atlas.answer import SIZES, enough_to_follow
from bench.analysis.atlas.points import Point, family
from bench.analysis.atlas.pooling import rank_correlation
from bench.analysis.atlas.published import Pair
from bench.analysis.captions import enumerated
from bench.analysis.plots.context import Drawing
from bench.analysis.plots.looks import BLUE, FOR_OTHERS, MARKERS, ORANGE, PINK, Style
from bench.analysis.plots.style import (
    NEUTRAL,
    TICK_SIZE,
    WIDTH,
    bounds,
    finish,
    looks,
    panel_width,
    settle,
    value_axis,
    wide,
    with_margin,
)
from bench.analysis.stats import FEWEST, Interval

ROW = 0.19  # inches
LEAST = 6.0  # points to either side of zero that the forest always shows
NAMED = 2  # so many data sets of a published table are named
PUBLISHED: Style = {"color": PINK, "markersize": 7.0, "markeredgewidth": 1.1, "linestyle": "none"}
BESIDE = 0.17  # of a row: equal epochs are drawn this much above its middle, equal passes below
LOOKS = {"epochs": (BLUE, "o"), "passes": (ORANGE, "s")}
DATASETS = {"CIFAR-10": "CIFAR", "CIFAR-100": "CIFAR", "Fashion-MNIST": "Fashion-MNIST"}
TOO_FEW = "too few rows or tasks for a correlation"
GLUE = ("CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE")
ELSEWHERE = "other tasks, as published"


@dataclass(frozen=True)
class Line:
    """A row of the forest: a name, and a point of ours, the mean of a family, or published pairs of one table."""

    name: str
    kind: str
    point: Point | None = None
    family: str = ""
    pairs: Sequence[Pair] = ()


def figures(atlas: Atlas) -> dict[str, Drawing]:
    """Return the figures "forest" and, if there is anything to see, "where"."""
    with looks():
        drawn = {"forest": _forest(atlas)}
        rows = [point for point in atlas.points if point.in_points and point.counts("epochs")]
        varying = [
            name
            for name, size in SIZES.items()
            if len({size(point) for point in rows if size(point) == size(point)}) > 1
        ]
        if varying:
            drawn["where"] = _where(atlas, rows, varying)
        for drawing in drawn.values():
            settle(drawing.figure)
    return drawn


# ---- the forest ----------------------------------------------------------------------------------------------


def _forest(atlas: Atlas) -> Drawing:
    lines = list(_lines(atlas))
    figure = Figure(figsize=(WIDTH, 1.0), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color=NEUTRAL, linewidth=0.9, zorder=1)
    ax.set_xlim(_limits(atlas))
    for place, line in enumerate(lines):
        _draw(ax, atlas, line, place)
    ax.set_yticks(range(len(lines)), [line.name for line in lines])
    for tick, line in zip(ax.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if line.kind == "head" else "normal")
        tick.set_color(PINK if line.kind == "published" else "black")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(lines) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel(f"{atlas.name} minus its base, test score in points")
    finish(figure, list(_handles(atlas, lines)), ROW * len(lines))
    caption = (
        f"{atlas.name} minus the optimizer that it wraps, paired by seed, with 95% intervals: at equal epochs and at "
        f"equal passes (the base trained for as many). Pale: fewer than {FEWEST} pairs or nothing tuned, not judged. "
        "Diamonds: random-effects mean of a family with its interval, and the prediction interval as a thin line."
    )
    if atlas.published:
        caption += " Published differences of SAM, one tick per pair, stand beside ours; arrows: beyond the axis."
    return Drawing(figure, caption, _forest_numbers(atlas))


def _lines(atlas: Atlas) -> Iterator[Line]:
    beside: dict[str, dict[str, list[Pair]]] = {}
    for pair in atlas.published:
        beside.setdefault(_family_of(pair.dataset), {}).setdefault(_short(pair.source), []).append(pair)
    for name, found in atlas.families.items():
        yield Line(name, "head")
        for point in found:
            yield Line(_named(point), "row", point=point)
        judged = max((atlas.pooled[name, budget].k for budget in LOOKS if (name, budget) in atlas.pooled), default=0)
        if judged:
            yield Line(f"mean of {judged} judged rows", "mean", family=name)
        yield from _published(beside.pop(name, {}))
    for name in [one for one in beside if one != ELSEWHERE] + [ELSEWHERE] * (ELSEWHERE in beside):
        yield Line(name if name == ELSEWHERE else f"{name}, as published", "head")
        yield from _published(beside[name])


def _published(tables: Mapping[str, Sequence[Pair]]) -> Iterator[Line]:
    for source, pairs in tables.items():
        data = list(dict.fromkeys(pair.dataset for pair in pairs))
        of = enumerated(data) if len(data) <= NAMED else f"{len(data)} data sets"
        yield Line(f"{source}: {of}", "published", pairs=pairs)


def _family_of(dataset: str) -> str:
    known = DATASETS.get(dataset)
    return known or (family("glue") if dataset in GLUE or "GLUE" in dataset else ELSEWHERE)


def _short(source: str) -> str:
    """Return a source without its arXiv number and its journal: "Foret et al. 2021, Table 1"."""
    before, _, table = source.rpartition(", ")
    return (
        f"{before.partition(' (')[0].partition(', ')[0]}, {table}"
        if table not in ("README", "results-imagenet")
        else before
    )


def _named(point: Point) -> str:
    name = point.name.replace("label noise", "noise").removeprefix("glue/")
    return f"{name} ({point.results}, n={point.n})"


def _limits(atlas: Atlas) -> tuple[float, float]:
    """Return the ends of the axis: all of ours is inside, save the intervals of rows that are not judged."""
    shown = [0.0]
    for point in atlas.points:
        for budget in LOOKS if point.in_points else ():
            one = point.difference(budget)
            shown += [one.mean, *(bounds(one) if point.counts(budget) else ())] if one.n else []
    low, high = with_margin(shown, share=0.04)
    return min(low, -LEAST), max(high, LEAST)


def _draw(ax: Axes, atlas: Atlas, line: Line, place: int) -> None:
    for budget, (colour, marker) in LOOKS.items():
        at = place + (-BESIDE if budget == "epochs" else BESIDE)
        if line.point is not None and line.point.in_points and line.point.difference(budget).n:
            one = line.point.difference(budget)
            strength = 1.0 if line.point.counts(budget) else 0.35
            ax.plot(bounds(one), [at, at], color=colour, linewidth=1.3, alpha=strength)
            ax.plot(one.mean, at, color=colour, marker=marker, markersize=4.0, alpha=strength)
        if line.family and (line.family, budget) in atlas.pooled:
            found = atlas.pooled[line.family, budget]
            if not np.isnan(found.predicted[0]):
                ax.plot(found.predicted, [at, at], color=colour, linewidth=0.6)
            ax.plot(bounds(found.mean), [at, at], color=colour, linewidth=2.2)
            ax.plot(found.mean.mean, at, color=colour, marker="D", markersize=5.0)
    _draw_published(ax, line.pairs, place)


def _draw_published(ax: Axes, pairs: Sequence[Pair], place: int) -> None:
    """Draw a tick per pair; those beyond the axis are an arrow at its end, with the number of them."""
    low, high = ax.get_xlim()
    means = [pair.difference.mean for pair in pairs]
    inside = [mean for mean in means if low < mean < high]
    ax.plot(inside, [place] * len(inside), marker="|", **PUBLISHED)
    for end, marker, beyond in (
        (high, ">", [mean for mean in means if mean >= high]),
        (low, "<", [mean for mean in means if mean <= low]),
    ):
        if beyond:
            ax.plot(end, place, color=PINK, marker=marker, markersize=5.0, clip_on=False)
            # The ends alone: a list of all would cross the zero line and read as data.
            told = " … ".join(f"{mean:+.1f}" for mean in sorted({min(beyond), max(beyond)}))
            side = {">": ("right", -5), "<": ("left", 5)}[marker]
            ax.annotate(
                told,
                (end, place),
                (side[1], 0),
                textcoords="offset points",
                ha=side[0],
                va="center",
                color=PINK,
                fontsize=TICK_SIZE,
            )


def _handles(atlas: Atlas, lines: Sequence[Line]) -> Iterator[Artist]:
    for budget, (colour, marker) in LOOKS.items():
        yield Line2D([], [], color=colour, marker=marker, markersize=4.0, label=f"equal {budget}")
    if any(line.kind == "mean" for line in lines):
        yield Line2D([], [], color=NEUTRAL, marker="D", markersize=5.0, linewidth=2.2, label="mean of a family")
    if any(line.kind == "published" for line in lines):
        yield Line2D([], [], marker="|", label="published", **PUBLISHED)
    if any(not point.counts("epochs") for point in atlas.points):
        yield Patch(facecolor="#CFCFCF", label="pale: not judged")


def _forest_numbers(atlas: Atlas) -> pd.DataFrame:
    ours = [
        {
            "kind": "row",
            "name": _named(point),
            "family": point.family,
            "budget": budget,
            **_numbers(point.difference(budget)),
        }
        for point in atlas.points
        for budget in LOOKS
        if point.difference(budget).n
    ]
    means = [
        {
            "kind": "mean",
            "name": name,
            "family": name,
            "budget": budget,
            **_numbers(found.mean),
            "predicted_low": found.predicted[0],
            "predicted_high": found.predicted[1],
        }
        for (name, budget), found in atlas.pooled.items()
    ]
    papers = [
        {
            "kind": "published",
            "name": f"{pair.source}: {pair.dataset}, {pair.model}, {pair.setting}",
            "family": _family_of(pair.dataset),
            "budget": "",
            **_numbers(pair.difference),
        }
        for pair in atlas.published
    ]
    return pd.DataFrame([*ours, *means, *papers])


def _numbers(one: Interval) -> dict[str, float]:
    return {"difference [points]": one.mean, "low [points]": one.low, "high [points]": one.high, "n": one.n}


# ---- what the differences depend on --------------------------------------------------------------------------


def _where(atlas: Atlas, rows: Sequence[Point], names: Sequence[str]) -> Drawing:
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    families = list(dict.fromkeys(point.family for point in rows))
    for ax, name in zip(axes, names, strict=True):
        ax.axhline(0, color=NEUTRAL, linewidth=0.9, zorder=1)
        sizes = [SIZES[name](point) for point in rows]
        for point, size in zip(rows, sizes, strict=True):
            colour, marker = _look(families, point.family)
            ax.plot([size, size], bounds(point.at_epochs), color=colour, linewidth=0.9, alpha=0.7)
            ax.plot(size, point.at_epochs.mean, color=colour, marker=marker, markersize=4.5, linestyle="none")
        if "examples" in name:
            values = sorted({*sizes})
            value_axis(ax, values, panel_width(len(names)), log=wide(values))
        ax.set_xlabel(name.removeprefix("the ") + (" (points)" if "gap" in name else ""))
        found = rank_correlation(sizes, [point.at_epochs.mean for point in rows])
        ax.set_title(_told(found) if enough_to_follow(rows) else TOO_FEW, fontsize=TICK_SIZE)
    axes[0].set_ylabel(f"{atlas.name} minus its base\nat equal epochs (points)")
    handles = [
        Line2D([], [], color=_look(families, name)[0], marker=_look(families, name)[1], linestyle="none", label=name)
        for name in families
    ]
    finish(figure, handles, 1.9)
    caption = (
        f"{atlas.name} minus its base at equal epochs, with its 95% interval, for every comparison that is "
        "judged, against what differs between them; above each panel Spearman's rank correlation with its 95% "
        "interval. Several of these sizes change together from task to task: a correlation is no cause."
    )
    return Drawing(figure, caption, _where_numbers(rows))


def _look(families: Sequence[str], name: str) -> tuple[str, str]:
    number = families.index(name)
    return FOR_OTHERS[number % len(FOR_OTHERS)], MARKERS[number % len(MARKERS)]


def _told(found: Interval) -> str:
    if np.isnan(found.mean):
        return TOO_FEW
    bounds = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.known else ""
    return f"rank correlation {found.mean:+.2f}{bounds}, n={found.n}"


def _where_numbers(rows: Sequence[Point]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "name": _named(point),
                "family": point.family,
                "label_noise": point.label_noise,
                "training_examples": point.examples,
                "base_gap [points]": point.gap,
                **_numbers(point.at_epochs),
            }
            for point in rows
        ]
    )
