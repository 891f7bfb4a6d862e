"""The table of three budgets: the same optimizers at equal epochs, at equal gradient passes and at equal wall-clock.

They are three questions with three answers. Epochs count how often the data is seen; passes count the work, whatever it
takes; wall-clock is what one waits, on this hardware.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis import bounds, load, numbers
from bench.analysis.contrasts import finished, wrappers
from bench.analysis.format import named, seconds
from bench.analysis.provenance import timed
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.stats import Interval, mean_interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import footnotes
from bench.analysis.tables.column import Column, build
from bench.core.errors import counted
from bench.store.conditions import KEY, conditions, keyed, merged

if TYPE_CHECKING:
    from bench.store.records import Results

CUT = "‡"
EPOCHS, PASSES, TIME = "epochs", "passes", "time"
COSTS = {PASSES: "passes", TIME: "train_seconds"}
# Relative: a run that uses exactly the budget is within it, however the sums were rounded.
ROUNDING = 1e-9


@dataclass(frozen=True)
class AtBudget:
    """The result of one optimizer within a budget.

    Attributes:
        equal: which budget: "epochs", "passes" or "time".
        budget: of a run: epochs, passes or seconds; the mean over seeds.
        used: the share of it that was used where the metric was measured, the mean over seeds.
        epoch: after which it was measured, the mean over seeds.
        values: the metric (a fraction) by seed, of the runs that had an evaluation within the budget.
        cut: how many of those were measured before their schedule had ended.
        without: how many finished runs had no evaluation within the budget.
        reference: the label that the difference is to; "" for that label itself.
        difference: paired by seed.
    """

    row: Row
    equal: str
    budget: float
    used: float
    epoch: float
    values: pd.Series
    cut: int
    without: int
    reference: str = ""
    difference: Interval = field(default_factory=lambda: mean_interval([]))


def at_budgets(study: Study) -> list[AtBudget]:
    """Return every chosen row within every budget: condition by condition, epochs, then passes, then time.

    Equal epochs: the rows with as many as the baseline. Equal passes and equal time: for each seed what the dearest of
    the optimizers that wrap another (SAM and its relatives, with the baseline's epochs if there are such) used on that
    seed; where nothing wraps, the dearest of all. A run that needs more is measured at its last evaluation within the
    budget; nothing is interpolated.

    Differences at equal epochs are to the baseline; at equal passes and time to that entry of the baseline's optimizer
    which uses most of the budget (the one with twice the epochs, usually). Neither looks at any score.
    """
    points, results = _points(study), study.results
    reached: list[AtBudget] = []
    for condition in conditions(study.meta):
        rows = [row for row in study.chosen if row.condition == condition]
        here = {row.label: points[condition, row.label] for row in rows}
        reached += _at_equal_epochs(results, rows, here)
        for equal, column in COSTS.items():
            reached += _within(results, rows, here, equal, column)
    return reached


def _points(study: Study) -> dict[tuple[str, str], pd.DataFrame]:
    """Return every evaluation of the chosen configurations' finished runs, the last one as it stands in the records.

    Columns: seed, epoch, passes, train_seconds, value (the test metric) and last.
    """
    results, metric = study.results, f"test_{study.meta['metric']['key']}"
    columns = ["run_id", "epoch", "passes", "train_seconds", "value"]
    runs = timed(finished(results), study.clock).rename(columns={metric: "value", "epochs": "epoch"})
    curves = timed(keyed(results.curves), study.clock).rename(columns={metric: "value"})
    one = ["run_id", *KEY]  # a run that stands under two labels has a row and a curve under each
    # The last evaluation is taken from the records, so that the numbers agree with the table of results.
    before = curves[[*columns, *KEY]].merge(runs[[*one, "epoch"]], on=one, suffixes=("", "_last"))
    before = before[before["epoch"] < before["epoch_last"]].assign(last=False)
    last = runs[[*columns, *KEY]].assign(last=True)
    every = pd.concat([before[last.columns], last], ignore_index=True)
    # validate: a run that stood twice under one configuration would count its points twice.
    every = every.merge(runs[[*one, "seed"]], on=one, validate="many_to_one").dropna(subset="value")
    wanted = {(row.condition, row.label): row.config for row in study.chosen}
    # Epochs ascend, as `tail(1)` in `_within` needs it.
    every = every.sort_values(["seed", "epoch"], kind="stable")
    places: Any = every.groupby(KEY, sort=False).indices
    # A configuration without a finished run gets a frame without lines.
    return {key: every.iloc[places.get((*key, config), [])] for key, config in wanted.items()}


def _at_equal_epochs(results: Results, rows: Sequence[Row], points: dict[str, pd.DataFrame]) -> Iterator[AtBudget]:
    baseline, metric = results.meta["baseline"], results.meta["metric"]
    epochs = next(row.epochs for row in rows if row.label == baseline)
    reached = []
    for row in rows:
        if row.epochs == epochs:
            # After the last epoch, whatever it cost: at equal epochs nothing is ever cut.
            last = points[row.label][points[row.label]["last"]]
            values = last.set_index("seed")["value"]
            reached.append(AtBudget(row, EPOCHS, epochs, 1.0, epochs, values, 0, 0))
    return _compared(reached, baseline, bounds.of_difference(metric))


def _within(
    results: Results, rows: Sequence[Row], points: dict[str, pd.DataFrame], equal: str, column: str
) -> Iterator[AtBudget]:
    budget = _budget(_spenders(results, rows), points, column)
    reached = []
    for row in rows:
        # Runs on other hardware have no seconds, and so take no part at equal time.
        every = points[row.label].dropna(subset=column)
        # A seed of which no spender has a finished run has no budget: NaN, with which every comparison is false.
        limit = every["seed"].map(budget)
        inside = every[every[column] <= limit * (1 + ROUNDING)].groupby("seed").tail(1).set_index("seed")
        # Runs that have a budget; a footnote counts those without any evaluation inside it.
        runs = every.loc[limit.notna(), "seed"].nunique()
        used = float((inside[column] / budget).mean())
        cut, epoch = int((~inside["last"].astype(bool)).sum()), float(inside["epoch"].mean())
        amount = float(budget.mean())
        reached.append(AtBudget(row, equal, amount, used, epoch, inside["value"], cut, runs - len(inside)))
    labels = _kin(results)
    kin = [one for one in reached if one.row.label in labels]
    # By the share used, never by a score. NaN would make `max` depend on the order, so it counts as less than all.
    reference = max(kin, key=lambda one: -1.0 if np.isnan(one.used) else one.used)
    return _compared(reached, reference.row.label, bounds.of_difference(results.meta["metric"]))


def _budget(spenders: Sequence[str], points: dict[str, pd.DataFrame], column: str) -> pd.Series:
    """Return what the most expensive of these labels used, by seed."""
    last = pd.concat([points[label][points[label]["last"]] for label in spenders])
    budget: pd.Series = last.groupby("seed")[column].max()
    return budget


def _spenders(results: Results, rows: Sequence[Row]) -> list[str]:
    epochs = {row.label: row.epochs for row in rows}
    wrapping = wrappers(results)
    # In this order: SAM and its relatives at the baseline's epochs, those at any epochs, all labels.
    same = [label for label in wrapping if epochs[label] == epochs[results.meta["baseline"]]]
    return same or wrapping or list(epochs)


def _kin(results: Results) -> list[str]:
    """Return the baseline and the other labels of the same optimizer."""
    records = results.records
    # As text, so that two missing bases are equal, which NaN is not.
    about = records.drop_duplicates("optimizer").set_index("optimizer").reindex(columns=["method", "base"]).astype(str)
    mine = tuple(about.loc[results.meta["baseline"]])
    return [label for label in results.meta["labels"] if tuple(about.loc[label]) == mine]


def _compared(reached: Sequence[AtBudget], reference: str, limits: bounds.Bounds) -> Iterator[AtBudget]:
    theirs = next(one.values for one in reached if one.row.label == reference)
    for one in reached:
        if one.row.label == reference:
            yield one
        else:
            # Series subtract by seed: a seed that one side lacks is NaN, which `mean_interval` leaves out.
            yield replace(one, reference=reference, difference=mean_interval(one.values - theirs).within(*limits))


# ---- the table -----------------------------------------------------------------------------------------------


def table(study: Study) -> Table:
    """Return the table "budgets"."""
    captions, reached = study.captions, at_budgets(study)
    columns = [
        Column("equal", _budget_text, lambda one: {"equal": one.equal, "budget": one.budget}),
        Column("optimizer", lambda one: named(one.row), lambda one: {"optimizer": one.row.label}),
        Column(
            "epochs",
            lambda one: f"{one.epoch:.4g} of {one.row.epochs:g}{CUT}" if one.cut else f"{one.row.epochs:g}",
            lambda one: {
                "config": one.row.config,
                "epochs": one.row.epochs,
                "measured_after_epoch": one.epoch,
            },
        ),
        Column(
            "budget used",
            lambda one: EMPTY if np.isnan(one.used) else f"{100 * one.used:.0f}%",
            lambda one: {"used": one.used, "cut": one.cut, "without": one.without, "n": len(one.values)},
        ),
        Column[AtBudget](
            f"test {captions.metric}{captions.brackets}",
            lambda one: captions.mean(_metric(study, one)),
            lambda one: numbers.bounds("test", _metric(study, one).scaled(captions.scale), captions.unit),
        ),
        Column[AtBudget](
            f"difference{captions.points}",
            lambda one: captions.signed(one.difference),
            lambda one: {
                "reference": one.reference,
                **numbers.bounds("difference", one.difference.scaled(captions.scale), captions.unit),
            },
        ),
        Column[AtBudget]("n", lambda one: str(len(one.values))),
    ]
    caption = [
        f"Test {captions.metric}{captions.brackets} that each optimizer reaches within three budgets"
        f"{captions.within()}; {captions.better} is better. Mean over seeds ± half-width of the 95% Student-t "
        "interval.",
        "Equal epochs: after the last epoch, of the rows with the baseline's number of epochs. Equal passes and equal "
        "time (of training): for each seed as much as the dearest "
        f"{'optimizer that wraps another' if wrappers(study.results) else 'optimizer'} used on it; a run that needs "
        "more is measured at its last evaluation within the budget. Nothing is interpolated.",
        "Difference: paired by seed, with its 95% t interval.",
    ]
    notes = [
        *footnotes.choices(study),
        *_notes(reached, conditions(study.meta)),
        *footnotes.mixed(study.source),
        *load.notes(study),
    ]
    return build(
        study,
        "budgets",
        "three budgets",
        columns,
        reached,
        caption=caption,
        notes=notes,
        row=lambda one: one.row,
        # The first column, the budget, heads a block of lines.
        keys=1,
    )


def _metric(study: Study, one: AtBudget) -> Interval:
    return mean_interval(one.values).within(*study.captions.bounds)


def _budget_text(one: AtBudget) -> str:
    if np.isnan(one.budget):
        return one.equal
    amounts = {EPOCHS: f"{one.budget:g}", PASSES: f"{one.budget:,.0f}", TIME: seconds(one.budget)}
    return f"{one.equal} ({amounts[one.equal]})"


def _notes(reached: Sequence[AtBudget], among: Sequence[str]) -> Iterator[str]:
    references: dict[tuple[str, str], dict[str, None]] = {}
    for one in reached:
        if one.reference:
            references.setdefault((one.row.condition, one.reference), {})[one.equal] = None
    told = [
        (condition, f"Differences at equal {' and '.join(kinds)} are to {label}", "")
        for (condition, label), kinds in references.items()
    ]
    yield from (f"{note}." for note in merged(told, among))
    if any(one.cut for one in reached):
        yield (
            f"{CUT} measured before its schedule had ended, with the learning rate not yet down: a schedule made for "
            "this budget might do better."
        )
    lost = [
        (
            one.row.condition,
            f"{one.row.label} at equal {one.equal}",
            f": {counted(one.without, 'run')} had no evaluation within it.",
        )
        for one in reached
        if one.without
    ]
    yield from merged(lost, among)
