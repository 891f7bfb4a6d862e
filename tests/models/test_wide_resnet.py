from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench.models.wide_resnet import WideBlock, WideResNet

from .helpers import CIFAR10, CIFAR100, build, count, of_type


def by_hand(depth: int, widen: int, classes: int) -> int:
    blocks = (depth - 4) // 6
    total, before = 9 * 3 * 16, 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        total += 2 * before + 9 * before * width + 2 * width + 9 * width * width + before * width  # with 1x1 shortcut
        total += (blocks - 1) * (2 * 2 * width + 2 * 9 * width * width)
        before = width
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize(
    ("model", "depth", "widen", "published"), [("wrn28_10", 28, 10, 36.5), ("wrn16_8", 16, 8, 11.0)]
)
def test_they_have_the_parameters_of_table_4_of_the_paper(model: str, depth: int, widen: int, published: float) -> None:
    assert count(model, CIFAR10) == by_hand(depth, widen, 10)
    assert round(count(model, CIFAR10) / 1e6, 1) == published
    assert count(model, CIFAR100) == by_hand(depth, widen, 100)


@pytest.mark.parametrize("depth", [16, 28])
def test_the_depth_counts_all_convolutions(depth: int) -> None:
    """Those of the three shortcuts among them: that is how the paper's names count."""
    assert len(of_type(WideResNet(depth, 2, 0.0, 3, 10), nn.Conv2d)) == depth


def test_dropout_is_between_the_convolutions_of_each_block() -> None:
    blocks = of_type(build("wrn16_8", CIFAR10, dropout=0.3), WideBlock)
    assert [block.dropout.p for block in blocks] == [0.3] * 6
    block, x = WideBlock(4, 4, 1, 0.9).train(), torch.randn(2, 4, 8, 8)
    seen: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    block(x)
    assert (seen[0] == 0).float().mean() > 0.9, "a ReLU alone has zeros in half of the places"


def test_a_block_that_keeps_its_shape_adds_to_its_very_input() -> None:
    block = WideBlock(4, 4, 1, 0.0)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(x), x)


def test_where_channels_change_the_shortcut_sees_the_activated_input() -> None:
    block = WideBlock(4, 6, 2, 0.0).eval()
    assert block.shortcut is not None
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.shortcut(block.bn1(x).relu()))
