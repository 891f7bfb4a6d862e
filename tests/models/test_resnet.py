from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.models.resnet import BasicBlock

from .helpers import CIFAR10, CIFAR100, DIGITS, Images, build, count, of_type


def small(depth: int, channels_in: int, classes: int) -> int:
    """Parameters of the thin ResNets at width 16, by hand: 3x3 weights, and scale and shift of each batch norm."""
    blocks = (depth - 2) // 6
    total = 9 * channels_in * 16 + 2 * 16
    for before, width in ((16, 16), (16, 32), (32, 64)):
        total += 9 * before * width + (2 * blocks - 1) * 9 * width * width + 2 * blocks * 2 * width
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("model", "depth", "published"), [("resnet20", 20, 0.27), ("resnet32", 32, 0.46), ("resnet56", 56, 0.85)]
)
def test_the_thin_ones_have_the_parameters_of_table_6_of_the_paper(model: str, depth: int, published: float) -> None:
    assert count(model, CIFAR10) == small(depth, 3, 10)
    assert round(count(model, CIFAR10) / 1e6, 2) == published
    assert count(model, CIFAR100) == small(depth, 3, 100)


def test_resnet8_has_75_thousand_parameters() -> None:
    assert count("resnet8", DIGITS) == small(8, 1, 10) == 75_002


@pytest.mark.parametrize(("model", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_the_thin_ones_have_as_many_layers_with_weights_as_their_names_say(model: str, layers: int) -> None:
    built = build(model, CIFAR10)
    assert len(of_type(built, nn.Conv2d)) + len(of_type(built, nn.Linear)) == layers


def test_width_is_that_of_the_first_stage() -> None:
    assert [layer.out_channels for layer in of_type(build("resnet8", DIGITS, width=4), nn.Conv2d)] == [
        *(4, 4, 4),
        *(8, 8),
        *(16, 16),
    ]


def test_the_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = BasicBlock(2, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 2, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (3, 6, 4, 4)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 4:].abs().sum() == 0


def test_a_block_that_keeps_its_shape_has_the_identity_as_shortcut() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(x), x)


# ---- resnet18 ------------------------------------------------------------------------------------------------


def test_resnet18_has_11_2_million_parameters() -> None:
    total = 9 * 3 * 64 + 2 * 64
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        total += 9 * before * width + 3 * 9 * width * width + 4 * 2 * width
        total += 0 if before == width else before * width + 2 * width  # 1x1 shortcut, option B
    total += 512 * 10 + 10
    assert count("resnet18", CIFAR10) == total == 11_173_962


def test_resnet18_sees_small_images_in_full() -> None:
    """3x3 stem, no max pool: 32x32 until the first of three strides."""
    sizes = []
    built = build("resnet18", Images(3, 32, 32)).eval()
    for convolution in of_type(built, nn.Conv2d):
        if convolution.kernel_size == (3, 3):
            convolution.register_forward_hook(lambda module, x, out: sizes.append(out.shape[-1]))
    with torch.no_grad():
        built(torch.zeros(1, 3, 32, 32))
    assert sizes == [32] * 5 + [16] * 4 + [8] * 4 + [4] * 4


def test_resnet18_is_initialised_after_he_et_al() -> None:
    for convolution in of_type(build("resnet18", CIFAR10), nn.Conv2d):
        fan_out = convolution.out_channels * convolution.kernel_size[0] ** 2
        assert convolution.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
