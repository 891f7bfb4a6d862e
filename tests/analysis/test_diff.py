"""`bench diff`: what two result sets have in common, and by how much they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bench.analysis import render
from bench.analysis.diff import Comparison, compare
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store.records import Results

Make = Callable[..., Results]


@pytest.fixture
def results(make_results: Make) -> Results:
    return make_results()


def altered(results: Results, **meta: Any) -> Results:
    return Results(cast(Any, {**results.meta, **meta}), results.records.copy(), results.curves)


def table(found: Comparison, name: str) -> Table:
    (one,) = (table for table in found.tables if table.name == name)
    return one


def cells(found: Comparison, name: str) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in table(found, name).rows}


def test_a_result_set_is_the_same_as_itself_and_has_no_other_settings(results: Results) -> None:
    found = compare(Study(results), Study(results))
    assert found.same
    assert [table.name for table in found.tables] == ["runs", "differences"]
    assert cells(found, "runs")["all"] == ["55"] * 5
    assert all(row[3] == "+0.00 (all equal)" for row in table(found, "differences").rows)


def test_other_machines_and_times_do_not_count_as_long_as_bits_are_equal(results: Results) -> None:
    other = altered(results)
    other.records["train_seconds"] *= 3
    other.records["device"] = "Another"
    found = compare(Study(results), Study(other))
    assert found.same
    assert table(found, "settings").rows == [["environment", "device", "AMD EPYC", "Another"]]


@pytest.mark.parametrize("column", ["weights_sha256", "test_acc", "train_loss", "status"])
def test_one_other_bit_is_counted(results: Results, column: str) -> None:
    other = altered(results)
    value = {"weights_sha256": "00", "status": "diverged"}.get(column)
    changed = other.records[column].tolist()
    changed[7] = value or changed[7] + 1e-12
    other.records[column] = changed
    found = compare(Study(results), Study(other))
    assert not found.same
    label = str(results.records.loc[7, "optimizer"])
    assert cells(found, "runs")[label][-2:] == ["5", "4"]
    assert cells(found, "runs")["all"] == ["55", "55", "55", "55", "54"]


def test_runs_that_only_one_side_has_are_counted(make_results: Make, results: Results) -> None:
    fewer = make_results(seeds=(0, 1, 2))
    found = compare(Study(results), Study(fewer))
    assert not found.same
    assert cells(found, "runs")["sam"] == ["20", "12", "12", "12", "12"]
    assert ["experiment", "seeds", "[0, 1, 2, 3, 4]", "[0, 1, 2]"] in table(found, "settings").rows
    assert cells(found, "differences")["sgd"][-1] == "3"


def test_differences_are_paired_by_seed_with_a_t_interval(results: Results) -> None:
    other = altered(results)
    sgd = other.records["optimizer"] == "sgd"
    moved = np.array([0.01, 0.02, 0.015, 0.012, 0.018])
    other.records.loc[sgd, "test_acc"] += moved
    other.records.loc[sgd, "train_seconds"] *= 2
    row = table(compare(Study(results), Study(other)), "differences").numbers.iloc[0]
    low, high = stats.t.interval(0.95, 4, moved.mean(), stats.sem(moved))
    assert row["difference_mean [%]"] == pytest.approx(1.5)
    assert (row["difference_low [%]"], row["difference_high [%]"]) == pytest.approx((100 * low, 100 * high))
    assert row["p_paired_t"] == pytest.approx(stats.ttest_1samp(moved, 0).pvalue)
    assert row["seconds_mean"] == pytest.approx(results.records.loc[sgd, "train_seconds"].mean())
    assert row["pairs"] == 5


def test_another_choice_is_named(results: Results) -> None:
    other = altered(results)
    chosen = cells(compare(Study(results), Study(results)), "differences")
    before = next(name for name in chosen if name.startswith("sam"))
    best = (other.records["optimizer"] == "sam") & (other.records["rho"] == 0.5)
    other.records.loc[best, "val_acc"] = 0.99
    assert f"{before} → sam (rho=0.5)" in cells(compare(Study(results), Study(other)), "differences")


def test_other_hyperparameters_and_data_are_listed(results: Results) -> None:
    other = altered(results, data={**results.meta["data"], "label_noise": 0.4}, labels=["sgd", "sam", "asam"])
    other = replace(other, records=other.records[other.records["optimizer"].isin(other.meta["labels"])].copy())
    other.records["momentum"] = np.where(other.records["optimizer"] == "sam", 0.8, other.records["momentum"])
    rows = table(compare(Study(results), Study(other)), "settings").rows
    assert ["data", "label_noise", "0.2", "0.4"] in rows
    assert ["sam", "momentum", "0.9", "0.8"] in rows
    assert ["optimizers", "adam", "there", "–"] in rows
    assert not [row for row in rows if row[0] == "sgd"]


def test_a_setting_that_an_older_version_did_not_know_is_no_difference(results: Results) -> None:
    older = altered(results, data={key: value for key, value in results.meta["data"].items() if key != "train_size"})
    del older.meta["vary"]
    assert compare(Study(older), Study(results)).same
    assert [one.name for one in compare(Study(older), Study(results)).tables] == ["runs", "differences"]


def test_conditions_are_compared_each_for_itself(make_results: Make) -> None:
    results = make_results(vary={"label_noise": [0.2, 0.4]})
    found = table(compare(Study(results), Study(results)), "differences")
    assert found.columns[:2] == ["label noise", "optimizer"]
    assert [row[0] for row in found.rows] == ["0.2"] * 5 + ["0.4"] * 5


def test_unfinished_runs_do_not_stop_it(make_results: Make, results: Results) -> None:
    status = {("sgd", "", seed): "missing" for seed in range(5)}
    found = compare(Study(results), Study(make_results(status=status)))
    assert not found.same
    assert cells(found, "differences")["sgd"][1:] == ["–", "–", "–", "0"]


def test_nothing_in_common_is_an_error(make_results: Make, make_glue: Make, results: Results) -> None:
    with pytest.raises(BenchError, match="A measures accuracy, B score"):
        compare(Study(results), Study(make_glue()))
    with pytest.raises(BenchError, match=r"no optimizer is in both: A has sgd, .* B has lion"):
        compare(Study(results), Study(make_results({"lion": {}}, baseline="lion")))


@pytest.mark.parametrize("form", ["md", "csv"])
def test_it_is_rendered_and_the_same_bytes_come_twice(results: Results, form: str) -> None:
    other = replace(results, records=results.records.assign(torch="2.0"))
    texts = [[render.render(one, form) for one in compare(Study(results), Study(other)).tables] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3
    assert pd.notna(texts[0][0])
