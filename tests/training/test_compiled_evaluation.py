"""Evaluation through the code that training was compiled to: predictions of the model, in batches of one size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import train as loop
from bench.core.registry import load_builtins
from bench.data.splits import Split
from bench.store.run_folder import Store
from bench.tasks.base import Data
from bench.training import evaluate as evaluation
from bench.training import precision
from bench.training.evaluate import SAFETY, compilable, evaluate, outputs, outputs_with, twin_of
from bench.training.step import set_up
from tests.training.test_folding import Counted, Images, Ranked
from tests.training.test_kept_code import make_spec

load_builtins()
CPU = torch.device("cpu")
FP32, BF16 = torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16)
EXAMPLES = 300


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    monkeypatch.setattr(evaluation, "FEWEST", EXAMPLES)
    logits = torch.randn(EXAMPLES, 4, generator=torch.Generator().manual_seed(0)) * 5
    return Split(logits, torch.arange(EXAMPLES) % 4)


class Shapes(nn.Module):
    """Notes the sizes of its batches and gives its inputs back, a little moved, as compiled code would."""

    def __init__(self, moved: float = 0.0) -> None:
        super().__init__()
        self.moved, self.sizes = moved, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return x + self.moved * torch.tensor([1.0, -1.0, 1.0, -1.0])


def test_every_batch_has_the_same_size_and_what_it_was_filled_with_is_left_out(split: Split) -> None:
    network = Shapes()
    found = outputs(network, Images(), split, FP32, fixed=True)
    assert network.sizes == [128, 128, 128]
    assert torch.equal(found, split.inputs)
    assert found.data_ptr() != split.inputs.data_ptr()


def test_in_full_precision_predictions_are_those_of_the_model(split: Split) -> None:
    apart, own = 0.004, split.inputs
    network = Shapes(apart)
    found = outputs_with(network, nn.Identity(), Images(), split, FP32, fixed=True)
    highest = own.topk(2, dim=1).values
    close = (highest[:, 0] - highest[:, 1]) / apart < 2 * SAFETY - 2
    assert close.any()
    assert torch.equal(found[close], own[close])
    assert torch.equal(found.argmax(dim=1), own.argmax(dim=1))
    assert set(network.sizes) == {128}
    off = Shapes(0.1)
    assert torch.equal(outputs_with(off, nn.Identity(), Images(), split, FP32, fixed=True), own)
    assert off.sizes == [128], "it is asked about 32 examples, and no more"


def test_in_bf16_more_is_rounding_and_the_compiled_outputs_count(split: Split) -> None:
    own, itself = split.inputs, Counted(nn.Identity())
    found = outputs_with(Shapes(0.1), itself, Images(), split, BF16, fixed=True)
    assert not (found == own).any()
    assert itself.examples == 30
    assert torch.equal(outputs_with(Shapes(5.0), itself, Images(), split, BF16, fixed=True), own)


def test_large_splits_of_classes_of_one_shape_go_through_compiled_code(split: Split) -> None:
    task, compiled = Images(), Shapes()
    assert compilable(task, split)
    assert not compilable(task, split[torch.arange(EXAMPLES - 1)])
    assert not compilable(Ranked(), split)
    assert not compilable(task, Split(split.inputs, split.targets.float()))
    assert not compilable(task, Split(split.inputs, split.targets, lengths=np.full(EXAMPLES, 4)))
    splits = {"train": split, "val": split[torch.arange(50)]}
    for autocast in (FP32, BF16):
        assert twin_of(nn.Identity(), task, splits, autocast, compiled) == (compiled, {"train"})
    assert twin_of(nn.Identity(), task, splits, BF16, None) == (None, set())


def test_an_evaluation_measures_what_the_model_predicts(split: Split) -> None:
    data, network = Data(split, split[torch.arange(50)], split, ""), Shapes(1e-5)
    quick = evaluate(nn.Identity(), Images(), data, FP32, compiled=network)
    assert len(network.sizes) == 8, "four for each of the two large splits"
    plain = evaluate(nn.Identity(), Images(), data, FP32)
    assert quick == pytest.approx(plain, rel=1e-4)
    assert quick["test_loss"] != plain["test_loss"]
    assert {name: quick[name] for name in plain if name.endswith("acc")} == {
        name: plain[name] for name in plain if name.endswith("acc")
    }


# ---- in a run ------------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """One entry for every graph that is compiled; graphs run as they were traced."""
    from torch._inductor import compile_fx

    seen: list[int] = []

    def counted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return graph.forward

    monkeypatch.setattr(compile_fx, "compile_fx", counted)
    monkeypatch.setattr(evaluation, "FEWEST", 500)  # of digits: those it is trained on, and the test set
    precision._kept = None
    yield seen
    precision._kept = None
    torch.compiler.reset()


def test_what_evaluates_is_compiled_before_the_clock_starts_and_kept_for_the_next_run(
    traced: list[int], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[int] = []

    def watched(model: nn.Module, *args: Any) -> Any:
        before.append(len(traced))
        assert isinstance(args[-1], nn.Module), "the compiled twin is handed on"
        assert args[-1] is not model
        return evaluate(model, *args)

    monkeypatch.setattr(loop, "evaluate", watched)
    compiled = []
    for seed in (1, 2):
        spec = make_spec(seed=seed, epochs=2)
        folder = Store(tmp_path).run(spec.run_id)
        with folder.claim():
            loop.train(spec, folder, CPU)
        compiled.append(len(traced))
    assert compiled[0] >= 2, "training and evaluation"
    assert before == [compiled[0]] * 4, "no evaluation, of the first run or the second, compiles"
    assert compiled[1] == compiled[0]


def test_without_a_large_split_nothing_is_compiled_for_evaluation(
    traced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up(make_spec(), CPU).warm_up()
    with_evaluation = len(traced)
    monkeypatch.setattr(evaluation, "FEWEST", 5000)
    precision._kept = None
    set_up(make_spec(), CPU).warm_up()
    assert len(traced) - with_evaluation < with_evaluation
