"""The footnotes of tables: what is missing, what the tests cannot say, what may be compared with what."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from bench.analysis.provenance import Provenance
from bench.analysis.render.table import DAGGER, SECTION
from bench.analysis.stats import FEWEST, smallest_sign_flip_p
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.core.errors import counted
from bench.store.conditions import first_few, merged, under

Budgets = Mapping[str, Mapping[float, list[str]]]
"""Condition -> epochs or passes -> the labels that have them."""

FEW_SEEDS = 5  # up to here the sign-flip test cannot reach 0.05, so it has to be said


def choices(study: Study) -> Iterator[str]:
    """Yield the notes on the chosen rows, and on missing runs of rows that are not shown."""
    yield from gone(study.chosen)
    yield from gone_elsewhere(study.rows)
    yield from edges(study.chosen)
    yield from degenerate(study.chosen)


def gone(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the notes that explain daggers: one per row that lacks runs or numbers, one for all rows without any."""
    # 1. Rows of which some runs finished.
    yield from merged(
        (
            (row.condition, f"{DAGGER} {row.title}", f": {_finished(row)}; its numbers are over those.")
            for row in rows
            if 0 < row.done < row.planned
        ),
        _conditions(rows),
    )
    # 2. Finished runs with a number that is in no mean.
    yield from merged(
        (
            (row.condition, f"{DAGGER} {row.title}", f": not finite, and in no mean: {first_few(row.not_finite)}.")
            for row in rows
            if row.not_finite
        ),
        _conditions(rows),
    )
    # 3. Rows without any finished run, all in one sentence.
    empty = Counter((row.condition, row.label, _lost(row)) for row in rows if not row.done)
    if empty:
        each = [
            (condition, f"{label} ({lost})" if count == 1 else f"{label} ({lost} each of {count})", "")
            for (condition, label, lost), count in empty.items()
        ]
        yield f"{DAGGER} no run finished: {', '.join(merged(each, _conditions(rows)))}."


def gone_elsewhere(rows: Sequence[Row]) -> Iterator[str]:
    """Yield one note per sweep with incomplete configurations that the table does not show."""
    lost = defaultdict(list)
    # A label without any finished run already has its note from `gone`.
    numbered = {(row.condition, row.label) for row in rows if row.done}
    for row in rows:
        if not (row.complete or row.chosen) and (row.condition, row.label) in numbered:
            lost[row.condition, row.label].append(f"{row.config} ({_lost(row)})")
    yield from merged(
        (
            (condition, label, f": other configurations lack runs and rank behind complete ones: {'; '.join(configs)}.")
            for (condition, label), configs in lost.items()
        ),
        _conditions(rows),
    )


