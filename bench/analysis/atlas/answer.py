"""The atlas in three sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bench.analysis.atlas import BUDGETS, Atlas
from bench.analysis.atlas.points import Point
from bench.analysis.atlas.pooling import rank_correlation
from bench.analysis.captions import enumerated
from bench.analysis.stats import FEWEST, Interval
from bench.core.errors import counted

SIZES: dict[str, Callable[[Point], float]] = {
    "the share of wrong labels": lambda point: point.label_noise,
    "the number of training examples": lambda point: point.examples,
    "the base's generalization gap": lambda point: point.gap,
}
"""What a difference may depend on, by its name in sentences."""

FEWEST_TO_FOLLOW, FEWEST_FAMILIES = 10, 3
"""Rows and families that words about a correlation need: between two tasks, everything else differs as well."""


def answer(atlas: Atlas) -> list[str]:
    """Return the answer of the atlas as one paragraph of three sentences: how often, where most, at equal compute."""
    return [" ".join((_how_often(atlas), _where(atlas), _equal_compute(atlas)))]


def _how_often(atlas: Atlas) -> str:
    told = atlas.sides("epochs")
    judged = told["better"] + told["worse"] + told["open"]
    if not judged:
        return f"No comparison has {FEWEST} pairs of seeds yet, so nothing is said of {atlas.name}."
    rows = [point for point in atlas.points if point.counts("epochs")]
    settings = len({(point.task, point.model, point.label_noise, point.condition, point.base) for point in rows})
    among = f"{judged} comparisons ({counted(settings, 'setting')})" if settings < judged else f"{judged} comparisons"
    more = f" ({told['unjudged']} more have fewer than {FEWEST} pairs of seeds or an untuned {atlas.name})"
    return (
        f"{atlas.name} helped in {told['better']} of {among} at equal epochs, hurt in {told['worse']} and "
        f"made no clear difference in {told['open']}{more * bool(told['unjudged'])}."
    )


def _where(atlas: Atlas) -> str:
    rows = [point for point in atlas.points if point.in_points and point.counts("epochs")]
    if not rows:
        return ""
    best, worst = (pick(rows, key=lambda point: point.at_epochs.mean) for pick in (max, min))
    if len(rows) == 1:
        return f"That was {best.name}: {_points(best.at_epochs)}."
    said = (
        f"The most was {_points(best.at_epochs)} ({best.name}, {best.results}), the least {_points(worst.at_epochs)} "
        f"({worst.name}, {worst.results})"
    )
    follows = list(_follows(rows))
    return f"{said}; the difference follows {enumerated(follows)}." if follows else f"{said}."


def _follows(rows: list[Point]) -> Iterator[str]:
    """Yield each size with which the differences rise or fall: its rank correlation's interval leaves out zero."""
    if len(rows) < FEWEST_TO_FOLLOW or len({row.family for row in rows}) < FEWEST_FAMILIES:
        return
    for name, size in SIZES.items():
        found = rank_correlation([size(point) for point in rows], [point.at_epochs.mean for point in rows])
        if found.known and not found.low <= 0 <= found.high:
            yield f"{name} (rank correlation {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}])"


def _equal_compute(atlas: Atlas) -> str:
    told = atlas.sides("passes")
    judged = told["better"] + told["worse"] + told["open"]
    if not judged:
        return f"No comparison has {FEWEST} pairs of seeds {BUDGETS['passes']}."
    ratios = [point.passes_ratio for point in atlas.points if point.counts("passes")]
    price = f"{np.median(ratios):.1f} times its base's passes" if ratios else ""
    return (
        f"At equal compute (the base trained for as many passes, since a step of {atlas.name} costs {price}) it helped "
        f"in {told['better']} of {judged}, hurt in {told['worse']} and made no clear difference in {told['open']}."
    )


def _points(one: Interval) -> str:
    return f"{one.mean:+.2f} points [{one.low:+.2f}, {one.high:+.2f}]"
