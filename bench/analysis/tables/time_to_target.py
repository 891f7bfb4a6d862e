"""The table of costs to a target: how much work and time until a score is reached, a miss counting as infinite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.analysis import load
from bench.analysis.captions import Captions
from bench.analysis.format import named, seconds
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import footnotes
from bench.analysis.tables.column import Column, build
from bench.store import selection
from bench.store.conditions import conditions, keyed

if TYPE_CHECKING:
    from bench.store.records import Results

NEVER = "never"
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class TimeToTarget:
    """The cost of one optimizer to a target.

    Attributes:
        target: the score, as stored (a fraction).
        passes, train_seconds: one number a run that finished, diverged or failed, ascending; infinite for a miss.
    """

    row: Row
    target: float
    passes: list[float]
    train_seconds: list[float]

    @property
    def runs(self) -> int:
        return len(self.passes)

    @property
    def hits(self) -> int:
        return int(np.isfinite(self.passes).sum())


def costs_to_target(study: Study, target: float | None = None) -> list[TimeToTarget]:
    """Return the cost of every chosen configuration until an evaluation first gives a test metric at the target.

    Args:
        target: a score as stored; default, for each condition: the baseline's mean validation metric after its last
            epoch, which no test number takes part in. Conditions without one are left out.

    A run that diverged, failed or never got there is a miss. Runs that have not ended are not counted.
    """
    results, metric = study.results, study.meta["metric"]
    costs = []
    # After a phase of tuning the target is that of its runs: final runs may train on validation data, too.
    tried = [*study.chosen, *(row for row in study.tried if row.chosen)]
    held_out = {row.condition: row.val_metric.mean for row in tried if row.label == results.meta["baseline"]}
    runs, curves = _ended(results), _curves(results, f"test_{metric['key']}")
    for condition in conditions(results.meta):
        rows = [row for row in study.chosen if row.condition == condition]
        goal = held_out.get(condition, np.nan) if target is None else target
        if np.isnan(goal):
            continue
        # NaN compares as false: an evaluation without a finite score is not at the target.
        there = curves["value"] >= goal if metric["higher_is_better"] else curves["value"] <= goal
        # Evaluations are in the order of their epochs, so the first one is the earliest.
        first = curves[there].groupby("run_id", sort=False)[["passes", "train_seconds"]].first()
        for row in rows:
            ids = runs.get((condition, row.label, row.config), [])
            # A run that never got there has no line: its cost is infinite.
            needed = first.reindex(ids).fillna(math.inf)
            passes = sorted(needed["passes"].astype(float))
            # Passes are the same on every machine; seconds are compared on the hardware that counts only.
            time = sorted(needed.loc[~needed.index.isin(study.clock.elsewhere), "train_seconds"].astype(float))
            costs.append(TimeToTarget(row, float(goal), passes, time))
    return costs


def quartiles(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile of ascending values; each is a value, so infinity is allowed.

    The inverse of the empirical distribution (Hyndman and Fan, The American Statistician 50, 1996, definition 1). NaN
    without values.
    """
    if not values:
        return [math.nan] * len(QUARTILES)
    # Never a mean of two values: of a number and infinity that would be infinity.
    return [values[max(0, math.ceil(share * len(values)) - 1)] for share in QUARTILES]


def _ended(results: Results) -> dict[tuple[str, str, str], list[str]]:
    """Return the ids of all runs that count, by configuration."""
    records = keyed(selection.reported(results.records))
    # A run that has not ended may still reach the target, so it is neither a hit nor a miss.
    ended = records[records["status"].isin(["done", "diverged", "failed"])]
    run_ids: dict[tuple[str, str, str], list[str]] = {}
    for condition, label, config, run_id in ended[["condition", "optimizer", "config", "run_id"]].itertuples(
        index=False
    ):
        run_ids.setdefault((condition, label, config), []).append(run_id)
    return run_ids


def _curves(results: Results, metric: str) -> pd.DataFrame:
    """Return every evaluation of every run, in order."""
    curves = results.curves[["run_id", "epoch", "passes", "train_seconds", metric]]
    return curves.rename(columns={metric: "value"}).sort_values("epoch", kind="stable")


