"""What an evaluation says of a model that gives one answer to everything, and in which batches it goes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.data.splits import Split
from bench.tasks.base import Data, Metric, Task
from bench.tasks.scores import NUMBERS
from bench.training.evaluate import batch_size, degeneracy, evaluate, outputs

CLASSES = torch.tensor([0, 1, 1, 2, 1, 0])


class Three(Task):
    num_outputs = 3
    input_shape = (1,)

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("the stand-in has no data")


class Number(Three):
    num_outputs, metric = 1, NUMBERS["r2"].metric

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return 1 - ((outputs[:, 0] - targets) ** 2).sum().item() / ((targets - targets.mean()) ** 2).sum().item()


class Always(nn.Module):
    """The same logits, whatever it sees, but for examples above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 1, torch.tensor([0.0, 0.0, 9.0]), torch.tensor([0.1, 0.2, 0.0])) + self.shift


def measured(val: list[float], test: list[float]) -> dict[str, float]:
    def split(inputs: list[float], targets: list[int]) -> Split:
        return Split(torch.tensor(inputs)[:, None], torch.tensor(targets))

    data = Data(split([0.0] * 4, [1, 1, 0, 2]), split(val, [0, 1, 2]), split(test, [0, 1, 2, 2]), "")
    return evaluate(Always(), Three(), data, torch.autocast("cpu", enabled=False))


def test_one_class_for_all_examples_is_told_for_validation_and_test() -> None:
    found = measured([0.0, 1.0, -1.0], [0.0, 0.0, 2.0, 2.0])
    assert (found["val_constant"], found["test_constant"]) == (1, 0)
    assert found["val_dummy_acc"] == pytest.approx(1 / 3)
    assert found["test_dummy_acc"] == 0.25
    assert "train_constant" not in found


def test_the_dummy_answers_with_the_most_common_class_of_the_training_set() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert degeneracy(Three(), torch.tensor([2, 2, 1]), logits, CLASSES)["dummy_acc"] == pytest.approx(1 / 6)
    assert degeneracy(Three(), torch.tensor([1, 1, 2]), logits, CLASSES)["dummy_acc"] == pytest.approx(1 / 2)


def test_one_number_for_all_examples_is_told_too() -> None:
    targets, learned = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([1.0, 3.0])
    alike = degeneracy(Number(), learned, torch.tensor([[2.0], [2.0 + 1e-7], [2.0]]), targets)
    assert alike == {"constant": 1, "dummy_r2": 0.0}, "the mean of what was learned from is that of the targets"
    assert degeneracy(Number(), learned, torch.tensor([[2.0], [2.1], [2.0]]), targets)["constant"] == 0


def test_where_one_answer_is_right_nothing_is_told() -> None:
    assert degeneracy(Three(), CLASSES, torch.zeros(2, 3), torch.tensor([1, 1])) == {}
    assert degeneracy(Three(), CLASSES, torch.zeros(1, 3), torch.tensor([1])) == {}


def test_a_score_that_is_not_defined_for_one_answer_is_left_out() -> None:
    class Odd(Three):
        metric = Metric("odd", "odd", "", 1.0, True, "")

        def score(self, outputs: Tensor, targets: Tensor) -> float:
            return math.nan

    assert degeneracy(Odd(), CLASSES, torch.zeros(6, 3), CLASSES) == {"constant": 1}


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(3, 1), torch.tensor([0, 1, 0])),
        (torch.zeros(3, 1), torch.tensor([False, True, False])),
        (torch.zeros(3), torch.tensor([0, 1, 0])),
        (torch.zeros(3, 2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [0, 0]])),
    ],
)
def test_of_one_output_for_two_classes_and_of_several_numbers_there_is_no_dummy(outputs: Any, targets: Any) -> None:
    assert degeneracy(Three(), targets, outputs, targets) == {"constant": 1}
    outputs[0] = 1
    assert degeneracy(Three(), targets, outputs, targets) == {"constant": 0}


class Widths(nn.Module):
    """Notes the shapes of its batches; answers with the first token of each text."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.shapes.append(tuple(ids.shape))
        return ids[:, :1].float()


def test_a_cpu_takes_texts_few_at_a_time_the_shortest_first_and_answers_keep_their_order() -> None:
    lengths = np.arange(40)[::-1] % 20 + 1
    texts = Split(torch.arange(40)[:, None].expand(40, 20), torch.zeros(40), lengths=lengths)
    assert batch_size(texts) == 16
    assert batch_size(Split(torch.zeros(40, 1), torch.zeros(40))) == 128
    model = Widths()
    found = outputs(model, Number(), texts, torch.autocast("cpu", enabled=False))
    assert found[:, 0].tolist() == list(range(40))
    assert model.shapes == [(16, 8), (16, 16), (8, 20)]
