"""The table of statistics: every comparison with all that can be said of it, competitor by competitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis import numbers
from bench.analysis.captions import Captions
from bench.analysis.contrasts import Contrast, finished
from bench.analysis.format import named, number, p_value
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.stats import (
    MAX_EXACT_N,
    effect_size,
    examples,
    probability_of_improvement,
    smallest_sign_flip_p,
    wilcoxon_p,
    wilson,
)
from bench.analysis.study import Study
from bench.analysis.tables import footnotes
from bench.analysis.tables.column import Column, build, hidden
from bench.store.conditions import conditions, keyed, merged

if TYPE_CHECKING:
    from bench.store.records import Results


def table(study: Study) -> Table:
    """Return the table "statistics", a line per comparison."""
    captions = study.captions
    order = conditions(study.meta)
    ordered = sorted(study.contrasts, key=lambda one: order.index(one.condition))  # stable: competitor by competitor
    caption = [
        f"Every comparison of the test {captions.metric}{captions.within()}, paired by seed: mean difference with its "
        "95% t interval; two-sided p of the paired t test, the same corrected by Holm's method over all comparisons "
        "against one competitor, and of the exact sign-flip and Wilcoxon signed-rank tests (neither is corrected).",
        "Effect size: Hedges' g, the mean difference over the standard deviation of the differences (d_z), corrected "
        "for small n; positive where the optimizer is better. P(better): chance that a run of the optimizer beats one "
        "of its competitor, over all pairs of runs, ties counting half. Detectable: the smallest true difference that "
        "the t test would find at this n with 80% power, if the differences spread as these do.",
    ]
    notes = [*footnotes.choices(study), *study.unequal_searches, *_reach(ordered), *_test_sets(study)]
    return build(
        study,
        "statistics",
        "statistics",
        _columns(study.captions),
        ordered,
        caption=caption,
        notes=notes,
        row=lambda one: one.ours,
        keys=1,
    )


def _columns(captions: Captions) -> list[Column[Contrast]]:
    def p(head: str, name: str, value: Callable[[Contrast], float]) -> Column[Contrast]:
        return Column(head, lambda one: p_value(value(one)), lambda one: {name: value(one)})

    unit = f" [{captions.unit}]" if captions.unit else ""
    return [
        Column(
            "against",
            lambda one: one.theirs.label,
            lambda one: {"against": one.theirs.label, "against_config": one.theirs.config},
        ),
        Column(
            "optimizer",
            lambda one: named(one.ours),
            lambda one: {"optimizer": one.ours.label, "config": one.ours.config},
        ),
        Column("equal", lambda one: one.equal, lambda one: {"equal": one.equal, "n": one.test.difference.n}),
        Column(
            f"difference{captions.points}",
            lambda one: captions.signed(one.test.difference),
            lambda one: numbers.bounds("difference", one.test.difference.scaled(captions.scale), captions.unit),
        ),
        p("p (t)", "p_paired_t", lambda one: one.test.p_t),
        p("p (Holm)", "p_holm", lambda one: one.p),
        # How many comparisons Holm's correction counted, to recompute it from the CSV.
        hidden(lambda one: {"comparisons": one.among}),
        p("p (sign flip)", "p_sign_flip", lambda one: one.test.p_sign_flip),
        p("p (Wilcoxon)", "p_wilcoxon", lambda one: wilcoxon_p(one.differences)),
        hidden(lambda one: {"smallest_exact_p": smallest_sign_flip_p(n) if (n := one.test.difference.n) else np.nan}),
        Column("effect size", _effect_text, lambda one: {"effect_size": _towards_better(one)}),
        Column("P(better)", lambda one: number(_chance(one), ".2f"), lambda one: {"probability_better": _chance(one)}),
        Column(
            f"detectable{captions.points}",
            lambda one: number(one.detectable * captions.scale, f".{captions.digits}f"),
            lambda one: {f"detectable{unit}": one.detectable * captions.scale},
        ),
        Column("n", lambda one: str(one.test.difference.n)),
    ]


def _effect_text(one: Contrast) -> str:
    effect = _towards_better(one)
    return EMPTY if np.isnan(effect) else f"{effect:+z.2f}"


def _towards_better(one: Contrast) -> float:
    """Return the effect size, positive if ours is better."""
    return effect_size(one.differences) * (1 if one.higher_is_better else -1)


def _chance(one: Contrast) -> float:
    """Return the probability that one run of ours is better than one of theirs."""
    # Where less is better, the two sides change places.
    a, b = (one.a, one.b) if one.higher_is_better else (one.b, one.a)
    return probability_of_improvement(a, b)


def _reach(compared: Sequence[Contrast]) -> Iterator[str]:
    """Yield the smallest p of the exact tests at each n for which the tests are made."""
    # No pair and a single pair are never tested.
    for n in sorted({one.test.difference.n for one in compared} - {0, 1}):
        if n > MAX_EXACT_N:
            continue
        yield (
            f"With n={n} pairs neither the sign-flip nor the Wilcoxon test can get below "
            f"p={smallest_sign_flip_p(n):.3g}, whatever the data."
        )


def _test_sets(study: Study) -> Iterator[str]:
    """Yield how far another test set of the same size could be from this one, for each baseline's accuracy."""
    sizes, captions = sizes_of_test_sets(study.results), study.captions
    told = []
    for row in study.chosen:
        size, share = sizes.get(row.condition), row.test_metric.mean
        # The baseline stands for all labels: its score shows how large the error of the test set is.
        if row.label == captions.baseline and size and not np.isnan(share):
            # A mean over seeds need not be a whole number of examples.
            low, high = wilson(round(share * size), size)
            unit = f" {captions.unit}".rstrip()
            said = (
                f" has {size:,} examples: on another one of as many, the {captions.metric} of one model that scores "
                f"{share * captions.scale:.{captions.digits}f}{unit} here could as well be anywhere in "
                f"[{low * captions.scale:.{captions.digits}f}, {high * captions.scale:.{captions.digits}f}] "
                "(95%, Wilson). The rows share the test set, so their differences are surer than that; all are about "
                "this test set."
            )
            told.append((row.condition, "The test set", said))
    yield from merged(told, conditions(study.meta))


def sizes_of_test_sets(results: Results) -> dict[str, int]:
    """Return, by condition, the size of the test set as derived from the scores, for metrics that are shares."""
    key = results.meta["metric"]["key"]
    runs = finished(results)
    if "test_acc" not in runs:
        return {}
    sizes = {}
    for condition, here in runs.groupby("condition", sort=False):
        accuracy, metric = (here[column].to_numpy(dtype=float) for column in ("test_acc", f"test_{key}"))
        curve = keyed(results.curves)
        # Every evaluation was on the same test set, so scores of earlier epochs help to find its size.
        further = curve.loc[curve["condition"] == condition].reindex(columns=["test_acc"])["test_acc"]
        # Wilson's interval is one of a share of examples, so the metric has to be the accuracy itself.
        if np.array_equal(accuracy, metric, equal_nan=True) and (size := examples([*accuracy, *further])):
            sizes[str(condition)] = size
    return sizes
