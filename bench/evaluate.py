"""Measuring a model on the splits: in eval mode, un-augmented, every example weighing the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.tasks.base import Data, Split, Task

BATCH = 1024
"""Examples at a time; it does not change the numbers beyond rounding."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Data, autocast: torch.autocast) -> dict[str, float]:
    """Loss (mean over examples, nats) and score on all splits, and the gaps between training and test.

    Training examples with true and with replaced labels are also told apart, and the gap is taken from those with
    true labels: gap_loss = test_loss - train_clean_loss, gap_<score> = train_clean_<score> - test_<score>.
    """
    was_training = model.training
    model.eval()
    key = task.metric.key
    measured: dict[str, float] = {}
    for name, split in (("train", data.train), ("val", data.val), ("test", data.test)):
        outputs = _outputs(model, task, split, autocast)
        losses = task.losses(outputs, split.targets)
        parts: dict[str, Tensor | slice] = {name: slice(None)}
        if name == "train":
            parts["train_clean"] = slice(None) if split.noisy is None else ~split.noisy
            if split.noisy is not None:
                parts["train_noisy"] = split.noisy
        for part, which in parts.items():
            measured[f"{part}_loss"] = losses[which].double().mean().item()
            measured[f"{part}_{key}"] = task.score(outputs[which], split.targets[which])
    model.train(was_training)
    measured["gap_loss"] = measured["test_loss"] - measured["train_clean_loss"]
    measured[f"gap_{key}"] = measured[f"train_clean_{key}"] - measured[f"test_{key}"]
    return measured


def _outputs(model: nn.Module, task: Task, split: Split, autocast: torch.autocast) -> Tensor:
    with autocast:
        return torch.cat([model(task.model_inputs(inputs)).float() for inputs in torch.split(split.inputs, BATCH)])
