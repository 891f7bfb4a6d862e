"""The atlas: in how many settings SAM helped, and in which, over any number of result sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.analysis.atlas.points import Point, checked, points, wrapping
from bench.analysis.atlas.pooling import Pooled, pooled
from bench.analysis.atlas.published import Pair, pairs
from bench.analysis.study import Study
from bench.core.errors import BenchError, nearest

SIDES = ("better", "worse", "open", "unjudged")
BUDGETS = {"epochs": "at equal epochs", "passes": "at equal passes"}


@dataclass(frozen=True)
class Atlas:
    """Every row of several result sets, and published pairs beside them.

    Attributes:
        method: the method asked about, e.g. "sam".
        points: family by family, judged ones first.
        published: pairs of SAM and its base from papers; none for another method.
        sets: the names of the result sets, also of those without a row.
    """

    method: str
    points: list[Point]
    published: list[Pair]
    sets: list[str]

    @property
    def name(self) -> str:
        """Return the method as texts name it: SAM for "sam"."""
        return "SAM" if self.method == "sam" else self.method

    @property
    def unfit(self) -> str:
        """Return what keeps a side from being compared, in words; of degenerate sides only where there are some."""
        return "was not tuned" + " or gives one answer to everything" * any(point.degenerate for point in self.points)

    @cached_property
    def families(self) -> dict[str, list[Point]]:
        """Return the points by family."""
        grouped: dict[str, list[Point]] = {}
        for point in self.points:
            grouped.setdefault(point.family, []).append(point)
        return grouped

    @cached_property
    def pooled(self) -> dict[tuple[str, str], Pooled]:
        """Return the random-effects mean of each family with judged rows of several settings, by family and budget."""
        means = {
            (family, budget): pooled([point.difference(budget) for point in judged(found, budget)])
            for family, found in self.families.items()
            for budget in BUDGETS
            if len({point.setting for point in judged(found, budget)}) > 1
        }
        return {key: one for key, one in means.items() if one.k}

    def sides(self, budget: str) -> dict[str, int]:
        """Return how many rows are better, worse, open, and not judged, at a budget."""
        told = [point.side(budget) for point in self.points if point.difference(budget).n]
        return {name: told.count(name) for name in SIDES}

    def settings(self, budget: str) -> dict[str, int]:
        """Return the same for settings; one whose judged rows disagree is "mixed"."""
        found: dict[tuple[str, ...], set[str]] = {}
        for point in self.points:
            if point.counts(budget):
                found.setdefault(point.setting, set()).add(point.side(budget))
        told = [next(iter(sides)) if len(sides) == 1 else "mixed" for sides in found.values()]
        return {name: told.count(name) for name in (*SIDES[:3], "mixed")}


def judged(found: Sequence[Point], budget: str) -> list[Point]:
    """Return the rows whose differences can be pooled: in points, and judged."""
    return [point for point in found if point.in_points and point.counts(budget)]


def atlas(studies: Sequence[Study], method: str = "sam", *, published: bool = True) -> Atlas:
    """Return the atlas of several result sets.

    Args:
        studies: the result sets, all of one protocol.
        method: whose rows are wanted.
        published: whether published pairs stand beside ours; there are some for SAM only.

    Raises:
        BenchError: a set twice, sets of several protocols, or no finished run of the method beside its base.
    """
    found = [point for study in checked(studies) for point in points(study, method)]
    if not found:
        names = ", ".join(study.meta["name"] for study in studies)
        known = sorted({name for study in studies for name in wrapping(study)})
        raise BenchError(
            f"no finished run of {method} beside the optimizer that it wraps in {names}"
            + f"; {nearest(method, known)}" * bool(known and method not in known)
        )
    # Judged rows first, and the families that have some; what is equal in that stays in the order of the sets.
    judged_first = sorted(found, key=lambda point: not point.counts("epochs"))
    families = list(dict.fromkeys(point.family for point in judged_first))
    ordered = sorted(judged_first, key=lambda point: families.index(point.family))
    beside = pairs() if published and method == "sam" else []
    return Atlas(method, ordered, beside, [study.meta["name"] for study in studies])
