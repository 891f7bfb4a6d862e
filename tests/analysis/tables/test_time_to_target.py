"""Costs to a target: a miss is infinite and stays in the median; the target comes from validation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.analysis import tables
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.analysis.tables import time_to_target
from bench.analysis.tables.time_to_target import TimeToTarget, costs_to_target, quartiles
from bench.store.records import Results

Make = Callable[..., Results]
LABELS: dict[str, Any] = {"sgd": {}, "sam": {}}


def reach(results: Results, goal: float | None = None) -> dict[str, TimeToTarget]:
    return {one.row.label: one for one in costs_to_target(Study(results), goal)}


def found(results: Results) -> Table:
    return next(table for table in tables.build(Study(results)) if table.name == "target")


def climbing(results: Results, label: str, *epochs: int | None) -> Results:
    """Each seed of a label has test accuracy 0.8, and 0.95 from the given epoch on; None: never."""
    for seed, epoch in enumerate(epochs):
        run = (results.curves["optimizer"] == label) & (results.curves["seed"] == seed)
        there = results.curves["epoch"] >= (epoch or math.inf)
        results.curves.loc[run, "test_acc"] = np.where(there[run], 0.95, 0.8)
    return results


def test_quartiles_are_values_of_the_sample_and_may_be_infinite() -> None:
    # ceil(n q)-th of the ascending values: of 5 the 2nd, 3rd, 4th; of 4 the 1st, 2nd, 3rd
    assert quartiles([1.0, 2.0, 3.0, 4.0, math.inf]) == [2.0, 3.0, 4.0]
    assert quartiles([1.0, 2.0, math.inf, math.inf]) == [1.0, 2.0, math.inf]
    assert quartiles([7.0]) == [7.0, 7.0, 7.0]
    assert np.isnan(quartiles([])).all()
    sample = np.sort(np.random.default_rng(0).normal(size=11))
    assert quartiles(sample.tolist()) == np.quantile(sample, [0.25, 0.5, 0.75], method="inverted_cdf").tolist()


def test_the_first_evaluation_there_counts(make_results: Make) -> None:
    one = reach(climbing(make_results(LABELS), "sam", 2, 3, 3, 4, 6), 0.95)["sam"]
    assert one.passes == [44, 66, 66, 88, 132]  # 22 passes an epoch
    assert one.hits == one.runs == 5


def test_misses_are_infinite_and_never_averaged_away(make_results: Make) -> None:
    results = climbing(climbing(make_results(LABELS), "sam", 1, None, None, None, 1), "sgd", 6, 6, 6, 6, 6)
    both = reach(results, 0.9)
    assert both["sam"].passes == [22, 22, math.inf, math.inf, math.inf]
    assert quartiles(both["sam"].passes)[1] == math.inf > quartiles(both["sgd"].passes)[1] == 66


def test_lost_runs_are_misses_and_unfinished_ones_are_not_counted(make_results: Make) -> None:
    lost = {("sam", "", 0): "diverged", ("sam", "", 1): "failed", ("sam", "", 2): "missing"}
    one = reach(climbing(make_results(LABELS, status=lost), "sam", 1, 1, 1, 1, 1), 0.9)["sam"]
    assert one.passes == [22, 22, math.inf, math.inf]
    assert (one.hits, one.runs) == (2, 4)


def test_the_target_is_the_baselines_validation_and_no_test_number(make_results: Make) -> None:
    def change(records: Any) -> Any:
        records.loc[records["optimizer"] == "sgd", "val_acc"] = [0.90, 0.91, 0.92, 0.93, 0.94]
        return records

    assert reach(make_results(LABELS, change=change))["sam"].target == pytest.approx(0.92)
    other = reach(make_results(LABELS, change=lambda records: change(records).assign(test_acc=0.1)))
    assert other["sam"].target == pytest.approx(0.92)
    assert [cells[1] for cells in found(make_results(LABELS, change=change)).rows] == ["92.00", "92.00"]


def test_without_validation_there_is_no_table_unless_a_target_is_named(make_results: Make) -> None:
    results = make_results(LABELS, change=lambda records: records.assign(val_acc=np.nan))
    assert "target" not in [table.name for table in tables.build(Study(results))]
    named = time_to_target.table(Study(results), 0.9)
    assert "Target: as it was asked for." in " ".join(named.caption)
    assert {cells[1] for cells in named.rows} == {"90.00"}


def test_lower_can_be_better(make_results: Make) -> None:
    results = climbing(make_results(LABELS), "sam", 2, 2, 2, 2, 2)
    results.curves["test_acc"] = 1 - results.curves["test_acc"]
    results.meta["metric"] = {**results.meta["metric"], "higher_is_better": False}
    assert reach(results, 0.1)["sam"].passes == [44] * 5


def test_cells_and_numbers(make_results: Make) -> None:
    results = climbing(make_results(LABELS), "sam", 2, 2, None, None, None)
    for label in ("sgd", "sam"):
        here = results.records["optimizer"] == label
        results.records.loc[here, "val_acc"] = 0.9
    shown = found(results)
    (cells,) = (row for row in shown.rows if row[0] == "sam")
    assert cells[:5] == ["sam", "90.00", "2/5", "never", "44 to never"]
    line = shown.numbers.set_index("optimizer").loc["sam"]
    assert (line["passes_lower_quartile"], line["passes_median"], line["reached"]) == (44, math.inf, 2)
    assert "Epochs between two evaluations, at most: 1: sgd, sam." in shown.footnotes


def test_after_a_phase_of_tuning_the_target_is_that_of_the_runs_that_chose(make_phased: Make) -> None:
    results = make_phased(
        {"sgd": "lr=0.1", "sam": "rho=0.2"}, {"sgd": {"sweep": ("lr", (0.1,))}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
    )
    chosen = results.records["phase"].eq("tune") & results.records["optimizer"].eq("sgd")
    expected = results.records.loc[chosen, "val_acc"].mean()
    both = reach(results)
    assert both["sgd"].target == both["sam"].target == pytest.approx(expected)
    assert both["sam"].runs == 3, "final runs only"
