"""A small convolutional network over signals."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.tasks.base import Task

SHORTEST = 7
"""Numbers in a signal that leave one place after three convolutions with stride 2."""


@register_model("conv1d", title="1-D CNN")
class Conv1D(nn.Module):
    """Three convolutions with stride 2 and ReLU, then a linear output; 25 channels are the model of MNIST-1D's paper.

    Greydanus & Kobak 2020 (arXiv:2011.14439): kernels of 5, 3 and 3 places, each padded by one.

    Args:
        task: its examples are signals of shape (places,).
        width: channels of each convolution.

    Raises:
        BenchError: the task's examples are no signals of at least 7 numbers.
    """

    def __init__(self, task: Task, *, width: Annotated[int, Field(ge=1)] = 25) -> None:
        super().__init__()
        if len(task.input_shape) != 1 or task.input_shape[0] < SHORTEST:
            raise BenchError(
                f"this model needs signals of at least {SHORTEST} numbers; the task gives examples of shape "
                f"{task.input_shape}; take the model mlp"
            )
        (places,) = task.input_shape
        layers: list[nn.Module] = []
        channels = 1
        for kernel in (5, 3, 3):
            layers += [nn.Conv1d(channels, width, kernel, stride=2, padding=1), nn.ReLU()]
            # Places after a convolution: (places + 2 * padding - kernel) / stride + 1, rounded down.
            channels, places = width, (places + 2 - kernel) // 2 + 1
        self.features = nn.Sequential(*layers, nn.Flatten())
        # `places` is by now what the three strides have left.
        self.output = nn.Linear(width * places, task.num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (batch, classes) of signals (batch, places)."""
        # The convolutions need an axis of channels: a signal has one.
        logits: Tensor = self.output(self.features(inputs.unsqueeze(1)))
        return logits
