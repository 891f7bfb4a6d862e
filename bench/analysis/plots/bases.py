"""The forest of bases: each method minus the optimizer that it wraps, where several optimizers are wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from bench.analysis import numbers
from bench.analysis.contrasts import composition
from bench.analysis.pairings import Pairing, pairings
from bench.analysis.plots.context import Drawing, FigureContext, folded, pages
from bench.analysis.plots.looks import BLUE, ORANGE
from bench.analysis.plots.style import NEUTRAL, TICK_SIZE, bounds, finish, fold, with_margin

ROW, LINE = 0.25, 0.12  # inches: the least of a row, and a line of its name
NAME, NAME_NARROW = 2.2, 1.2  # inches of a row's name, beyond which it is folded
BESIDE = 0.17  # of a row: equal epochs are drawn this much above its middle, equal passes below
ACROSS, ACROSS_NARROW = 3, 1  # conditions beside each other
LOOKS = {"epochs": (BLUE, "o"), "passes": (ORANGE, "s")}


def figures(context: FigureContext) -> Iterator[Drawing]:
    """Yield figures with a row per method and base, and a panel per condition, in the order of the experiment."""
    found = list(pairings(context.study))
    if len({base for _, base in composition(context.study.results).values() if base}) < 2 or not found:
        return
    conditions = [name for name in context.conditions if any(one.ours.condition == name for one in found)]
    for page in pages(conditions, ACROSS_NARROW if context.narrow else ACROSS):
        here = [one for one in found if one.ours.condition in page]
        yield _drawing(context, page, here)


def _drawing(context: FigureContext, conditions: Sequence[str], found: Sequence[Pairing]) -> Drawing:
    rows = list(dict.fromkeys(map(_name, found)))
    figure, axes = context.panels(1, len(conditions), sharex=True, sharey=True)
    for ax, condition in zip(axes[0], conditions, strict=True):
        ax.axvline(0, color=NEUTRAL, linewidth=0.9, zorder=1)
        for one in found:
            if one.ours.condition == condition:
                _draw(ax, context, one, rows.index(_name(one)))
        if context.several:
            ax.set_title(folded(condition, context.panel_width(len(conditions))))
        ax.grid(visible=False, axis="y")
    room = NAME_NARROW if context.narrow else NAME
    names = [fold(row, room, TICK_SIZE) for row in rows]
    axes[0][0].set_yticks(range(len(rows)), names)
    # The axis points down, so that the first method is at the top, as in tables.
    axes[0][0].set_ylim(len(rows) - 0.4, -0.6)
    means = [end for one in found for budget in LOOKS for end in _ends(context, one, budget)]
    axes[0][0].set_xlim(with_margin([0.0, *means]))
    for ax in axes[0]:
        label = f"difference in test {context.metric}{context.points}"
        ax.set_xlabel(fold(label, context.panel_width(len(conditions) + 1)))
    drawn = [budget for budget in LOOKS if any(getattr(one, budget) for one in found)]
    handles = [
        Line2D([], [], color=LOOKS[budget][0], marker=LOOKS[budget][1], markersize=4.0, label=f"equal {budget}")
        for budget in drawn
    ]
    # Rows are equally high, so the longest name decides.
    finish(figure, handles, max(ROW, LINE * (1.5 + max(name.count("\n") for name in names))) * len(rows) + 0.1)
    caption = (
        f"Each method minus the optimizer that it wraps: test {context.metric}, paired by seed, with 95% Student-t "
        "intervals"
    )
    caption += ", at equal epochs and at equal passes." if "passes" in drawn else ", at equal epochs."
    return Drawing(figure, caption, _data(context, found))


def _draw(ax: Axes, context: FigureContext, one: Pairing, row: int) -> None:
    for budget, (colour, marker) in LOOKS.items():
        if contrast := getattr(one, budget):
            interval = contrast.test.difference.scaled(context.scale)
            at = row + (-BESIDE if budget == "epochs" else BESIDE)
            ax.plot(bounds(interval), [at, at], color=colour, linewidth=1.3)
            ax.plot(interval.mean, at, color=colour, marker=marker, markersize=4.0)


def _ends(context: FigureContext, one: Pairing, budget: str) -> tuple[float, ...]:
    contrast = getattr(one, budget)
    return bounds(contrast.test.difference.scaled(context.scale)) if contrast else ()


def _name(one: Pairing) -> str:
    return f"{one.ours.label} \N{MINUS SIGN} {one.base.label}"


def _data(context: FigureContext, found: Sequence[Pairing]) -> pd.DataFrame:
    unit = str(context.meta["metric"]["unit"])
    return pd.DataFrame(
        {
            **numbers.condition(one.ours),
            "base": contrast.theirs.label,
            "optimizer": one.ours.label,
            "config": one.ours.config,
            "equal": budget,
            "n": contrast.test.difference.n,
            **numbers.bounds("difference", contrast.test.difference.scaled(context.scale), unit),
        }
        for one in found
        for budget in LOOKS
        if (contrast := getattr(one, budget))
    )
