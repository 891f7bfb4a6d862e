"""Residual networks of two branches with Shake-Shake regularization (Gastaldi 2017, arXiv:1705.07485)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.registry import register_model
from bench.models.layers import conv3x3, image_shape, initialise_convolutions
from bench.models.shake import scaled_apart, uniform_per_image
from bench.tasks.base import Task


class ShakeShake(nn.Module):
    """Two branches mixed at random, a * one + (1 - a) * two, and their gradients by another draw ("Shake-Shake-Image").

    a is uniform in [0, 1] for each image; in eval mode it is 1/2.
    """

    def forward(self, one_BCHW: Tensor, two_BCHW: Tensor) -> Tensor:
        if not self.training:
            return (one_BCHW + two_BCHW) / 2
        alpha_B111, beta_B111 = uniform_per_image(2, one_BCHW)
        one_BCHW = scaled_apart(one_BCHW, alpha_B111, beta_B111)
        # The two shares sum to 1, in the forward pass and in the backward pass.
        two_BCHW = scaled_apart(two_BCHW, 1 - alpha_B111, 1 - beta_B111)
        return one_BCHW + two_BCHW


class TwoPaths(nn.Module):
    """The shortcut of blocks that change the channels: two parallel 1x1 convolutions, each for half of the channels.

    Both subsample; the second sees the image moved right and down by a pixel, so that between them they use more of it.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.here = nn.Conv2d(channels_in, channels // 2, 1, bias=False)
        self.moved = nn.Conv2d(channels_in, channels // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # A column and a row of zeros at left and top, and those at right and bottom cut off.
        moved_BCHW = F.pad(x_BCHW, (1, -1, 1, -1))
        here_BCHW = self.here(x_BCHW[:, :, :: self.stride, :: self.stride])
        moved_BCHW = self.moved(moved_BCHW[:, :, :: self.stride, :: self.stride])
        out_BCHW: Tensor = self.bn(torch.cat([here_BCHW, moved_BCHW], dim=1))
        return out_BCHW


class ShakeBlock(nn.Module):
    """The shortcut plus two branches of ReLU, 3x3, batch norm, ReLU, 3x3, batch norm, mixed by Shake-Shake."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.one = _branch(channels_in, channels, stride)
        self.two = _branch(channels_in, channels, stride)
        self.mix = ShakeShake()
        # A block of stride 2 also changes the channels, so that the identity always fits.
        self.shortcut = None if channels_in == channels else TwoPaths(channels_in, channels, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = F.relu(x_BCHW)  # the first ReLU of both branches and of the shortcut's paths
        mixed_BCHW: Tensor = self.mix(self.one(active_BCHW), self.two(active_BCHW))
        shortcut_BCHW: Tensor = x_BCHW if self.shortcut is None else self.shortcut(active_BCHW)
        return shortcut_BCHW + mixed_BCHW


def _branch(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv3x3(channels_in, channels, stride),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        conv3x3(channels, channels),
        nn.BatchNorm2d(channels),
    )


class ShakeShakeNet(nn.Module):
    """Stem of 16 channels, three stages of (depth - 2) / 6 blocks at width, 2*width, 4*width, mean pool."""

    def __init__(self, depth: int, width: int, channels_in: int, num_classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(channels_in, 16)
        self.bn = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        channels = 16
        for stage in range(3):
            # A branch has two convolutions, in three stages; the stem and the head are the other two layers.
            for block in range((depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(ShakeBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.blocks(self.bn(self.stem(x_BCHW)))
        # Blocks end without a ReLU, so the last one is here.
        logits_BK: Tensor = self.head(F.relu(x_BCHW).mean(dim=(2, 3)))
        return logits_BK


@register_model("shakeshake26_2x96d", title="Shake-Shake-26 2x96d")
def shakeshake26_2x96d(task: Task) -> nn.Module:
    """Shake-Shake-Image of 26 layers, two branches of 96 channels (Gastaldi 2017), 26.2 million parameters."""
    return ShakeShakeNet(26, 96, image_shape(task)[0], task.num_outputs)
