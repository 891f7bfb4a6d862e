"""Residual networks for small images (He et al. 2016, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.registry import register_model
from bench.tasks.base import Task


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zeros (option A: no parameters)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        if self.stride != 1 or self.new_channels:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            before = self.new_channels // 2
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out_BCHW + x_BCHW)


class SmallResNet(nn.Module):
    """Stem of one 3x3 convolution, three stages of (depth - 2) / 6 blocks at width, 2*width, 4*width, mean pool."""

    def __init__(self, depth: int, width: int, channels_in: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Conv2d(channels_in, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn(self.stem(x_BCHW)))
        features_BC = self.blocks(x_BCHW).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


@register_model("resnet8")
def resnet8(task: Task, *, width: Annotated[int, Field(ge=1)] = 16) -> nn.Module:
    """ResNet of 8 layers (one block a stage), 75 thousand parameters at width 16: suits 8x8 images."""
    return SmallResNet(8, width, task.input_shape[0], task.num_outputs)
