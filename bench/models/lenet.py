"""A small convolutional network over images, which trains in minutes on one core."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.models.layers import image_shape
from bench.tasks.base import Task

SMALLEST = 12
"""Side of an image that leaves one place after two convolutions of 5x5, the first one padded, and two halvings."""


@register_model("lenet", title="LeNet-5")
class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling: two convolutions, then dense layers of 120 and 84; 61,706 weights on 28x28.

    LeCun et al. 1998 (Proceedings of the IEEE 86), figure 2, without its Gaussian output and its partial connections.

    Args:
        task: its examples are images of shape (channels, height, width).
        width: channels of the first convolution; the second has 16/6 of it, as in the paper.

    Raises:
        BenchError: the task's examples are no images of at least 12x12.
    """

    def __init__(self, task: Task, *, width: Annotated[int, Field(ge=1)] = 6) -> None:
        super().__init__()
        channels, height, breadth = image_shape(task)
        if min(height, breadth) < SMALLEST:
            raise BenchError(
                f"lenet needs images of at least {SMALLEST}x{SMALLEST}; the task gives {height}x{breadth}; "
                "take the model resnet8 or mlp"
            )
        second = round(width * 16 / 6)
        places = ((height // 2 - 4) // 2) * ((breadth // 2 - 4) // 2)
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, second, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(
            nn.Linear(second * places, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, task.num_outputs)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits (batch, classes) of images (batch, channels, height, width)."""
        logits: Tensor = self.classifier(self.features(inputs))
        return logits
