"""Models that draw from Python's and numpy's own generators, and that keep buffers out of their state_dict."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.store.run_folder import Store
from bench.tasks.base import Task
from bench.train import Stopped, train

registry.load_builtins()
CPU = torch.device("cpu")


class Careless(nn.Module):
    """Draws weights and what it drops from the global generators, and counts in a buffer that it does not save."""

    calls: Tensor

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.linear = nn.Linear(64, task.num_outputs)
        with torch.no_grad():
            self.linear.bias.add_(random.random() + float(np.random.rand()))
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
            inputs = inputs * (1 + random.random() + float(np.random.rand()) + 0.01 * self.calls)
        logits: Tensor = self.linear(inputs.flatten(1))
        return logits


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.Entry(name="careless", factory=Careless)
    monkeypatch.setitem(registry.models._entries, "careless", entry)


def spec(method: str) -> RunSpec:
    base = ComponentSpec(name="sgd", params=registry.optimizers["sgd"].schema.model_validate({"lr": 0.01}).model_dump())
    optimizer = OptimizerSpec(**base.model_dump())
    if method == "sam":
        optimizer = OptimizerSpec(name="sam", params=registry.optimizers["sam"].schema().model_dump(), base=base)
    return RunSpec(
        task=ComponentSpec(name="digits"),
        model=ComponentSpec(name="careless"),
        optimizer=optimizer,
        data=DataSettings(validation=0.25),
        train=TrainSettings(epochs=2, batch_size=100),
        seed=3,
    )


def weights(root: Path, method: str, stop: Callable[[], bool] = lambda: False) -> str:
    one = spec(method)
    folder = Store(root).run(one.run_id)
    # A process that has drawn before: what a worker has done for other runs must not matter.
    random.random()
    np.random.rand()
    with folder.claim():
        result: dict[str, Any] = train(one, folder, CPU, stop=stop)
    return str(result["weights_sha256"])


@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_a_run_repeats_and_resumes_with_the_same_bits(method: str, tmp_path: Path) -> None:
    whole = weights(tmp_path / "whole", method)
    assert weights(tmp_path / "again", method) == whole
    asked = iter(range(1, 10_000))
    with pytest.raises(Stopped):
        weights(tmp_path / "parts", method, stop=lambda: next(asked) == 4)
    random.seed(99)
    np.random.seed(99)
    assert weights(tmp_path / "parts", method) == whole
