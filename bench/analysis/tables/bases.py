"""The table of bases: every method against the optimizer that it wraps, where several optimizers are wrapped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from bench.analysis import numbers
from bench.analysis.contrasts import composition
from bench.analysis.format import named, number, p_value
from bench.analysis.pairings import Pairing, pairings
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.searches import Search, searches
from bench.analysis.stats import Interval, holm
from bench.analysis.study import Study
from bench.analysis.tables import footnotes
from bench.analysis.tables.column import Column, build
from bench.store.conditions import conditions


def several(study: Study) -> bool:
    """Return whether methods wrap more than one optimizer, so that each base needs a comparison of its own.

    False as long as no method has a seed in common with its base: there is nothing to compare yet.
    """
    wrapped = {base for _, base in composition(study.results).values() if base}
    return len(wrapped) > 1 and any(pairings(study))


def table(study: Study) -> Table:
    """Return the table "bases", a line per method and base, with both budgets beside each other."""
    captions = study.captions
    order = conditions(study.meta)
    # The sort is stable: under each condition the methods keep the order of the experiment.
    found = sorted(pairings(study), key=lambda one: order.index(one.ours.condition))
    caption = [
        f"Test {captions.metric}{captions.brackets} of every method beside that of the optimizer that it wraps"
        f"{captions.within()}. Difference: method minus base, paired by seed, with its 95% t interval; p: two-sided "
        f"paired t test at equal epochs, corrected by Holm's method for the {len(found)} comparisons of this table. "
        "Passes: of the method, the base's are 1. Trials: configurations tried for the method and for the base."
    ]
    notes = [*footnotes.choices(study), *_searched_less(study, found)]
    return build(
        study, "bases", "each method against its base", _columns(study, found), found,
        caption=caption, notes=notes, row=lambda one: one.ours,
    )  # fmt: skip


def _columns(study: Study, found: list[Pairing]) -> list[Column[Pairing]]:
    captions, searched = study.captions, searches(study.results)
    corrected = dict(zip(map(_key, found), holm([one.epochs.test.p_t for one in found]), strict=True))
    bounds = partial(numbers.bounds, unit=captions.unit)

    def score(head: str, of: str) -> Column[Pairing]:
        return Column(
            f"{head}{captions.brackets}",
            lambda one: captions.mean(getattr(one, of).test_metric),
            lambda one: bounds(f"{of}_test_metric", getattr(one, of).test_metric.scaled(captions.scale)),
        )

    def difference(budget: str) -> Column[Pairing]:
        def interval(one: Pairing) -> Interval:
            contrast = getattr(one, budget)
            return contrast.test.difference if contrast else Interval(0, np.nan, np.nan, np.nan)

        return Column(
            f"difference at equal {budget}{captions.points}",
            lambda one: captions.signed(interval(one)) if interval(one).n else EMPTY,
            lambda one: bounds(f"difference_{budget}", interval(one).scaled(captions.scale)),
        )

    def trials(one: Pairing) -> tuple[int, int]:
        return searched[one.ours.label].trials, searched[one.base.label].trials

    return [
        Column("base", lambda one: named(one.base), lambda one: {"base": one.base.label}),
        Column(
            "optimizer",
            lambda one: named(one.ours),
            lambda one: {"optimizer": one.ours.label, "config": one.ours.config},
        ),
        score("base alone", "base"),
        score("with it", "ours"),
        difference("epochs"),
        difference("passes"),
        Column("p (Holm)", lambda one: p_value(corrected[_key(one)]), lambda one: {"p_holm": corrected[_key(one)]}),
        Column(
            "passes",
            lambda one: number(one.ours.passes / one.base.passes, ".2f", "×"),
            lambda one: {"passes_ratio": one.ours.passes / one.base.passes},
        ),
        Column(
            "trials",
            lambda one: ", ".join(map(str, trials(one))),
            lambda one: dict(zip(("trials", "trials_of_base"), trials(one), strict=True)),
        ),
        Column("n", lambda one: str(one.epochs.test.difference.n), lambda one: {"n": one.epochs.test.difference.n}),
    ]


def _key(one: Pairing) -> tuple[str, str]:
    return one.ours.condition, one.ours.label


def _searched_less(study: Study, found: list[Pairing]) -> Iterator[str]:
    """Yield a note per pair of which one side had fewer trials than its passes would have paid for."""
    searched = searches(study.results)
    for ours, base in dict.fromkeys((one.ours.label, one.base.label) for one in found):
        # A method of two passes has half the trials of its base where both were given the same passes: that is equal.
        if searched[base].trials < searched[ours].trials:
            yield _less(base, searched[base], ours, searched[ours])
        elif searched[ours].trials <= 1 < searched[base].trials:
            yield _less(ours, searched[ours], base, searched[base])


def _less(one: str, its: Search, other: str, others: Search) -> str:
    return (
        f"{one} was searched less than {other} ({its.short} against {others.short}): part of the difference may be "
        "the search."
    )
