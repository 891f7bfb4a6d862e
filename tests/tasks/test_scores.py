"""Scores by name: worked out by hand, with what is undefined, in a whole experiment; and class weights."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.tasks.csv_table import CsvTable
from bench.tasks.scores import CLASSES, NUMBERS

# True classes 0 0 0 0 1 1 2 2; found 0 0 0 1 1 2 2 0.
TRUE = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
FOUND = torch.tensor([0, 0, 0, 1, 1, 2, 2, 0])
BY_HAND = {
    "accuracy": 5 / 8,
    "balanced_accuracy": (3 / 4 + 1 / 2 + 1 / 2) / 3,
    # F1 is 2 * found / (true + answered): 2 * 3 / (4 + 4), 2 * 1 / (2 + 2), 2 * 1 / (2 + 2).
    "macro_f1": (3 / 4 + 1 / 2 + 1 / 2) / 3,
}
# Probabilities of class 1, of two classes: in order the labels are 0 1 0 1 1.
RANKED = torch.tensor([0.1, 0.3, 0.4, 0.6, 0.9]), torch.tensor([0, 1, 0, 1, 1])


def logits(probability: Tensor) -> Tensor:
    return torch.stack([1 - probability, probability], dim=1).log()


def write(folder: Path, rows: list[str], header: str = "x,y") -> str:
    path = folder / "own.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def three(tmp_path: Path) -> Callable[..., CsvTable]:
    """three(metric=..., ...): three classes in 60 rows, of which the last has 6."""
    rows = [f"{n},{'c' if n % 10 == 2 else 'ab'[n % 2]}" for n in range(60)]
    return lambda **settings: CsvTable(path=write(tmp_path, rows), target="y", **settings)


@pytest.fixture
def number(tmp_path: Path) -> Callable[..., CsvTable]:
    """number(...): 30 rows whose number to predict has a deviation far from 1."""
    rows = [f"{n},{1000 + 70 * n}" for n in range(30)]
    return lambda **settings: CsvTable(path=write(tmp_path, rows), target="y", regression=True, **settings)


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_of_classes_by_hand(three: Callable[..., CsvTable], name: str) -> None:
    task = three(metric=name)
    assert task.score(4.0 * F.one_hot(FOUND, 3), TRUE) == pytest.approx(BY_HAND[name], abs=1e-12)
    assert (task.metric.lowest, task.metric.highest, task.metric.scale) == (0.0, 1.0, 100.0)


def test_scores_of_an_order_by_hand(tmp_path: Path) -> None:
    path = write(tmp_path, [f"{n},{n % 2}" for n in range(30)])
    probability, true = RANKED
    # Pairs of a 1 and a 0: of six, 0.3 is above 0.1 only, 0.6 and 0.9 are above both.
    assert CsvTable(path=path, target="y", metric="auroc").score(logits(probability), true) == pytest.approx(5 / 6)
    # Precision where each 1 is found, from the top: 1/1, 2/2, 3/4.
    precise = CsvTable(path=path, target="y", metric="average_precision")
    assert precise.score(logits(probability), true) == pytest.approx((1 + 1 + 3 / 4) / 3)


def test_of_several_classes_the_order_is_each_against_the_rest(three: Callable[..., CsvTable]) -> None:
    from sklearn.metrics import roc_auc_score

    outputs, true = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), torch.arange(50) % 3
    expected = roc_auc_score(true, outputs.double().softmax(1), multi_class="ovr", average="macro")
    assert three(metric="auroc").score(outputs, true) == pytest.approx(expected, abs=1e-12)
    only_two = true != 2  # as in a part of the examples: the third class has no order there
    score = three(metric="auroc").score(outputs[only_two], true[only_two])
    assert 0.0 < score < 1.0


@pytest.mark.parametrize("name", ["auroc", "average_precision"])
def test_what_has_no_order_is_nan(three: Callable[..., CsvTable], name: str) -> None:
    task = three(metric=name)
    assert math.isnan(task.score(torch.randn(5, 3), torch.zeros(5, dtype=torch.long))), "one class"
    assert math.isnan(task.score(torch.full((8, 3), torch.nan), TRUE)), "diverged"


def test_errors_are_in_the_units_of_the_target(number: Callable[..., CsvTable]) -> None:
    train, _ = number().load()
    # All answers one too high as the model has them: one deviation of the training rows.
    outputs = train.targets[:, None] + 1.0
    deviation = number().unit
    assert 500 < deviation < 800
    assert number(metric="mae").score(outputs, train.targets) == pytest.approx(deviation, rel=1e-6)
    outputs = train.targets[:, None] + torch.tensor([3.0, 4.0]).repeat(len(train) // 2)[:, None]
    assert number(metric="rmse").score(outputs, train.targets) == pytest.approx(math.sqrt(12.5) * deviation, rel=1e-6)
    assert not number(metric="mae").metric.higher_is_better


def test_further_scores_are_recorded_beside_the_one_that_is_chosen_by(three: Callable[..., CsvTable]) -> None:
    task = three(metric="macro_f1", report=["accuracy", "macro_f1", "auroc", "accuracy"])
    details = task.details(4.0 * F.one_hot(FOUND, 3), TRUE)
    assert [*details] == ["acc", "auroc"]
    assert details["acc"] == 5 / 8
    assert three().details(torch.randn(8, 3), TRUE) == {}


def test_balanced_weights_make_every_class_weigh_the_same(three: Callable[..., CsvTable]) -> None:
    task = three(class_weights="balanced")
    train, _ = task.load()
    outputs = torch.zeros(len(train), 3)
    losses = task.losses(outputs, train.targets)
    sums = [losses[train.targets == c].sum().item() for c in range(3)]
    assert sums == pytest.approx([math.log(3) * len(train) / 3] * 3, rel=1e-5)
    assert losses.mean().item() == pytest.approx(math.log(3), rel=1e-5), "in all it is as large as without weights"
    mixed = F.one_hot(train.targets, 3).float()
    torch.testing.assert_close(task.losses(outputs, mixed), losses)
    assert "same" in task.loss_name
    assert torch.equal(
        three().losses(outputs, train.targets), F.cross_entropy(outputs, train.targets, reduction="none")
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "mae"}, 'task.metric: "mae" is no score of classes; '),
        ({"report": ["accuracy", "r2"]}, 'task.report: "r2" is no score of classes; '),
        ({"metric": "auroc", "regression": True}, 'task.metric: "auroc" is no score of numbers; '),
        ({"class_weights": "balanced", "regression": True}, "task.class_weights is for classes, "),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    path = write(tmp_path, [f"{n},{n % 2}" for n in range(30)])
    with pytest.raises(BenchError) as error:
        CsvTable(path=path, target="y", **settings)
    assert message in str(error.value)
    assert "own.csv" in str(error.value)


def test_every_name_has_a_metric_of_its_own() -> None:
    keys = [score.metric.key for score in [*CLASSES.values(), *NUMBERS.values()]]
    assert len({*keys}) == len(keys)


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_an_experiment_chooses_and_reports_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: Callable[..., Any]
) -> None:
    dice = random.Random(0)
    points = [(dice.gauss(0, 1), dice.gauss(0, 1)) for _ in range(240)]
    write(tmp_path, [f"{a:.3f},{b:.3f},{'rare' if a + b > 1.3 else 'common'}" for a, b in points], "a,b,y")
    (tmp_path / "own.toml").write_text(
        """
        model = "mlp"
        baseline = "sgd"
        seeds = 2
        [task]
        name = "csv"
        path = "own.csv"
        target = "y"
        metric = "macro_f1"
        report = ["auroc"]
        class_weights = "balanced"
        [train]
        epochs = 3
        [optimizers.sgd]
        lr = 0.1
        [optimizers.sam]
        base = "sgd"
        lr = 0.1
        """
    )
    monkeypatch.chdir(tmp_path)
    said = bench("run", "own.toml", "--jobs", "1")
    assert said.status == 0, said.err
    records = pd.read_csv(tmp_path / "results" / "own" / "records.csv")
    for column in ("val_macro_f1", "test_macro_f1", "gap_macro_f1", "val_auroc", "test_auroc"):
        assert records[column].between(-1, 1).all(), column
    assert json.loads((tmp_path / "results" / "own" / "experiment.json").read_text())["metric"]["key"] == "macro_f1"
    assert "test macro F1" in (tmp_path / "results" / "own" / "tables" / "results.md").read_text()
