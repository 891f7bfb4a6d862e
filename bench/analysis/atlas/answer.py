"""The atlas in three sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

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
"""Rows and families that a correlation needs."""


def answer(atlas: Atlas) -> list[str]:
    """Return the answer of the atlas as one paragraph of three sentences: how often, where most, at equal compute."""
    return [" ".join((_how_often(atlas), _where(atlas), _equal_compute(atlas)))]


def _how_often(atlas: Atlas) -> str:
    told = atlas.sides("epochs")
    if not told["better"] + told["worse"] + told["open"]:
        return f"No comparison has {FEWEST} pairs of seeds and both sides tuned: nothing is said of {atlas.name}."
    more = f" ({told['unjudged']} more comparisons have fewer than {FEWEST} pairs of seeds, or a side {atlas.unfit})"
    return f"{atlas.name} {_tally(atlas, 'epochs')} at equal epochs{more * bool(told['unjudged'])}."


def _tally(atlas: Atlas, budget: str) -> str:
    """Return "helped in 1 of 4 settings (3 of 6 comparisons), hurt in 2 (2) and ..."; a setting counts once."""
    rows, settings = atlas.sides(budget), atlas.settings(budget)
    judged = rows["better"] + rows["worse"] + rows["open"]
    mixed = f"; in {settings['mixed']} the comparisons disagree" * bool(settings["mixed"])
    return (
        f"helped in {settings['better']} of {counted(sum(settings.values()), 'setting')} ({rows['better']} of "
        f"{counted(judged, 'comparison')}), hurt in {settings['worse']} ({rows['worse']}) and made no clear "
        f"difference in {settings['open']} ({rows['open']}){mixed}"
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


def enough_to_follow(rows: Sequence[Point]) -> bool:
    """Return whether rows are many and different enough for a correlation: between two tasks all else differs, too."""
    return len(rows) >= FEWEST_TO_FOLLOW and len({row.family for row in rows}) >= FEWEST_FAMILIES


def _follows(rows: list[Point]) -> Iterator[str]:
    """Yield each size with which the differences rise or fall: its rank correlation's interval leaves out zero."""
    if not enough_to_follow(rows):
        return
    for name, size in SIZES.items():
        found = rank_correlation([size(point) for point in rows], [point.at_epochs.mean for point in rows])
        if found.known and not found.low <= 0 <= found.high:
            yield f"{name} (rank correlation {found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}])"


def _equal_compute(atlas: Atlas) -> str:
    rows = [point for point in atlas.points if point.counts("passes")]
    if not rows:
        return f"No comparison has {FEWEST} pairs of seeds {BUDGETS['passes']}."
    price = f"{np.median([point.passes_ratio for point in rows]):.1f} times its base's passes"
    # The method is the same in both differences: the base is better with fewer passes where it trails by less then.
    shorter = sum(point.at_passes.mean > point.at_epochs.mean for point in rows)
    better = f"; in {shorter} of these {len(rows)} the base does better with fewer passes" * bool(shorter)
    return (
        f"At equal compute (the base trained for as many passes, since a step of {atlas.name} costs {price}) it "
        f"{_tally(atlas, 'passes')}{better}."
    )


def _points(one: Interval) -> str:
    return f"{one.mean:+.2f} points [{one.low:+.2f}, {one.high:+.2f}]"
