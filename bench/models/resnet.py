"""Residual networks for small images (He et al. 2016, arXiv:1512.03385).

Section 4.2 of the paper has the thin ones of 6n + 2 layers: resnet20, resnet32, resnet56, and resnet8 in their manner.
resnet18 is the paper's ImageNet network (table 1) with a stem for small images.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.registry import register_model
from bench.models.layers import conv3x3, image_shape, initialise_convolutions
from bench.tasks.base import Task

Width = Annotated[int, Field(ge=1)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut subsamples and pads with zeros (option A: no parameters)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels_in, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - channels_in

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)))
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        if self.stride != 1 or self.new_channels:
            x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
            # Half of the new channels, which are zero, come before the old ones and half after them.
            before = self.new_channels // 2
            x_BCHW = F.pad(x_BCHW, (0, 0, 0, 0, before, self.new_channels - before))
        return F.relu(out_BCHW + x_BCHW)


class SmallResNet(nn.Module):
    """Stem of one 3x3 convolution, three stages of (depth - 2) / 6 blocks at width, 2*width, 4*width, mean pool."""

    def __init__(self, depth: int, width: int, channels_in: int, num_classes: int) -> None:
        super().__init__()
        # A block has two convolutions, in three stages; the stem and the head are the other two layers.
        blocks = (depth - 2) // 6
        self.stem = conv3x3(channels_in, width)
        self.bn = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        channels = width
        for stage in range(3):
            for block in range(blocks):
                # The first block of the second and of the third stage halves height and width.
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        initialise_convolutions(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = F.relu(self.bn(self.stem(x_BCHW)))
        features_BC = self.blocks(x_BCHW).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


@register_model("resnet8", title="ResNet-8")
def resnet8(task: Task, *, width: Width = 16) -> nn.Module:
    """ResNet of 8 layers (one block per stage), 75 thousand parameters at width 16: suits 8x8 images."""
    return small_resnet(8, width, task)


@register_model("resnet20", title="ResNet-20")
def resnet20(task: Task, *, width: Width = 16) -> nn.Module:
    """ResNet of 20 layers for CIFAR (He et al. 2016), 0.27 million parameters at width 16."""
    return small_resnet(20, width, task)


@register_model("resnet32", title="ResNet-32")
def resnet32(task: Task, *, width: Width = 16) -> nn.Module:
    """ResNet of 32 layers for CIFAR (He et al. 2016), 0.46 million parameters at width 16."""
    return small_resnet(32, width, task)


@register_model("resnet56", title="ResNet-56")
def resnet56(task: Task, *, width: Width = 16) -> nn.Module:
    """ResNet of 56 layers for CIFAR (He et al. 2016), 0.85 million parameters at width 16."""
    return small_resnet(56, width, task)


def small_resnet(depth: int, width: int, task: Task) -> nn.Module:
    return SmallResNet(depth, width, image_shape(task)[0], task.num_outputs)


@register_model("resnet18", title="ResNet-18")
def resnet18(task: Task) -> nn.Module:
    """ResNet-18 (He et al. 2016) with a 3x3 stem and no max pool, as is usual for CIFAR: 11.2 million parameters."""
    # In this function BasicBlock is torchvision's, not the class above.
    from torchvision.models.resnet import BasicBlock, ResNet  # slow to import

    net: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=task.num_outputs)
    net.conv1 = conv3x3(image_shape(task)[0], 64)
    initialise_convolutions(net.conv1)  # the others are already: torchvision does it in the same way
    net.maxpool = nn.Identity()
    return net
