"""Which optimizers are compared, over which seeds, and what may be called better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis.contrasts import Contrast
from bench.analysis.stats import holm
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]


def scores(**by_label: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """A change of records: test accuracy over the seeds by label ("sgd_2x" for "sgd-2x")."""

    def change(records: pd.DataFrame) -> pd.DataFrame:
        for label, values in by_label.items():
            records.loc[records["optimizer"] == label.replace("_", "-"), "test_acc"] = values
        return records

    return change


def find(found: list[Contrast], ours: str, theirs: str) -> Contrast:
    return next(one for one in found if (one.ours.label, one.theirs.label) == (ours, theirs))


def test_sam_meets_every_optimizer_and_the_others_meet_the_baseline(make_results: Make) -> None:
    pairs = [(one.ours.label, one.theirs.label) for one in Study(make_results()).contrasts]
    assert pairs == [
        *((label, "sgd") for label in ("sgd-2x", "adam", "sam", "asam")),
        *((label, "sgd-2x") for label in ("sam", "asam")),
        *((label, "adam") for label in ("sam", "asam")),
    ]


def test_without_sam_all_meet_the_baseline_only(make_results: Make) -> None:
    found = Study(make_results({"sgd": {}, "adam": {}, "adamw": {}})).contrasts
    assert [(one.ours.label, one.theirs.label) for one in found] == [("adam", "sgd"), ("adamw", "sgd")]


def test_budgets_that_are_shared_are_named(make_results: Make) -> None:
    found = Study(make_results()).contrasts
    assert find(found, "sam", "sgd").equal == "epochs"
    assert find(found, "sam", "sgd-2x").equal == "passes"
    assert find(found, "adam", "sgd").equal == "epochs and passes"
    assert find(Study(make_results({"sgd": {}, "sam": {"epochs": 10}})).contrasts, "sam", "sgd").equal == "neither"


def test_pairs_are_seeds_that_both_finished(make_results: Make) -> None:
    lost = {("sgd", "", 0): "failed", ("adam", "", 4): "diverged"}
    change = scores(sgd=[0.0, 0.1, 0.2, 0.3, 0.4], adam=[0.5, 0.7, 0.9, 0.8, 0.0])
    (found,) = Study(make_results({"sgd": {}, "adam": {}}, status=lost, change=change)).contrasts
    assert found.differences == pytest.approx([0.6, 0.7, 0.5])
    assert found.test.difference.mean == pytest.approx(0.6)


def test_runs_that_only_chose_hyperparameters_are_left_out(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records = scores(sgd=[0.9, 0.8, 0.7, 0.1, 0.1], adam=[0.95, 0.85, 0.8, 0.9, 0.9])(records)
        return records.assign(phase=np.where(records["seed"] < 3, "final", "tune"))

    (found,) = Study(make_results({"sgd": {}, "adam": {}}, change=change)).contrasts
    assert found.differences == pytest.approx([0.05, 0.05, 0.1])


def test_holm_is_over_all_that_meet_one_rival(make_results: Make) -> None:
    found = Study(make_results(vary={"label_noise": [0.2, 0.4]})).contrasts
    for rival in ("sgd", "sgd-2x", "adam"):
        block = [one for one in found if one.theirs.label == rival]
        assert {one.among for one in block} == {8 if rival == "sgd" else 4}
        assert [one.p for one in block] == pytest.approx(holm([one.test.p_t for one in block]))


def test_verdicts_follow_the_interval_and_the_corrected_p(make_results: Make) -> None:
    sgd = np.array([0.90, 0.91, 0.92, 0.93, 0.94])
    noise = np.array([0.001, -0.001, 0.0, 0.002, -0.002])
    change = scores(
        sgd=sgd,
        up=sgd + 0.05 + noise,
        down=sgd - 0.05 + noise,
        same=sgd + noise,
        shifted=sgd + 0.05,
        close=sgd + 0.002 + noise,
    )
    labels = ["sgd", "up", "down", "same", "shifted", "close"]
    found = Study(make_results({label: {} for label in labels}, change=change)).contrasts
    assert {one.ours.label: one.verdict for one in found} == {
        "up": "better",
        "down": "worse",
        "same": "unclear",
        "shifted": "untested",  # no spread, no t
        "close": "unclear",  # its interval is [+0.00004, +0.00396], but of four tests
    }
    close = find(found, "close", "sgd")
    assert not close.covers_zero
    assert close.test.p_t < 0.05 < close.p
    less = {"metric": {**make_results({"sgd": {}}).meta["metric"], "higher_is_better": False}}
    turned = Study(make_results({label: {} for label in labels}, change=change, **less)).contrasts
    assert (find(turned, "up", "sgd").verdict, find(turned, "down", "sgd").verdict) == ("worse", "better")
