"""The table of statistics: every comparison with all that can be said of it, rival by rival."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis import footnotes
from bench.analysis.cells import named, number, p_value
from bench.analysis.contrasts import Contrast, finished
from bench.analysis.render import EMPTY, Table
from bench.analysis.stats import (
    MAX_EXACT_N,
    effect_size,
    examples,
    probability_of_improvement,
    smallest_sign_flip_p,
    wilcoxon_p,
    wilson,
)
from bench.analysis.summary import Row
from bench.analysis.words import Words
from bench.store.conditions import conditions, keyed, merged, names, value_text

if TYPE_CHECKING:
    from bench.store.records import Results


def table(
    words: Words,
    results: Results,
    contrasts: Sequence[Contrast],
    best: Sequence[Row],
    rows: Sequence[Row],
    searched: Sequence[str],
) -> Table:
    """Return the table "statistics".

    Args:
        contrasts: what `contrasts.contrasts` gives, one per row.
        best: the chosen row of every condition and label.
        rows: all of them.
        searched: the notes on unequal searches.
    """
    columns = [*names(words.varied), "against", "optimizer", "equal", f"difference{words.points}", "p (t)", "p (Holm)"]
    columns += ["p (sign flip)", "p (Wilcoxon)", "effect size", "P(better)", f"detectable{words.points}", "n"]
    ordered = sorted(contrasts, key=lambda one: conditions(results.meta).index(one.condition))  # stable: rival by rival
    text = [[*map(value_text, one.ours.varied.values()), *_cells(words, one)] for one in ordered]
    caption = [
        f"Every comparison of the test {words.metric}{words.within()}, paired by seed: mean difference with its 95% t "
        "interval; two-sided p of the paired t test, the same corrected by Holm's method over all comparisons against "
        "one rival, and of the exact sign-flip and Wilcoxon signed-rank tests (neither is corrected).",
        "Effect size: Hedges' g, the mean difference over the standard deviation of the differences (d_z), corrected "
        "for small n; positive where the optimizer is better. P(better): chance that a run of the optimizer beats one "
        "of its rival, over all pairs of runs, ties counting half. Detectable: the smallest true difference that the t "
        "test would find at this n with 80% power, if the differences spread as these do.",
    ]
    notes = [*footnotes.choices(best, rows), *searched, *_reach(ordered), *_test_sets(words, results, best)]
    title = f"{words.meta['title']}: statistics"
    numbers, keys = _numbers(words, ordered), len(words.varied) + 1
    name = words.meta["name"]
    return Table(name, "statistics", title, [*caption, *words.closing()], columns, text, notes, numbers, keys)


def _cells(words: Words, one: Contrast) -> Iterator[str]:
    yield one.theirs.label
    yield named(one.ours)
    yield one.equal
    yield words.signed(one.test.difference)
    for p in (one.test.p_t, one.p, one.test.p_sign_flip, wilcoxon_p(one.differences)):
        yield p_value(p)
    effect = _towards_better(one)
    yield EMPTY if np.isnan(effect) else f"{effect:+z.2f}"
    yield number(_chance(one), ".2f")
    yield number(one.detectable * words.scale, f".{words.digits}f")
    yield str(one.test.difference.n)


def _towards_better(one: Contrast) -> float:
    """Return the effect size, positive if ours is better."""
    return effect_size(one.differences) * (1 if one.higher_is_better else -1)


def _chance(one: Contrast) -> float:
    """Return the probability that one run of ours is better than one of theirs."""
    a, b = (one.a, one.b) if one.higher_is_better else (one.b, one.a)
    return probability_of_improvement(a, b)


def _reach(found: Sequence[Contrast]) -> Iterator[str]:
    """Yield the smallest p of the exact tests at each n for which the tests are made."""
    for n in sorted({one.test.difference.n for one in found} - {0, 1}):
        if n > MAX_EXACT_N:
            continue
        yield (
            f"With n={n} pairs neither the sign-flip nor the Wilcoxon test can get below "
            f"p={smallest_sign_flip_p(n):.3g}, whatever the data."
        )


def _test_sets(words: Words, results: Results, best: Sequence[Row]) -> Iterator[str]:
    """Yield how far another test set of the same size could be from this one, for each baseline's accuracy."""
    sizes = sizes_of_test_sets(results)
    among = conditions(results.meta)
    told = []
    for row in best:
        size, share = sizes.get(row.condition), row.test_metric.mean
        if row.label == words.baseline and size and not np.isnan(share):
            low, high = wilson(round(share * size), size)
            unit = f" {words.unit}".rstrip()
            said = (
                f" has {size:,} examples: on another one of as many, the {words.metric} of one model that scores "
                f"{share * words.scale:.{words.digits}f}{unit} here could as well be anywhere in "
                f"[{low * words.scale:.{words.digits}f}, {high * words.scale:.{words.digits}f}] (95%, Wilson). The "
                "rows share the test set, so their differences are surer than that; all are about this test set."
            )
            told.append((row.condition, "The test set", said))
    yield from merged(told, among)


def sizes_of_test_sets(results: Results) -> dict[str, int]:
    """Return condition -> examples of the test set, where the metric is a share of them, derived from the scores."""
    key = results.meta["metric"]["key"]
    runs = finished(results)
    if "test_acc" not in runs:
        return {}
    sizes = {}
    for condition, here in runs.groupby("condition", sort=False):
        accuracy, metric = (here[column].to_numpy(dtype=float) for column in ("test_acc", f"test_{key}"))
        curve = keyed(results.curves)
        further = curve.loc[curve["condition"] == condition].reindex(columns=["test_acc"])["test_acc"]
        if np.array_equal(accuracy, metric, equal_nan=True) and (size := examples([*accuracy, *further])):
            sizes[str(condition)] = size
    return sizes


def _numbers(words: Words, found: Sequence[Contrast]) -> pd.DataFrame:
    unit = f" [{words.unit}]" if words.unit else ""
    data: list[dict[str, Any]] = []
    for one in found:
        interval = one.test.difference.scaled(words.scale)
        data.append(
            {
                **({"condition": one.condition, **one.ours.varied} if one.ours.varied else {}),
                "against": one.theirs.label,
                "against_config": one.theirs.config,
                "optimizer": one.ours.label,
                "config": one.ours.config,
                "equal": one.equal,
                "n": interval.n,
                **{f"difference_{part}{unit}": getattr(interval, part) for part in ("mean", "low", "high")},
                "p_paired_t": one.test.p_t,
                "p_holm": one.p,
                "comparisons": one.among,
                "p_sign_flip": one.test.p_sign_flip,
                "p_wilcoxon": wilcoxon_p(one.differences),
                "smallest_exact_p": smallest_sign_flip_p(interval.n) if interval.n else np.nan,
                "effect_size": _towards_better(one),
                "probability_better": _chance(one),
                f"detectable{unit}": one.detectable * words.scale,
            }
        )
    return pd.DataFrame(data)