# ---- the table -----------------------------------------------------------------------------------------------


def table(study: Study, target: float | None = None) -> Table:
    """Return the table "target", without rows if there is no target; see `costs_to_target` for `target`."""
    captions, costs = study.captions, costs_to_target(study, target)
    origin = (
        f"the mean validation {captions.metric} of {captions.baseline} after its last epoch{captions.within()}; no "
        "test number took part in it"
        if target is None
        else "as it was asked for"
    )
    caption = [
        f"Gradient passes and seconds of training until the test {captions.metric} is first as good as the target at "
        f"an evaluation. Target: {origin}.",
        "Reached: by how many runs of those that ended. A run that missed it, diverged or failed counts as infinite "
        f"(“{NEVER}”): medians and quartiles are runs' own numbers, over all of them; there is no mean over those that "
        "arrived. Nothing is interpolated: a target reached between two evaluations counts at the second.",
    ]
    notes = [
        *footnotes.choices(study),
        *_steps(study.results, costs),
        *footnotes.mixed(study.source),
        *load.notes(study),
    ]
    return build(
        study,
        "target",
        "cost to a target",
        _columns(captions),
        costs,
        caption=caption,
        notes=notes,
        row=lambda one: one.row,
    )


def _columns(captions: Captions) -> list[Column[TimeToTarget]]:
    unit = f" [{captions.unit}]" if captions.unit else ""
    columns: list[Column[TimeToTarget]] = [
        Column(
            "optimizer", lambda one: named(one.row), lambda one: {"optimizer": one.row.label, "config": one.row.config}
        ),
        Column(
            f"target{captions.brackets}",
            lambda one: f"{one.target * captions.scale:.{captions.digits}f}",
            lambda one: {f"target{unit}": one.target * captions.scale},
        ),
        Column("reached", lambda one: f"{one.hits}/{one.runs}", lambda one: {"reached": one.hits, "runs": one.runs}),
    ]
    columns += _of_cost("passes", "passes", lambda one: one.passes, _passes)
    return columns + _of_cost("time", "seconds", lambda one: one.train_seconds, seconds)


def _of_cost(
    head: str, name: str, values: Callable[[TimeToTarget], Sequence[float]], form: Callable[[float], str]
) -> list[Column[TimeToTarget]]:
    """Return the columns of one kind of cost: its median and its quartiles."""
    parts = tuple(f"{name}_{part}" for part in ("lower_quartile", "median", "upper_quartile"))

    def between(one: TimeToTarget) -> str:
        low, _, high = quartiles(values(one))
        # Infinity is equal to itself: two misses read "never", not "never to never".
        if low == high or math.isnan(low):
            return _shown(low, form)
        return f"{_shown(low, form)} to {_shown(high, form)}"

    return [
        Column(
            f"{head}, median",
            lambda one: _shown(quartiles(values(one))[1], form),
            lambda one: dict(zip(parts, quartiles(values(one)), strict=True)),
        ),
        Column("quartiles", between),
    ]


def _passes(value: float) -> str:
    return f"{value:,.0f}"


def _shown(value: float, form: Callable[[float], str]) -> str:
    return EMPTY if math.isnan(value) else NEVER if math.isinf(value) else form(value)


def _steps(results: Results, costs: Sequence[TimeToTarget]) -> Iterator[str]:
    """Yield how coarse the evaluations are, in epochs."""
    gaps = results.curves.sort_values("epoch").groupby("run_id")["epoch"].diff().dropna()
    if gaps.empty:
        yield "Every run was evaluated once, after its last epoch: costs are those of whole runs."
        return
    # `gaps` has kept the index of the curves, by which each gap finds its label.
    by_label = gaps.groupby(results.curves["optimizer"]).max()
    shown: dict[float, list[str]] = {}
    for label in dict.fromkeys(one.row.label for one in costs):
        if label in by_label:
            shown.setdefault(float(by_label[label]), []).append(label)
    every = "; ".join(f"{step:g}: {', '.join(labels)}" for step, labels in sorted(shown.items()))
    yield f"Epochs between two evaluations, at most: {every}."
