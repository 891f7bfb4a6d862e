"""A plain multi-layer perceptron, for small tables and quick trials."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import nn

from bench.core.registry import register_model
from bench.tasks.base import Task


@register_model("mlp", title="MLP")
def mlp(
    task: Task,
    *,
    width: Annotated[int, Field(ge=1)] = 128,
    depth: Annotated[int, Field(ge=1)] = 2,
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> nn.Module:
    """Flatten, then `depth` hidden layers of `width` with ReLU (and dropout), then a linear output."""
    layers: list[nn.Module] = [nn.Flatten()]
    # All numbers of an example, whatever its shape.
    size = math.prod(task.input_shape)
    for _ in range(depth):
        layers += [nn.Linear(size, width), nn.ReLU()]
        # A rate of 0 adds no layer: the names in the state dict are those of a net without dropout.
        if dropout:
            layers.append(nn.Dropout(dropout))
        size = width
    return nn.Sequential(*layers, nn.Linear(size, task.num_outputs))
