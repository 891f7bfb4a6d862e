"""Evaluation with batch norm folded into the layer before it: the predictions of the model itself, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.data.splits import Split
from bench.models.resnet import SmallResNet
from bench.tasks.base import Data, Task
from bench.train import weights_sha256
from bench.training import evaluate as evaluation
from bench.training.evaluate import SAFETY, evaluate, foldable, outputs, outputs_with
from bench.training.folding import folded

FP32 = torch.autocast("cpu", enabled=False)
EXAMPLES = 300


class Images(Task):
    num_outputs, input_shape = 4, (3, 8, 8)

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("the stand-in has no data")


class Ranked(Images):
    """Scored by more than the class that is predicted."""

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return outputs.softmax(dim=1).max().item()


def trained(model: nn.Module) -> nn.Module:
    """Return a model whose batch norms have statistics and scales of their own, in eval mode."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
        for _ in range(3):
            model.train()(torch.randn(64, 3, 8, 8) * 2 + 1)
    return model.eval()


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return trained(SmallResNet(8, 4, 3, 4))


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """More examples than a batch, and enough to be folded for."""
    monkeypatch.setattr(evaluation, "FEWEST", EXAMPLES)
    random = torch.Generator().manual_seed(0)
    return Split(torch.randn(EXAMPLES, 3, 8, 8, generator=random), torch.randint(4, (EXAMPLES,), generator=random))


class Counted(nn.Module):
    """A twin that counts what it is given, and moves its outputs."""

    def __init__(self, model: nn.Module, moved: float = 0.0) -> None:
        super().__init__()
        self.model, self.moved, self.examples = model, moved, 0

    def forward(self, x: Tensor) -> Tensor:
        self.examples += len(x)
        logits: Tensor = self.model(x)
        return logits + self.moved * torch.tensor([1.0, -1.0, 1.0, -1.0])


# ---- the twin ------------------------------------------------------------------------------------------------


def test_a_twin_has_no_batch_norm_and_the_same_outputs_and_the_model_is_as_it_was(model: nn.Module) -> None:
    before, names = weights_sha256(model), list(model.state_dict())
    twin = folded(model)
    assert twin is not None
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    x = torch.randn(20, 3, 8, 8)
    torch.testing.assert_close(twin(x), model(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(twin(x), model(x)), "rounding differs, or nothing was folded"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert (weights_sha256(model), list(model.state_dict())) == (before, names)


class Branching(nn.Module):
    """A net whose path depends on what it sees, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.conv(x)).flatten(1)
        return out if out.sum() > 0 else -out


def test_where_nothing_can_be_folded_there_is_no_twin(model: nn.Module) -> None:
    assert folded(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).eval()) is None, "no batch norm"
    assert folded(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 8), nn.Flatten()).eval()) is None, "it comes first"
    assert folded(trained(Branching())) is None
    model.get_submodule("blocks.0.bn1").register_forward_hook(lambda *_: None)
    assert folded(model) is None, "who looks at batch norm's outputs would see none"


# ---- its outputs ---------------------------------------------------------------------------------------------


def test_predictions_are_those_of_the_model_and_most_examples_go_through_the_twin_alone(
    model: nn.Module, split: Split
) -> None:
    twin = folded(model)
    assert twin is not None
    own, itself = outputs(model, Images(), split, FP32), Counted(model)
    found = outputs_with(twin, itself, Images(), split, FP32)
    assert torch.equal(found.argmax(dim=1), own.argmax(dim=1))
    assert not torch.equal(found, own)
    assert itself.examples < 50, "every tenth, and the few that are close"


def test_examples_that_are_close_are_given_to_the_model_itself() -> None:
    own, apart = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(0)) * 5, 0.004
    split = Split(own, torch.zeros(EXAMPLES, dtype=torch.long))
    found = outputs_with(Counted(nn.Identity(), apart), nn.Identity(), Images(), split, FP32)
    highest = own.topk(2, dim=1).values
    margins = (highest[:, 0] - highest[:, 1]) / apart
    close, far = margins < 2 * SAFETY - 2, margins > 2 * SAFETY + 2  # the twin moves the highest two apart by up to 2
    assert close.any()
    assert far.sum() > 100
    assert torch.equal(found[close], own[close])
    assert not (found[far] == own[far]).any()


def test_a_twin_that_is_off_is_not_asked_further(model: nn.Module, split: Split) -> None:
    own, off, nan = outputs(model, Images(), split, FP32), Counted(model, 0.1), Counted(model, float("nan"))
    for twin in (off, nan):
        assert torch.equal(outputs_with(twin, model, Images(), split, FP32), own)
        assert twin.examples == 30, "every tenth of 300: at most 32 examples"


# ---- when ----------------------------------------------------------------------------------------------------


def test_folding_is_for_large_splits_of_classes_in_full_precision(split: Split) -> None:
    task = Images()
    assert foldable(task, split, FP32)
    assert not foldable(task, split[torch.arange(EXAMPLES - 1)], FP32)
    assert not foldable(task, split, torch.autocast("cpu", torch.bfloat16))
    assert not foldable(Ranked(), split, FP32)
    assert not foldable(task, Split(split.inputs, split.targets.float()), FP32)


def test_an_evaluation_folds_once_and_measures_what_the_model_predicts(
    model: nn.Module, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(split, split[torch.arange(50)], split, "")
    twins: list[Any] = []

    def watched(model: nn.Module) -> nn.Module | None:
        twin = folded(model)
        twins.append(twin)
        return twin

    monkeypatch.setattr(evaluation, "folded", watched)
    quick, before = evaluate(model, Images(), data, FP32), weights_sha256(model)
    assert [twin is not None for twin in twins] == [True]
    monkeypatch.setattr(evaluation, "FEWEST", EXAMPLES + 1)
    plain = evaluate(model, Images(), data, FP32)
    assert len(twins) == 1
    scores = [name for name in plain if name.endswith("acc")]
    assert {name: quick[name] for name in scores} == {name: plain[name] for name in scores}
    assert quick == pytest.approx(plain, rel=1e-5)
    assert quick["test_loss"] != plain["test_loss"]
    assert {name: quick[name] for name in quick if name.startswith("val")} == {
        name: plain[name] for name in plain if name.startswith("val")
    }
    assert weights_sha256(model) == before
