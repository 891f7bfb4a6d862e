"""The table of costs to a target: how much work and time until a score is reached, a miss counting as infinite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis import footnotes, load
from bench.analysis.cells import named, seconds
from bench.analysis.provenance import clock
from bench.analysis.render import EMPTY, Table
from bench.analysis.summary import Row, tried_rows
from bench.analysis.words import Words
from bench.store import selection as choice
from bench.store.conditions import conditions, keyed, names, value_text

if TYPE_CHECKING:
    from bench.store.records import Results

NEVER = "never"
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Reached:
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


def costs_to_target(results: Results, best: Sequence[Row], target: float | None = None) -> list[Reached]:
    """Return the cost of every chosen configuration until an evaluation first gives a test metric at the target.

    Args:
        best: the chosen row of every condition and label.
        target: a score as stored; default, for each condition: the baseline's mean validation metric after its last
            epoch, which no test number takes part in. Conditions without one are left out.

    A run that diverged, failed or never got there is a miss. Runs that have not ended are not counted.
    """
    metric = results.meta["metric"]
    found = []
    # After a phase of tuning it is that of the runs that chose: what is refitted has no validation numbers.
    tried = [*(row for row in best if row.chosen), *(row for row in tried_rows(results) if row.chosen)]
    held_out = {row.condition: row.val_metric.mean for row in tried if row.label == results.meta["baseline"]}
    elsewhere = clock(results).elsewhere
    runs, curves = _ended(results), _curves(results, f"test_{metric['key']}")
    for condition in conditions(results.meta):
        rows = [row for row in best if row.condition == condition]
        goal = held_out.get(condition, np.nan) if target is None else target
        if np.isnan(goal):
            continue
        there = curves["value"] >= goal if metric["higher_is_better"] else curves["value"] <= goal
        first = curves[there].groupby("run_id", sort=False)[["passes", "train_seconds"]].first()
        for row in rows:
            ids = runs.get((condition, row.label, row.config), [])
            needed = first.reindex(ids).fillna(math.inf)
            passes = sorted(needed["passes"].astype(float))
            time = sorted(needed.loc[~needed.index.isin(elsewhere), "train_seconds"].astype(float))
            found.append(Reached(row, float(goal), passes, time))
    return found


def quartiles(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile of ascending values; each is a value, so infinity is allowed.

    The inverse of the empirical distribution (Hyndman and Fan, The American Statistician 50, 1996, definition 1). NaN
    without values.
    """
    if not values:
        return [math.nan] * len(QUARTILES)
    return [values[max(0, math.ceil(share * len(values)) - 1)] for share in QUARTILES]


def _ended(results: Results) -> dict[tuple[str, str, str], list[str]]:
    """Return the ids of all runs that count, by configuration."""
    records = keyed(choice.reported(results.records))
    ended = records[records["status"].isin(["done", "diverged", "failed"])]
    found: dict[tuple[str, str, str], list[str]] = {}
    for condition, label, config, run_id in ended[["condition", "optimizer", "config", "run_id"]].itertuples(
        index=False
    ):
        found.setdefault((condition, label, config), []).append(run_id)
    return found


def _curves(results: Results, metric: str) -> pd.DataFrame:
    """Return every evaluation of every run, in order."""
    curves = results.curves[["run_id", "epoch", "passes", "train_seconds", metric]]
    return curves.rename(columns={metric: "value"}).sort_values("epoch", kind="stable")


# ---- the table -----------------------------------------------------------------------------------------------


def table(
    words: Words, results: Results, best: Sequence[Row], rows: Sequence[Row], target: float | None = None
) -> Table:
    """Return the table "target", without rows if there is no target; see `costs_to_target` for `target`."""
    found = costs_to_target(results, best, target)
    columns = [*names(words.varied), "optimizer", f"target{words.brackets}", "reached"]
    columns += ["passes, median", "quartiles", "time, median", "quartiles"]
    text = [[*map(value_text, one.row.varied.values()), *_cells(words, one)] for one in found]
    origin = (
        f"the mean validation {words.metric} of {words.baseline} after its last epoch{words.within()}; no test number "
        "took part in it"
        if target is None
        else "as it was asked for"
    )
    caption = [
        f"Gradient passes and seconds of training until the test {words.metric} is first as good as the target at an "
        f"evaluation. Target: {origin}.",
        "Reached: by how many runs of those that ended. A run that missed it, diverged or failed counts as infinite "
        f"(“{NEVER}”): medians and quartiles are runs' own numbers, over all of them; there is no mean over those that "
        "arrived. Nothing is interpolated: a target reached between two evaluations counts at the second.",
    ]
    notes = [*footnotes.choices(best, rows), *_steps(results, found), *footnotes.mixed(words.source)]
    notes += load.notes(best, results, words.source)
    title = f"{words.meta['title']}: cost to a target"
    numbers, keys = _numbers(words, found), len(words.varied)
    name = words.meta["name"]
    return Table(name, "target", title, [*caption, *words.closing()], columns, text, notes, numbers, keys)


def _cells(words: Words, one: Reached) -> Iterator[str]:
    yield named(one.row)
    yield f"{one.target * words.scale:.{words.digits}f}"
    yield f"{one.hits}/{one.runs}"
    for values, form in ((one.passes, _passes), (one.train_seconds, seconds)):
        low, median, high = quartiles(values)
        yield _shown(median, form)
        yield _shown(low, form) if low == high or math.isnan(low) else f"{_shown(low, form)} to {_shown(high, form)}"


def _passes(value: float) -> str:
    return f"{value:,.0f}"


def _shown(value: float, form: Any) -> str:
    return EMPTY if math.isnan(value) else NEVER if math.isinf(value) else form(value)


def _steps(results: Results, found: Sequence[Reached]) -> Iterator[str]:
    """Yield how coarse the evaluations are, in epochs."""
    gaps = results.curves.sort_values("epoch").groupby("run_id")["epoch"].diff().dropna()
    if gaps.empty:
        yield "Every run was evaluated once, after its last epoch: costs are those of whole runs."
        return
    by_label = gaps.groupby(results.curves["optimizer"]).max()
    shown: dict[float, list[str]] = {}
    for label in dict.fromkeys(one.row.label for one in found):
        if label in by_label:
            shown.setdefault(float(by_label[label]), []).append(label)
    every = "; ".join(f"{step:g}: {', '.join(labels)}" for step, labels in sorted(shown.items()))
    yield f"Epochs between two evaluations, at most: {every}."


def _numbers(words: Words, found: Sequence[Reached]) -> pd.DataFrame:
    unit = f" [{words.unit}]" if words.unit else ""
    data: list[dict[str, Any]] = []
    for one in found:
        costs = {"passes": quartiles(one.passes), "seconds": quartiles(one.train_seconds)}
        data.append(
            {
                **({"condition": one.row.condition, **one.row.varied} if one.row.varied else {}),
                "optimizer": one.row.label,
                "config": one.row.config,
                f"target{unit}": one.target * words.scale,
                "reached": one.hits,
                "runs": one.runs,
                **{
                    f"{cost}_{part}": value
                    for cost, values in costs.items()
                    for part, value in zip(("lower_quartile", "median", "upper_quartile"), values, strict=True)
                },
            }
        )
    return pd.DataFrame(data)
