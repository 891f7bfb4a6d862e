"""Parts that several architectures share: reading a task's image shape, and the initialisation of He et al. 2015."""

from __future__ import annotations

from torch import nn

from bench.core.errors import BenchError
from bench.tasks.base import Task


def image_shape(task: Task) -> tuple[int, int, int]:
    """Return (channels, height, width) of the task's images.

    Raises:
        BenchError: the task has no images.
    """
    if len(task.input_shape) != 3:
        raise BenchError(
            f"this model needs images (channels, height, width); the task gives examples of shape {task.input_shape}; "
            "take the model mlp"
        )
    channels, height, width = task.input_shape
    return channels, height, width


def conv3x3(channels_in: int, channels: int, stride: int = 1) -> nn.Conv2d:
    """Return a padded 3x3 convolution without bias, for use after or (pre-activation) before a batch norm."""
    # The batch norm has a shift of its own, beside which a bias would do nothing.
    return nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)


def initialise_convolutions(model: nn.Module) -> None:
    """Draw weights from N(0, 2 / fan-out) (He et al. 2015, arXiv:1502.01852), as all CIFAR networks here do."""
    for module in model.modules():
        # Only convolutions: linear layers and batch norms keep torch's own initialisation.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
