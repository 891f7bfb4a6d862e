"""The number of forward-backward passes per optimizer step: as registered, else as counted.

A user's own method may take two without saying so. Equal budgets are shared out before any data is loaded, so steps are
counted on a small network.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.registry import optimizers, undeclared
from bench.core.spec import OptimizerSpec
from bench.optim.base.averaging import to_training
from bench.optim.base.closures import Closure
from bench.optim.base.wrapper import OptimizerWrapper
from bench.training.step import chosen_optimizer

STEPS = 12
"""Steps over which passes are averaged: a method may take a second pass in only some of its steps."""


def passes_per_step(choice: OptimizerSpec) -> float:
    """Return the forward-backward passes per step of an optimizer, the mean over many steps."""
    entry = optimizers[choice.name]
    ours = entry.factory.__module__.startswith("bench.")  # their contract test holds them to one; counting takes time
    if ours or entry.passes is not undeclared:
        return entry.passes(choice.params)
    base = optimizers[choice.base.name].factory if choice.base else None
    return _counted(entry.factory, base, choice.model_dump_json())


@functools.cache
def _counted(factory: Callable[..., Any], base: Callable[..., Any] | None, choice_json: str) -> float:
    """Count the passes per step over a few steps on a small network; return 1 if the optimizer fails on it.

    Args:
        factory, base: tell optimizers of the same name in different plug-ins apart.
    """
    # No devices: by default each GPU's generator would be kept, which makes a CUDA context while a launch is planned.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _count(OptimizerSpec.model_validate_json(choice_json))
        except Exception:  # one that needs another model, or is at fault: a dry run and the run itself tell
            return 1.0


def _count(choice: OptimizerSpec) -> float:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    inputs, targets = torch.randn(8, 4), torch.arange(8) % 3
    optimizer = chosen_optimizer(choice, list(model.parameters()), model)
    to_training(optimizer)
    if isinstance(optimizer, OptimizerWrapper):
        optimizer.total_steps = STEPS
    work = 0.0

    def losses(examples: Tensor | None = None) -> Tensor:
        nonlocal work
        x, y = (inputs, targets) if examples is None else (inputs[examples], targets[examples])
        # A forward pass alone is about a third of one with its backward pass.
        work += len(x) / len(inputs) * (1 if torch.is_grad_enabled() else 1 / 3)
        outputs = model(x)
        if getattr(optimizer, "takes_logits", False):
            outputs = optimizer.logits(outputs)  # type: ignore[attr-defined]
        return nn.functional.cross_entropy(outputs, y, reduction="none")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = losses().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    asked: Closure = losses if getattr(optimizer, "takes_losses", False) else closure
    for _ in range(STEPS):
        optimizer.step(asked)
    return work / STEPS