def edges(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the notes on choices at an end of their sweep."""
    yield from merged(
        ((row.condition, row.name, _at_the_edge(row)) for row in rows if row.edges),
        _conditions(rows),
    )


def degenerate(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the notes that explain section signs: configurations that give one answer to everything."""
    yield from merged(
        (
            (row.condition, f"{SECTION} {row.name}", f" is degenerate: {row.degenerate}.")
            for row in rows
            if row.degenerate
        ),
        _conditions(rows),
    )


def significance(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the limits of the p values: few seeds, and the number of comparisons they are corrected for."""
    sizes = [row.difference.difference.n for row in rows if row.difference]
    n = max(sizes, default=0)
    if n == 1:
        yield "n=1: one seed gives neither an interval nor a test."
    elif 1 < n <= FEW_SEEDS:
        floor = f"p={smallest_sign_flip_p(n):g}"
        yield f"With n={n} pairs an exact sign-flip test cannot get below {floor} on any data: no stars."
        if n < FEWEST:
            yield f"With n={n} pairs nothing is called better or worse, whatever p is; at least {FEWEST} are needed."
    compared = sum(row.difference is not None and not np.isnan(row.difference.p_t) for row in rows)
    if compared > 1:
        yield f"p values are corrected for {compared} comparisons; the table of statistics has the others."


def budget(rows: Sequence[Row], shown: str = "row") -> Iterator[str]:
    """Yield which labels compare at equal epochs and which at equal passes; a label is `shown` as a row or a column.

    Smaller training sets have fewer passes per epoch. Labels that are equal among themselves under several conditions
    are therefore named once, with the range of their budgets.
    """
    epochs = _by_condition((row, row.epochs) for row in rows)
    # Passes are known once a run has finished. Rounded, since means of equal counts may differ in their last bit.
    passes = _by_condition((row, round(row.passes)) for row in rows if row.done)
    # If all labels have one budget under each condition, one sentence says so.
    if all(len(labels_of) == 1 for kind in (epochs, passes) for labels_of in kind.values()):
        shared = {"epochs": set().union(*epochs.values()), "passes": set().union(*passes.values())}
        every = f"Under each condition every {shown}" if max(map(len, shared.values())) > 1 else f"Every {shown}"
        named = [f"{_range(values)} {kind}" for kind, values in shared.items() if values]
        yield f"{every} has the same budget: {', '.join(named)}."
        return
    budgets = [*_budgets(epochs, "epochs"), *_budgets(passes, "passes")]
    yield f"Budgets differ: compare {shown}s of equal epochs or {shown}s of equal passes. {'; '.join(budgets)}."


def mixed(source: Provenance) -> Iterator[str]:
    """Yield the reason why times must not be compared."""
    if source.mixed:
        yield (
            "The runs have different versions, commits or precisions (the caption lists them): times are not "
            "comparable."
        )
    if source.clock:
        yield (
            "The runs are from different hardware (the caption lists it). Times are those of the hardware with the "
            f"most runs: {source.timed} finished runs on {' and '.join(source.clock)}."
        )


# ---- parts ---------------------------------------------------------------------------------------------------


def _conditions(rows: Iterable[Row]) -> dict[str, None]:
    return dict.fromkeys(row.condition for row in rows)


def _at_the_edge(row: Row) -> str:
    if len(row.swept) == 1 and row.phase == "":
        return f" is the {row.edges[next(iter(row.swept))]} value of its sweep: the best may lie beyond it."
    ends = ", ".join(f"its {key} at the {end} end" for key, end in row.edges.items())
    return f" lies at the edge of what was tried, {ends}: the best may lie beyond it."


def _finished(row: Row) -> str:
    return f"{row.done} of {counted(row.planned, 'run')} finished ({_lost(row)})"


def _lost(row: Row) -> str:
    kinds = {"diverged": row.diverged, "failed": row.failed, "unfinished": row.unfinished}
    kinds["not finite"] = len(row.not_finite)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _by_condition(budgets: Iterable[tuple[Row, float]]) -> Budgets:
    """Return the labels that have each budget, condition by condition."""
    labels: dict[str, dict[float, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, value in budgets:
        labels[row.condition][value].append(row.label)
    return labels


def _budgets(budgets: Budgets, kind: str) -> Iterator[str]:
    """Yield every group of labels with equal budgets, e.g. "75 to 3,000 passes: sgd, adamw".

    A label without a finished run has no passes; its group is still the one it has under other conditions.
    """
    # 1. Every set of labels that have the same budget under some condition.
    groups = dict.fromkeys(tuple(labels) for labels_of in budgets.values() for labels in labels_of.values())
    values: dict[tuple[str, ...], dict[str, float]] = {group: {} for group in groups}
    known = {condition: {label for labels in budgets[condition].values() for label in labels} for condition in budgets}
    for condition, labels_of in budgets.items():
        for value, labels in labels_of.items():
            # 2. The set of each condition's labels. A label without passes there is not asked for, so several sets
            # may fit: the largest is taken.
            same = [group for group in groups if [label for label in group if label in known[condition]] == labels]
            values[max(same, key=len)][condition] = value
    for group, of_group in values.items():
        # 3. Conditions in which no label of the set has a known budget say nothing against "everywhere".
        among = [condition for condition in budgets if not known[condition].isdisjoint(group)]
        if of_group:
            yield f"{_range(of_group.values())} {kind}{under(of_group, among)}: {', '.join(group)}"


def _range(values: Iterable[float]) -> str:
    """Return one budget as "300", several as "75 to 3,000", none as nothing."""
    shown = [f"{value:,.10g}" for value in sorted(set(values))]
    # A single value is both the first and the last: it is written once.
    return " to ".join(dict.fromkeys([*shown[:1], *shown[-1:]]))
