"""Three budgets: who is measured where, what the differences are to, and what is admitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import tables
from bench.analysis.study import Study
from bench.analysis.tables.budgets import AtBudget, at_budgets
from bench.store.records import Results

Make = Callable[..., Results]
LABELS: dict[str, Any] = {
    "sgd": {},
    "sgd-2x": {"epochs": 12},
    "sam": {},
}  # 6 epochs of 11 steps: 66, 132 and 132 passes


def within(results: Results, equal: str) -> dict[str, AtBudget]:
    return {one.row.label: one for one in at_budgets(Study(results)) if one.equal == equal}


def with_times(results: Results, **seconds_a_pass: float) -> Results:
    """The results with the same time a pass in every run of a label ("sgd_2x" for "sgd-2x")."""
    for frame in (results.records, results.curves):
        for label, each in seconds_a_pass.items():
            here = frame["optimizer"] == label.replace("_", "-")
            frame.loc[here, "train_seconds"] = frame.loc[here, "passes"] * each
    return results


def curve(results: Results, label: str, epoch: int) -> list[float]:
    here = results.curves[(results.curves["optimizer"] == label) & (results.curves["epoch"] == epoch)]
    return here.sort_values("seed")["test_acc"].tolist()


def test_equal_epochs_are_the_baselines_and_measured_at_their_end(make_results: Make) -> None:
    results = make_results(LABELS)
    found = within(results, "epochs")
    assert list(found) == ["sgd", "sam"]
    assert found["sam"].values.tolist() == curve(results, "sam", 6)
    ours, theirs = (np.array(curve(results, label, 6)) for label in ("sam", "sgd"))
    assert found["sam"].difference.mean == pytest.approx((ours - theirs).mean())


def test_equal_passes_are_sams_and_differences_are_to_the_longer_entry(make_results: Make) -> None:
    found = within(make_results(LABELS), "passes")
    assert {one.budget for one in found.values()} == {132}
    assert [(label, one.used, one.cut) for label, one in found.items()] == [
        ("sgd", 0.5, 0),
        ("sgd-2x", 1.0, 0),
        ("sam", 1.0, 0),
    ]
    assert {label: one.reference for label, one in found.items()} == {"sgd": "sgd-2x", "sgd-2x": "", "sam": "sgd-2x"}


def test_who_needs_more_time_is_measured_at_the_last_evaluation_before(make_results: Make) -> None:
    # sam's 132 passes take 1.32 s; at 0.0125 s a pass sgd-2x gets 105.6 of its 132: 9 epochs of 11 steps, 1.2375 s
    results = with_times(make_results(LABELS), sgd=0.01, sgd_2x=0.0125, sam=0.01)
    found = within(results, "time")
    long = found["sgd-2x"]
    assert (long.epoch, long.cut, found["sam"].cut) == (9, 5, 0)
    assert long.used == pytest.approx(1.2375 / 1.32)
    assert long.values.tolist() == curve(results, "sgd-2x", 9), "an evaluation, not a line between two"
    table = next(table for table in tables.build(Study(results)) if table.name == "budgets")
    (cells,) = (row for row in table.rows if row[0].startswith("time") and row[1] == "sgd-2x")
    assert cells[2:4] == ["9 of 12‡", "94%"]
    assert any(note.startswith("‡ measured before its schedule had ended") for note in table.footnotes)


def test_exactly_the_budget_is_within_it(make_results: Make) -> None:
    results = with_times(make_results(LABELS), sgd=0.1, sgd_2x=0.1 * (1 + 1e-12), sam=0.1)
    assert within(results, "time")["sgd-2x"].cut == 0


def test_a_budget_too_small_for_any_evaluation_is_told(make_results: Make) -> None:
    results = with_times(make_results(LABELS), sgd=0.01, sgd_2x=1.0, sam=0.01)
    found = within(results, "time")["sgd-2x"]
    assert (len(found.values), found.without) == (0, 5)
    table = next(table for table in tables.build(Study(results)) if table.name == "budgets")
    assert "sgd-2x at equal time: 5 runs had no evaluation within it." in table.footnotes


def test_every_seed_has_its_own_time(make_results: Make) -> None:
    results = with_times(make_results(LABELS), sgd=0.01, sgd_2x=0.01, sam=0.01)
    slow = (results.records["optimizer"] == "sam") & (results.records["seed"] == 3)
    results.records.loc[slow, "train_seconds"] = 0.5  # less than half of the other seeds' time
    found = within(results, "time")["sgd-2x"]
    assert found.cut == 1
    assert found.values[3] == curve(results, "sgd-2x", 4)[3]
    assert within(results, "time")["sam"].cut == 0, "none that sets the budget exceeds its own"


def test_no_score_decides_what_is_compared(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        return records.assign(test_acc=1 - records["test_acc"])

    for equal in ("epochs", "passes", "time"):
        one, other = within(make_results(LABELS), equal), within(make_results(LABELS, change=change), equal)
        assert [(row.reference, row.budget) for row in one.values()] == [
            (row.reference, row.budget) for row in other.values()
        ]


def test_without_sam_the_dearest_of_all_sets_the_budget(make_results: Make) -> None:
    found = within(make_results({"sgd": {}, "sgd-2x": {"epochs": 12}, "adam": {}}), "passes")
    assert found["adam"].budget == 132
    assert (found["adam"].reference, found["sgd-2x"].reference) == ("sgd-2x", "")


def test_seeds_that_are_lost_are_not_paired(make_results: Make) -> None:
    lost = {("sgd-2x", "", 0): "failed", ("sam", "", 4): "diverged"}
    found = within(make_results(LABELS, status=lost), "passes")
    assert (len(found["sam"].values), found["sam"].difference.n) == (4, 3)
    assert len(found["sgd"].values) == 4, "no budget without a run of sam"


def test_the_table_has_a_block_a_budget_and_condition(make_results: Make) -> None:
    results = make_results(LABELS, vary={"label_noise": [0.2, 0.4]})
    table = next(table for table in tables.build(Study(results)) if table.name == "budgets")
    assert [name.split(" (")[0] for name, _ in table.blocks()] == [
        f"label noise={noise}, equal={equal}" for noise in ("0.2", "0.4") for equal in ("epochs", "passes", "time")
    ]
    assert len(table.numbers) == len(table.rows) == 2 * (2 + 3 + 3)
    assert "Differences at equal passes and time are to sgd-2x." in table.footnotes
    first = table.numbers.iloc[0]
    assert first["test_mean [%]"] == pytest.approx(100 * np.mean(curve(make_results(LABELS), "sgd", 6)), abs=3)


def test_one_optimizer_has_no_budgets(make_results: Make) -> None:
    names = [table.name for table in tables.build(Study(make_results({"sgd": {}})))]
    assert not {"budgets", "statistics"} & set(names)


def test_a_run_that_stands_under_two_labels_counts_once_in_each(make_results: Make) -> None:
    alone, twice = make_results({"sgd": {}, "sam": {}}), make_results({"sgd": {}, "twin": {}, "sam": {}})
    for frame in (twice.records, twice.curves):
        frame["run_id"] = frame["run_id"].str.replace("twin", "sgd")
    for equal in ("epochs", "passes", "time"):
        once, both = within(alone, equal), within(twice, equal)
        assert [len(both[label].values) for label in ("sgd", "twin", "sam")] == [5, 5, 5]
        assert both["sgd"].values.tolist() == once["sgd"].values.tolist()
