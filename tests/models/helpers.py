"""Stand-in tasks of random images, and building a model as a run does."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bench.core import registry
from bench.data.splits import Split
from bench.tasks.base import Task

registry.load_builtins()

Kind = TypeVar("Kind", bound=nn.Module)


class Images(Task):
    """Random images of any shape; `mean` and `std` are there only if they are given."""

    def __init__(
        self, *shape: int, classes: int = 10, mean: tuple[float, ...] = (), std: tuple[float, ...] = ()
    ) -> None:
        self.input_shape = shape
        self.num_outputs = classes
        if mean:
            self.mean = mean
            self.std = std

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("the stand-in has no data")

    def batch(self, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Standardised images and their classes."""
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(size, *self.input_shape, generator=generator)
        return inputs, torch.randint(self.num_outputs, (size,), generator=generator)


CIFAR10 = Images(3, 32, 32)
CIFAR100 = Images(3, 32, 32, classes=100)
FASHION = Images(1, 28, 28)
DIGITS = Images(1, 8, 8)


def build(model: str, task: Task, seed: int = 0, **params: Any) -> nn.Module:
    torch.manual_seed(seed)
    built: nn.Module = registry.models[model].build(task, **params)
    return built


def count(model: str, task: Task, **params: Any) -> int:
    """Parameters of a model, which gets no memory and no values."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build(model, task, **params).parameters())


def of_type(model: nn.Module, kind: type[Kind]) -> list[Kind]:
    return [module for module in model.modules() if isinstance(module, kind)]
