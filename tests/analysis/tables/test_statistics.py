"""The table of statistics: its cells by hand, and what it says of few seeds and of the test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import tables
from bench.analysis.render.table import Table
from bench.analysis.stats import examples
from bench.analysis.study import Study
from bench.analysis.tables.statistics import sizes_of_test_sets
from bench.store.records import Results

Make = Callable[..., Results]
TWO: dict[str, Any] = {"sgd": {}, "sam": {}}
SGD = np.array([529, 560, 570, 575, 580]) / 597
GAIN = np.array([1, 2, 3, 4, 5]) / 100


def found(results: Results, name: str = "statistics") -> Table:
    return next(table for table in tables.build(Study(results)) if table.name == name)


def scores(records: pd.DataFrame) -> pd.DataFrame:
    for label, values in {"sgd": SGD, "sam": SGD + GAIN}.items():
        records.loc[records["optimizer"] == label, "test_acc"] = values
    return records


def test_cells_by_hand(make_results: Make) -> None:
    # Differences 1 to 5 points: mean 3, sd 1.5811, half-width 2.7764 * .7071 = 1.963; t = 4.2426, p = .0132.
    # d_z = 1.8974, Hedges' factor with 4 degrees of freedom .7979: 1.514. Detectable: 1.6820 * 1.5811 = 2.659.
    (cells,) = found(make_results(TWO, change=scores)).rows
    assert cells[:3] == ["sgd", "sam", "epochs"]
    assert cells[3] == "+3.00 [+1.04, +4.96]"
    assert cells[4:8] == ["0.013", "0.013", "0.062", "0.062"]
    assert cells[8] == "+1.51"
    better = np.mean((SGD + GAIN)[:, None] > SGD[None, :])
    assert cells[9] == f"{better:.2f}"
    assert cells[10:] == ["2.66", "5"]


def test_effect_and_probability_are_towards_better_where_less_is(make_results: Make) -> None:
    metric = {**make_results({"sgd": {}}).meta["metric"], "higher_is_better": False}
    (cells,) = found(make_results(TWO, change=scores, metric=metric)).rows
    assert (cells[8], float(cells[9]) < 0.5) == ("-1.51", True)


def test_p_of_the_results_table_are_those_against_the_baseline(make_results: Make) -> None:
    results = make_results()
    against = {cells[1]: cells[5] for cells in found(results).rows if cells[0] == "sgd"}
    shown = {cells[0]: cells[3] for cells in found(results, "results").rows}
    assert against == {label: p for label, p in shown.items() if label != "sgd"}
    numbers = found(results, "results").numbers
    assert (numbers["p_holm"].dropna() >= numbers["p_paired_t"].dropna()).all()
    assert "p values are corrected for 4 comparisons; the table of statistics has the others." in (
        found(results, "results").footnotes
    )


def test_conditions_stand_together_rival_by_rival(make_results: Make) -> None:
    table = found(make_results(vary={"label_noise": [0.2, 0.4]}))
    assert [name for name, _ in table.blocks()] == [
        f"label noise={noise}, against={rival}" for noise in ("0.2", "0.4") for rival in ("sgd", "sgd-2x", "adam")
    ]
    assert set(table.numbers.loc[table.numbers["against"] == "sgd", "comparisons"]) == {8}


def test_what_exact_tests_cannot_reach_is_said(make_results: Make) -> None:
    assert any("below p=0.0625" in note for note in found(make_results(TWO)).footnotes)
    assert any("below p=0.25" in note for note in found(make_results(TWO, seeds=range(3))).footnotes)


def test_the_test_sets_own_error_is_said(make_results: Make) -> None:
    results = make_results(TWO, change=scores)
    results.curves["test_acc"] = np.round(results.curves["test_acc"] * 597) / 597
    results.records["test_acc"] = np.round(results.records["test_acc"] * 597) / 597
    (note,) = (note for note in found(results).footnotes if note.startswith("The test set"))
    # 563 of 597; Wilson by hand: centre (563 + 1.9207) / (597 + 3.8415) = 94.02 %, half-width 1.88 %
    assert "has 597 examples" in note
    assert "[92.15, 95.90]" in note
    assert not [note for note in found(make_results(TWO)).footnotes if note.startswith("The test set")], (
        "no such shares"
    )


def test_sizes_are_told_apart_by_condition(make_results: Make) -> None:
    results = make_results(TWO, vary={"task": ["a", "b"]})
    for frame in (results.records, results.curves):
        size = frame["condition"].map({"task=a": 277, "task=b": 872})
        frame["test_acc"] = np.round(frame["test_acc"] * size) / size
    assert sizes_of_test_sets(results) == {"task=a": 277, "task=b": 872}


@pytest.mark.parametrize("size", [2, 277, 597, 872, 10_000, 40_430])
def test_a_test_sets_size_is_in_its_scores(size: int) -> None:
    hits = np.random.default_rng(size).integers(0, size + 1, size=30)
    hits[0] = 1
    assert examples(hits / size) == size


def test_scores_that_are_no_shares_have_no_size() -> None:
    assert examples(np.random.default_rng(0).random(5)) is None
    assert examples([np.nan]) is None
    assert examples([0.0, 1.0]) is None
