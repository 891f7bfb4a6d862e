"""Wide residual networks (Zagoruyko & Komodakis 2016, arXiv:1605.07146)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.registry import register_model
from bench.models.layers import conv3x3, image_shape, initialise_convolutions
from bench.tasks.base import Task

Dropout = Annotated[float, Field(ge=0, lt=1)]


class WideBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions, dropout between them (figure 1d of the paper).

    Where the number of channels changes the shortcut is a 1x1 convolution of the *activated* input, as in the authors'
    code; elsewhere it is the identity.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels, channels)
        # A block with stride 2 also changes the channels, so that the identity always fits.
        self.shortcut = None if channels_in == channels else nn.Conv2d(channels_in, channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = F.relu(self.bn1(x_BCHW))
        inner_BCHW = F.relu(self.bn2(self.conv1(active_BCHW)))
        out_BCHW: Tensor = self.conv2(self.dropout(inner_BCHW))
        return out_BCHW + (x_BCHW if self.shortcut is None else self.shortcut(active_BCHW))


class WideResNet(nn.Module):
    """Stem of 16 channels, three stages of (depth - 4) / 6 blocks at 16, 32, 64 times `widen` channels, mean pool."""

    def __init__(self, depth: int, widen: int, dropout: float, channels_in: int, num_classes: int) -> None:
        super().__init__()
        self.stem = conv3x3(channels_in, 16)
        blocks: list[nn.Module] = []
        channels = 16
        for stage in range(3):
            # A block has two convolutions, in three stages; the other four are the stem and the three shortcuts.
            for block in range((depth - 4) // 6):
                # The first block of the second and of the third stage halves height and width.
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(WideBlock(channels, 16 * widen << stage, stride, dropout))
                channels = 16 * widen << stage
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # Pre-activation blocks end without batch norm and ReLU, so the last ones are here.
        x_BCHW = F.relu(self.bn(self.blocks(self.stem(x_BCHW))))
        logits_BK: Tensor = self.head(x_BCHW.mean(dim=(2, 3)))
        return logits_BK


@register_model("wrn28_10", title="WRN-28-10")
def wrn28_10(task: Task, *, dropout: Dropout = 0.0) -> nn.Module:
    """WRN-28-10 (Zagoruyko & Komodakis 2016), 36.5 million parameters."""
    return WideResNet(28, 10, dropout, image_shape(task)[0], task.num_outputs)


@register_model("wrn16_8", title="WRN-16-8")
def wrn16_8(task: Task, *, dropout: Dropout = 0.0) -> nn.Module:
    """WRN-16-8 (Zagoruyko & Komodakis 2016), 11.0 million parameters."""
    return WideResNet(16, 8, dropout, image_shape(task)[0], task.num_outputs)
