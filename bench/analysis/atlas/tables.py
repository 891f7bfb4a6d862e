"""The atlas as tables: every row, the means of families, and the published pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from bench.analysis import numbers
from bench.analysis.atlas import BUDGETS, Atlas
from bench.analysis.atlas.answer import answer
from bench.analysis.atlas.points import Point
from bench.analysis.atlas.pooling import Pooled
from bench.analysis.atlas.published import Pair
from bench.analysis.format import number, signed_bounds
from bench.analysis.render.table import DAGGER, EMPTY, SECTION, Table
from bench.analysis.stats import FEWEST, Interval
from bench.analysis.tables.column import Column, hidden, lines

CHOSEN = (
    "Tasks were chosen, not sampled: means and prediction intervals describe these settings, and rows that share data "
    "and seeds are not independent."
)


def tables(atlas: Atlas) -> list[Table]:
    """Return the tables of the atlas: "atlas", "families" and, where there are any, "published"."""
    made = [_rows(atlas), _families(atlas)]
    return [*made, _published(atlas)] if atlas.published else made


def _rows(atlas: Atlas) -> Table:
    columns: list[Column[Point]] = [
        Column("family", lambda one: one.family, lambda one: {"family": one.family}),
        Column("setting", lambda one: one.name, _setting),
        Column("base", lambda one: one.base + _mark(one), lambda one: {"base": one.base}),
        _difference("equal epochs", "epochs"),
        _difference("equal passes", "passes"),
        hidden(lambda one: {"base_at_equal_passes": one.twice, "in_points": one.in_points}),
        Column("n", lambda one: str(one.n), lambda one: {"n": one.n, "n_at_equal_passes": one.at_passes.n}),
        Column(
            "passes", lambda one: number(one.passes_ratio, ".2f", "×"), lambda one: {"passes_ratio": one.passes_ratio}
        ),
        Column(
            "seconds",
            lambda one: number(one.seconds_ratio, ".2f", "×"),
            lambda one: {"seconds_ratio": one.seconds_ratio},
        ),
        hidden(lambda one: {"base_gap": one.gap, "training_examples": one.examples}),
        Column("tuned", lambda one: one.tuned, lambda one: {"tuned": one.tuned, "marks": one.marks}),
        Column("results", lambda one: one.results, lambda one: {"results": one.results, "configuration": one.ours}),
    ]
    heads, cells, frame = lines(columns, atlas.points)
    caption = [
        f"{atlas.name} minus the optimizer that it wraps, on the test set, paired by seed: mean difference with its "
        "95% t interval, in points of a score in percent; above zero the method is better. The base has equal epochs "
        "or equal passes.",
        f"Passes and seconds: ratio to the base with equal epochs. With fewer than {FEWEST} pairs, or where "
        f"a side {atlas.unfit}, a row is shown but not judged.",
        CHOSEN,
    ]
    return Table(
        "atlas",
        "atlas",
        f"Where {atlas.name} helps",
        caption,
        heads,
        cells,
        list(_notes(atlas)),
        frame,
        1,
        answer(atlas),
    )


def _families(atlas: Atlas) -> Table:
    def of(budget: str) -> list[Column[str]]:
        def at(family: str) -> Pooled | None:
            return atlas.pooled.get((family, budget))

        head = BUDGETS[budget].removeprefix("at ")
        return [
            Column(head, lambda family: _signed(at(family)), lambda family: _numbers(budget, at(family))),
            Column("prediction", lambda family: _predicted(at(family))),
            Column("I²", lambda family: _share(at(family))),
        ]

    columns = [
        Column[str]("family", str, lambda family: {"family": family}),
        Column[str](
            "rows",
            lambda family: str(len(atlas.families[family])),
            lambda family: {"rows": len(atlas.families[family])},
        ),
        *of("epochs"),
        *of("passes"),
    ]
    heads, cells, frame = lines(columns, list(atlas.families))
    caption = [
        f"Random-effects mean of the differences of {atlas.name} to its base over the judged rows of a "
        "family, in points, with its 95% interval (Hartung and Knapp); prediction: interval in which one more "
        "setting of this family would lie with 95%; I²: share of the variation that is more than chance.",
        CHOSEN,
    ]
    return Table("atlas", "families", f"Where {atlas.name} helps: means", caption, heads, cells, [], frame)


def _published(atlas: Atlas) -> Table:
    columns: list[Column[Pair]] = [
        Column("source", lambda one: one.source, lambda one: {"source": one.source}),
        Column("data", lambda one: one.dataset, lambda one: {"dataset": one.dataset}),
        Column("model", lambda one: one.model, lambda one: {"model": one.model}),
        Column("setting", lambda one: one.setting or EMPTY, lambda one: {"setting": one.setting}),
        Column("base", lambda one: one.base, lambda one: {"base": one.base}),
        Column(
            "difference",
            lambda one: difference_text(one.difference),
            lambda one: numbers.bounds("difference", one.difference, "points"),
        ),
        Column("checked in", lambda one: one.verified, lambda one: {"verified": one.verified, "n": one.difference.n}),
    ]
    heads, cells, frame = lines(columns, atlas.published)
    caption = [
        "SAM minus its base as published, in points; above zero SAM is better. Intervals are put together from those "
        "of the two means as if their seeds were independent; without one, none was published.",
        "Foret et al. give SGD the better of one and two times the epochs.",
    ]
    return Table("atlas", "published", "Published differences", caption, heads, cells, [], frame, 1)


# ---- the parts -----------------------------------------------------------------------------------------------


def _setting(one: Point) -> numbers.Numbers:
    return {"task": one.task, "model": one.model, "label_noise": one.label_noise, "condition": one.condition}


def _difference(head: str, budget: str) -> Column[Point]:
    return Column(
        head,
        lambda one: (
            difference_text(one.difference(budget))
            + SECTION * (bool(one.difference(budget).n) and not one.counts(budget))
        ),
        lambda one: numbers.bounds(f"at_equal_{budget}", one.difference(budget)),
    )


def difference_text(one: Interval) -> str:
    """Return a difference with its interval, e.g. "+0.82 [+0.31, +1.33]"; a dash where there is none."""
    if not one.n:
        return EMPTY
    return f"{one.mean:+z.2f} {signed_bounds(one, '.2f')}" if one.known else f"{one.mean:+z.2f}"


def _mark(one: Point) -> str:
    return DAGGER if one.marks else ""


def _signed(found: Pooled | None) -> str:
    return EMPTY if found is None else f"{difference_text(found.mean)}"


def _predicted(found: Pooled | None) -> str:
    return (
        EMPTY
        if found is None or np.isnan(found.predicted[0])
        else f"[{found.predicted[0]:+z.2f}, {found.predicted[1]:+z.2f}]"
    )


def _share(found: Pooled | None) -> str:
    return EMPTY if found is None or np.isnan(found.i2) else f"{100 * found.i2:.0f} %"


def _numbers(budget: str, found: Pooled | None) -> numbers.Numbers:
    one = found or Pooled(0, Interval(0, np.nan, np.nan, np.nan), (np.nan, np.nan), np.nan)
    low, high = one.predicted
    return {
        f"k_at_equal_{budget}": one.k,
        **numbers.bounds(f"at_equal_{budget}", one.mean),
        f"predicted_low_at_equal_{budget}": low,
        f"predicted_high_at_equal_{budget}": high,
        f"i2_at_equal_{budget}": one.i2,
    }


def _notes(atlas: Atlas) -> Iterator[str]:
    told = [(point, budget) for point in atlas.points for budget in BUDGETS if point.difference(budget).n]
    if not all(point.counts(budget) for point, budget in told):
        few = f"fewer than {FEWEST} pairs, all pairs equal, or a side that {atlas.unfit}"
        yield f"{SECTION} {few}: not judged, and in no mean."
    for point in atlas.points:
        if point.marks:
            yield f"{DAGGER} {point.results}, {point.name}: {point.marks}."
    if any(np.isnan(point.seconds_ratio) for point in atlas.points):
        yield "No seconds: the runs were on several kinds of hardware, or their times contradict their passes."
    if not all(point.in_points for point in atlas.points):
        yield "Rows whose metric is no score in percent are in their metric's unit, and in no mean."
