"""PyramidNet (Han et al. 2017, arXiv:1610.02915) with ShakeDrop (Yamada et al. 2019, arXiv:1802.02375).

Where published variants differ, this follows the code of the SAM paper (Foret et al. 2021), for its table 1:

- Channels are rounded, as they also are in the code of Han et al.: 26.2 million parameters. Cutting them off, as
  equation 2 of Han et al. is written, gives the 26.0 million of their table.
- ShakeDrop draws for each image. Yamada et al. also try one draw per batch, per channel or per pixel.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.registry import register_model
from bench.models.layers import conv3x3, image_shape, initialise_convolutions
from bench.models.shake import scaled_apart, uniform_per_image
from bench.tasks.base import Task


class ShakeDrop(nn.Module):
    """Scale a residual branch by b + (1 - b) * alpha and its gradient by b + (1 - b) * beta (equation 6).

    b is 1 with probability 1 - `chance`, alpha uniform in [-1, 1], beta uniform in [0, 1], drawn for each image. In
    eval mode the branch is multiplied by what the factor is on average, 1 - chance.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Nothing is drawn at a chance of 0, so the random generator stays as it is.
        if self.chance == 0:
            return x_BCHW
        if not self.training:
            return x_BCHW * (1 - self.chance)
        gate_B111, alpha_B111, beta_B111 = uniform_per_image(3, x_BCHW)
        shaken_B111 = gate_B111 < self.chance
        # From uniform in [0, 1) to uniform in [-1, 1).
        factor_B111 = torch.where(shaken_B111, 2 * alpha_B111 - 1, 1.0)
        gradient_factor_B111 = torch.where(shaken_B111, beta_B111, 1.0)
        return scaled_apart(x_BCHW, factor_B111, gradient_factor_B111)


class PyramidBlock(nn.Module):
    """Bottleneck of 1x1, 3x3 and 1x1 convolutions that widens by four, batch norm at both ends and no ReLU there.

    The shortcut has no parameters: 2x2 mean where the branch has stride 2, zeros for the new channels.
    """

    EXPANSION = 4

    def __init__(self, channels_in: int, width: int, stride: int, shake: float) -> None:
        super().__init__()
        channels = self.EXPANSION * width
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels_in),
            nn.Conv2d(channels_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            conv3x3(width, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shake = ShakeDrop(shake)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.shake(self.branch(x_BCHW))
        if self.stride != 1:  # ceil_mode is for odd sizes: a padded convolution rounds up
            x_BCHW = F.avg_pool2d(x_BCHW, self.stride, ceil_mode=True)
        # Zeros for the new channels, after the old ones.
        return out_BCHW + F.pad(x_BCHW, (0, 0, 0, 0, 0, self.new_channels))


class PyramidNet(nn.Module):
    """Three stages of (depth - 2) / 9 bottlenecks, whose width grows evenly from 16 to 16 + alpha.

    Args:
        alpha: channels that the bottlenecks' width gains over the whole net.
        shake: chance that the last block is shaken; a block's own grows linearly from 0 up to it (the linear decay
            rule of Yamada et al., where the last block survives with p_L = 1 - shake).
    """

    def __init__(self, depth: int, alpha: int, shake: float, channels_in: int, num_classes: int) -> None:
        super().__init__()
        # A block has three convolutions, in three stages; the stem and the head are the other two layers.
        blocks_a_stage = (depth - 2) // 9
        total = 3 * blocks_a_stage
        self.stem = conv3x3(channels_in, 16)
        self.bn_stem = nn.BatchNorm2d(16)
        blocks: list[nn.Module] = []
        channels = 16
        for block in range(1, total + 1):
            # The first block of the second and of the third stage halves height and width.
            stride = 2 if block in (blocks_a_stage + 1, 2 * blocks_a_stage + 1) else 1
            width = round(16 + alpha * block / total)
            # The linear decay rule of Yamada et al.: the deeper a block, the more often it is shaken.
            blocks.append(PyramidBlock(channels, width, stride, shake * block / total))
            channels = PyramidBlock.EXPANSION * width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.blocks(self.bn_stem(self.stem(x_BCHW)))
        features_BC = F.relu(self.bn(x_BCHW)).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


@register_model("pyramidnet272", title="PyramidNet-272")
def pyramidnet272(task: Task, *, shakedrop: Annotated[float, Field(ge=0, lt=1)] = 0.5) -> nn.Module:
    """PyramidNet-272, alpha 200, bottlenecks (Han et al. 2017), 26.2 million parameters, with ShakeDrop.

    Args:
        shakedrop: chance that the last block is shaken, 1 - p_L of Yamada et al. 2019; 0 is the plain PyramidNet.
    """
    return PyramidNet(272, 200, shakedrop, image_shape(task)[0], task.num_outputs)
