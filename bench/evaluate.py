"""Measuring a model on the splits: in eval mode, un-augmented, every example weighing the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench import batching
from bench.tasks.base import Data, Split, Task

BATCH = {"cuda": 1024, "cpu": 128}
"""Examples at a time: a GPU wants them many, a CPU no more than its caches hold. It changes rounding, nothing else."""


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, data: Data, autocast: torch.autocast) -> dict[str, float]:
    """Loss (mean over examples, nats) and score on all splits, and the gaps between training and test.

    Training examples with true and with replaced labels are also told apart, and the gap is taken from those with
    true labels: gap_loss = test_loss - train_clean_loss, gap_<score> = train_clean_<score> - test_<score>. The task's
    further scores are those of validation and of the test sets. Of a split that the run does not have nothing is said.
    """
    was_training = model.training
    model.eval()
    key = task.metric.key
    measured: dict[str, float] = {}
    for name, split in data.splits().items():
        logits = outputs(model, task, split, autocast)
        losses = task.losses(logits, split.targets)
        parts: dict[str, Tensor | slice] = {name: slice(None)}
        if name == "train":
            parts["train_clean"] = slice(None) if split.noisy is None else ~split.noisy
            if split.noisy is not None:
                parts["train_noisy"] = split.noisy
        for part, which in parts.items():
            measured[f"{part}_loss"] = losses[which].double().mean().item()
            measured[f"{part}_{key}"] = task.score(logits[which], split.targets[which])
        if name != "train":
            measured |= {f"{name}_{what}": score for what, score in task.details(logits, split.targets).items()}
    model.train(was_training)
    if len(data.test):
        measured["gap_loss"] = measured["test_loss"] - measured["train_clean_loss"]
        measured[f"gap_{key}"] = measured[f"train_clean_{key}"] - measured[f"test_{key}"]
    return measured


@torch.no_grad()
def outputs(model: nn.Module, task: Task, split: Split, autocast: torch.autocast) -> Tensor:
    """The model's outputs (N, num_outputs), fp32, on all examples of a split; the caller has set eval mode."""
    size = BATCH[split.inputs.device.type]
    with autocast:
        if split.lengths is None:  # slices, where batches would copy
            return torch.cat([model(task.model_inputs(inputs)).float() for inputs in split.inputs.split(size)])
        batches = batching.by_length(split, size)
        found = torch.cat([model(task.model_inputs(batch.of(split)[0])).float() for batch in batches])
    ordered = torch.empty_like(found)
    ordered[torch.cat([batch.examples for batch in batches])] = found
    return ordered
