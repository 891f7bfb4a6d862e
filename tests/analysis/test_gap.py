"""The generalization gap has one sign everywhere, positive where the test set is worse, and says how it is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench.analysis import plots, report, tables
from bench.analysis.study import Study
from bench.data.splits import Split
from bench.store import records
from bench.store.records import Results
from bench.tasks.base import Data, Metric, Task
from bench.training.evaluate import evaluate

Make = Callable[..., Results]
PERPLEXITY = {
    "key": "acc",
    "name": "perplexity",
    "unit": "",
    "scale": 1.0,
    "higher_is_better": False,
    "definition": "exponential of the mean loss",
}
CLEAN = {"validation": 0.1, "train_size": None, "label_noise": 0.0}
FEW = {"sgd": {"test": 0.9}, "sam": {"test": 0.93, "sweep": ("rho", (0.1, 0.2, 0.5))}}


@pytest.fixture
def make(make_results: Make, tmp_path: Path) -> Callable[..., Results]:
    """make(metric, **meta): results of a metric, read from files of a version that took every gap as train - test."""

    def of(**meta: Any) -> Results:
        def worse_on_test(frame: pd.DataFrame) -> pd.DataFrame:
            lower = not meta.get("metric", {"higher_is_better": True})["higher_is_better"]
            test = frame["train_clean_acc"] + (0.25 if lower else -0.25)
            return frame.assign(test_acc=test, gap_acc=frame["train_clean_acc"] - test)

        made = make_results(FEW, change=worse_on_test, **meta)
        curves = made.curves.assign(test_acc=made.curves["train_clean_acc"] + 0.25)
        records.publish(Results(made.meta, made.records, curves), tmp_path)
        return records.read(tmp_path)

    return of


def labels(results: Results) -> set[str]:
    return {ax.get_ylabel() for one in plots.draw(Study(results)).values() for ax in one.figure.axes}


def test_positive_is_worse_on_test_for_metrics_of_which_less_is_better(make: Callable[..., Results]) -> None:
    for results in (make(), make(metric=PERPLEXITY)):
        assert all(row.gap_metric.mean == pytest.approx(0.25) for row in Study(results).rows)
    drawn = plots.draw(Study(make(metric=PERPLEXITY)), only=["gap"])["gap"].data
    assert (drawn["gap_acc_mean"] > 0).all()


def test_captions_and_axes_name_the_sides_in_the_order_they_are_taken(make: Callable[..., Results]) -> None:
    less, more = make(metric=PERPLEXITY), make()
    assert {"test − train perplexity", "test − train loss (nats)"} <= labels(less)
    assert "train − test accuracy (points)" in labels(more)
    assert not any("train − test" in label for label in labels(less))
    said = "Gap: test perplexity minus train perplexity (true labels, no augmentation), so that positive is worse"
    assert said in " ".join(tables.build(Study(less))[0].caption)
    assert "Gap: train accuracy (true labels, no augmentation) minus test." in " ".join(
        tables.build(Study(more))[0].caption
    )


def test_true_labels_are_spoken_of_where_others_were_put_in_their_place(
    make: Callable[..., Results], make_results: Make, tmp_path: Path
) -> None:
    clean, noisy = make(data=CLEAN), make()
    texts = [
        "\n".join(
            [
                *labels(one),
                *(" ".join(table.caption) for table in tables.build(Study(one))),
                report.page(Study(one), [], {}),
            ]
        )
        for one in (clean, noisy)
    ]
    assert "true labels" not in texts[0]
    assert texts[1].count("true labels") >= 4
    varied = make_results(FEW, vary={"label_noise": [0.0, 0.2]}, data=CLEAN)
    assert "true labels" in " ".join(tables.build(Study(varied))[0].caption)


@pytest.mark.parametrize("higher", [True, False])
def test_a_run_records_the_gap_with_that_sign(higher: bool) -> None:
    class Counting(Task):
        num_outputs, input_shape = 2, (1,)
        metric = Metric("count", "count", "", 1.0, higher, "examples of the first class")

        def load(self) -> tuple[Split, Split]:
            raise AssertionError("the stand-in has no data")

        def score(self, outputs: torch.Tensor, targets: torch.Tensor) -> float:
            return float((targets == 0).sum())

    train, val, test = (Split(torch.zeros(4, 1), torch.tensor([0] * n + [1] * (4 - n))) for n in (3, 2, 1))
    found = evaluate(
        torch.nn.Linear(1, 2), Counting(), Data(train, val, test, ""), torch.autocast("cpu", enabled=False)
    )
    assert found["gap_count"] == (2.0 if higher else -2.0)
    assert found["gap_loss"] == found["test_loss"] - found["train_clean_loss"]


def test_captions_say_of_how_many_training_examples_points_are(make_results: Make) -> None:
    """All points but the last: those of runs that train on more examples than `eval_train`."""
    plain = make_results()

    def captions(results: Results) -> set[bool]:
        some = "Before the last epoch, training points are of 5,000 examples"
        drawn = plots.draw(Study(results), only=["curves", "gap", "paired"])
        assert some not in drawn["paired"].caption
        return {some in drawn[name].caption for name in ("curves", "gap")}

    def trained(examples: int, eval_train: int | str) -> Results:
        seen = plain.records.assign(examples=examples * plain.records["epochs"], eval_train=eval_train)
        return replace(plain, records=seen)

    assert captions(plain) == {False}
    assert captions(trained(5000, 5000)) == {False}
    assert captions(trained(45_000, "all")) == {False}
    assert captions(trained(45_000, 5000)) == {True}
