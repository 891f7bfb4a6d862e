"""The rows of a summary against hand-worked numbers; above all, what may and may not decide a choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest

from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store.records import Results

Make = Callable[..., Results]
LABELS = ["sgd", "sgd-2x", "adam", "sam", "asam"]
TWO = {"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2, 0.4))}}


def setting(
    **columns: Mapping[tuple[str, str], list[float] | float],
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of records: column -> {(label, config): values over the seeds}."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        for column, cells in columns.items():
            for (label, config), values in cells.items():
                rows = (records["optimizer"] == label) & (records["config"].fillna("") == config)
                records.loc[rows, column] = values
        return records

    return change


def summarize(results: Results) -> list[Row]:
    return [row for row in Study(results).rows if row.chosen]


def sweep_rows(results: Results) -> list[Row]:
    return [row for row in Study(results).rows if row.label in results.meta["sweeps"]]


def chosen(rows: list[Row], label: str) -> Row:
    return next(row for row in rows if row.label == label and row.chosen)


def test_a_row_by_hand(make_results: Make) -> None:
    change = setting(
        test_acc={("sgd", ""): [0.90, 0.92, 0.94], ("sam", "rho=0.1"): [0.93, 0.93, 0.96]},
        val_acc={("sam", "rho=0.1"): 0.99},
        train_seconds={("sgd", ""): [10.0, 10.0, 10.0], ("sam", "rho=0.1"): [21.0, 19.0, 20.0]},
        passes={("sgd", ""): 100.0, ("sam", "rho=0.1"): 200.0},
    )
    sgd, sam = summarize(make_results(TWO, seeds=(0, 1, 2), change=change))
    assert (sgd.label, sgd.config, sgd.difference, sgd.seconds_ratio) == ("sgd", "", None, 1.0)
    assert (sam.name, sam.planned, sam.done, sam.swept) == ("sam (rho=0.1)", 3, 3, {"rho": 0.1})
    assert (sam.seconds_ratio, sam.passes_ratio, sam.passes) == (2.0, 2.0, 200.0)
    # sgd: mean .92, sd .02, t(2) = 4.302653, half-width 4.302653 * .02 / sqrt(3)
    assert sgd.test_metric.mean == pytest.approx(0.92)
    assert sgd.test_metric.half_width == pytest.approx(4.302653 * 0.02 / np.sqrt(3), rel=1e-6)
    # differences .03, .01, .02: mean .02, sd .01, t = .02 / (.01 / sqrt(3)) = 3.4641, p = .07418;
    # all positive, so 2 of 8 sign patterns reach their sum
    assert sam.difference is not None
    assert sam.difference.difference.mean == pytest.approx(0.02)
    assert sam.difference.difference.half_width == pytest.approx(4.302653 * 0.01 / np.sqrt(3), rel=1e-6)
    assert sam.difference.p_t == pytest.approx(0.07418, abs=1e-5)
    assert sam.difference.p_sign_flip == 0.25


def test_validation_chooses_although_test_would_choose_otherwise(make_results: Make) -> None:
    change = setting(
        val_acc={("sam", "rho=0.1"): 0.7, ("sam", "rho=0.2"): 0.8, ("sam", "rho=0.4"): 0.7},
        test_acc={("sam", "rho=0.1"): 0.99, ("sam", "rho=0.2"): 0.5, ("sam", "rho=0.4"): 0.99},
    )
    assert chosen(summarize(make_results(TWO, change=change)), "sam").config == "rho=0.2"


def test_lower_is_better_turns_the_choice_round(make_results: Make) -> None:
    change = setting(val_acc={("sam", f"rho={rho}"): rho for rho in (0.1, 0.2, 0.4)})
    for better, config in ((True, "rho=0.4"), (False, "rho=0.1")):
        results = make_results(TWO, change=change, metric={**make_results().meta["metric"], "higher_is_better": better})
        assert chosen(summarize(results), "sam").config == config


def test_ties_go_to_the_lower_validation_loss_then_to_the_first(make_results: Make) -> None:
    configs = [("sam", "rho=0.1"), ("sam", "rho=0.2"), ("sam", "rho=0.4")]
    # Equal means whose sums differ in the last bit: order of summation must not decide.
    accuracy = dict(zip(configs, ([0.1, 0.2, 0.6], [0.6, 0.2, 0.1], [0.2, 0.6, 0.1]), strict=True))
    for losses, config in (((0.5, 0.4, 0.45), "rho=0.2"), ((0.4, 0.4, 0.4), "rho=0.1")):
        change = setting(val_acc=accuracy, val_loss=dict(zip(configs, losses, strict=True)))
        results = make_results(TWO, seeds=(0, 1, 2), change=change)
        assert chosen(summarize(results), "sam").config == config


@pytest.mark.parametrize("status", ["diverged", "failed", "running", "partial", "missing"])
def test_an_incomplete_configuration_ranks_behind_every_complete_one(make_results: Make, status: str) -> None:
    change = setting(val_acc={("sam", "rho=0.1"): 0.5, ("sam", "rho=0.2"): 0.6, ("sam", "rho=0.4"): 0.99})
    lost = {("sam", "rho=0.4", 3): status}
    rows = Study(make_results(TWO, status=lost, change=change)).rows
    assert chosen(rows, "sam").config == "rho=0.2"
    last = rows[-1]
    assert (last.config, last.done, last.complete) == ("rho=0.4", 4, False)
    assert last.diverged + last.failed + last.unfinished == 1


def test_among_incomplete_ones_finished_runs_decide(make_results: Make) -> None:
    lost = {("sam", f"rho={rho}", 0): "failed" for rho in (0.1, 0.2, 0.4)}
    lost |= {("sam", "rho=0.1", seed): "missing" for seed in range(1, 5)}
    change = setting(val_acc={("sam", "rho=0.2"): 0.6, ("sam", "rho=0.4"): 0.7})
    row = chosen(summarize(make_results(TWO, status=lost, change=change)), "sam")
    assert (row.config, row.done, row.failed) == ("rho=0.4", 4, 1)


def test_metrics_of_runs_that_are_not_done_never_count(make_results: Make) -> None:
    """A partial run may carry numbers; only "done" ones enter a mean."""
    lost = {("sgd", "", 0): "diverged"}
    change = setting(test_acc={("sgd", ""): [0.0, 0.9, 0.9, 0.9, 0.9]})
    assert chosen(Study(make_results(status=lost, change=change)).rows, "sgd").test_metric.mean == pytest.approx(0.9)


def test_difference_and_ratio_use_the_seeds_that_both_have(make_results: Make) -> None:
    lost = {("sgd", "", 0): "missing", ("adam", "", 4): "failed"}
    change = setting(
        test_acc={("sgd", ""): [np.nan, 0.9, 0.9, 0.9, 0.0], ("adam", ""): [0.0, 0.8, 0.9, 1.0, np.nan]},
        train_seconds={("sgd", ""): [np.nan, 1, 2, 3, 100], ("adam", ""): [100, 2, 4, 6, np.nan]},
    )
    adam = chosen(Study(make_results(status=lost, change=change)).rows, "adam")
    assert adam.difference is not None
    assert adam.difference.difference.n == 3
    assert adam.difference.difference.mean == pytest.approx(0.0)
    assert adam.seconds_ratio == pytest.approx(2.0)


def test_nothing_finished_keeps_its_rows(make_results: Make) -> None:
    sgd, sam = summarize(make_results(TWO, seeds=(0, 1), change=lambda records: records.assign(status="missing")))
    assert (sgd.done, sgd.unfinished, sgd.test_metric.n) == (0, 2, 0)
    assert np.isnan([sgd.test_metric.mean, sgd.passes, sam.seconds_ratio]).all()
    assert sam.name == "sam (no run finished)"


@pytest.mark.parametrize(("best", "edges"), [(0.1, {"rho": "smallest"}), (0.2, {}), (0.4, {"rho": "largest"})])
def test_a_choice_at_the_edge_of_the_sweep_is_flagged(make_results: Make, best: float, edges: dict[str, str]) -> None:
    change = setting(val_acc={("sam", f"rho={rho}"): 1.0 - (rho != best) for rho in (0.1, 0.2, 0.4)})
    assert chosen(Study(make_results(TWO, change=change)).rows, "sam").edges == edges


def test_two_values_are_both_edges_and_one_is_none(make_results: Make) -> None:
    labels = {"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
    assert [row.edges for row in Study(make_results(labels)).rows] == [{}, {}, {"rho": "largest"}]
    alone = {"sgd": {}, "sam": {"sweep": ("rho", (0.1,))}}
    assert [row.edges for row in Study(make_results(alone)).rows] == [{}, {}]


def test_of_several_swept_keys_the_edges_are_those_of_each(make_results: Make) -> None:
    results = make_results(TWO, sweeps={"sam": ["lr", "rho"]})
    row = chosen(Study(results).rows, "sam")
    assert row.edges == {"rho": "largest"}
    assert set(row.swept) == {"lr", "rho"}


def test_rows_come_in_the_order_of_the_experiment_whatever_that_of_the_records(make_results: Make) -> None:
    shuffled = make_results(change=lambda records: records.iloc[::-1].reset_index(drop=True))
    assert [row.label for row in summarize(shuffled)] == LABELS
    assert len(sweep_rows(shuffled)) == 8
    assert sum(row.chosen for row in sweep_rows(shuffled)) == 2


def test_a_single_seed_has_means_and_no_intervals(make_results: Make) -> None:
    row = summarize(make_results(seeds=(3,)))[1]
    assert row.test_metric.n == 1
    assert np.isnan(row.test_metric.half_width)
    assert row.difference is not None
    assert np.isnan(row.difference.p_t)


def test_provenance_lists_what_is_mixed(make_results: Make) -> None:
    one = Study(make_results()).source
    assert one.devices == ["AMD EPYC (2 threads, fp32)"]
    assert (one.commits, one.mixed) == (["0123456789"], False)

    def second_machine(records: pd.DataFrame) -> pd.DataFrame:
        records.loc[3, "device"] = "NVIDIA H200"
        records.loc[3, "dirty"] = True
        return records

    two = Study(make_results(change=second_machine)).source
    assert two.devices == ["AMD EPYC (2 threads, fp32)", "NVIDIA H200 (2 threads, fp32)"]
    assert two.commits == ["0123456789", "0123456789 + uncommitted changes"]
    assert two.mixed
