from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from bench.core.errors import BenchError

from .helpers import CIFAR10, DIGITS, FASHION, Images, build, count, of_type


def by_hand(width: int, patch: int, channels: int, tokens: int, classes: int, layers: int = 12) -> int:
    """Parameters of a ViT whose hidden layers are four times as wide."""
    block = 3 * (width * width + width) + (width * width + width)  # queries, keys, values; projection
    block += 2 * 4 * width * width + 4 * width + width + 2 * 2 * width  # two dense layers, two layer norms
    embedding = patch * patch * channels * width + width + (tokens + 1) * width + width  # with the class token
    return layers * block + embedding + 2 * width + width * classes + classes


@pytest.mark.parametrize(
    ("model", "width", "millions"), [("vit_tiny", 192, 5.4), ("vit_small", 384, 21.3)], ids=["tiny", "small"]
)
def test_those_from_scratch_have_the_parameters_counted_by_hand(model: str, width: int, millions: float) -> None:
    assert count(model, CIFAR10) == by_hand(width, 4, 3, 64, 10)
    assert round(count(model, CIFAR10) / 1e6, 1) == millions
    assert count(model, FASHION) == by_hand(width, 4, 1, 49, 10)
    assert count(model, DIGITS) == by_hand(width, 4, 1, 4, 10)
    assert count(model, DIGITS, patch_size=2) == by_hand(width, 2, 1, 16, 10)


def test_the_one_for_a_cpu_has_the_parameters_counted_by_hand_at_any_width_and_depth() -> None:
    assert count("vit_micro", FASHION) == by_hand(64, 4, 1, 49, 10, layers=6) == 305_034
    assert count("vit_micro", CIFAR10, width=96, depth=4, heads=6) == by_hand(96, 4, 3, 64, 10, layers=4)
    with pytest.raises(BenchError, match="heads = 5 does not divide width = 64"):
        build("vit_micro", FASHION, heads=5)


@pytest.mark.parametrize(
    ("model", "width", "millions"), [("vit_s16", 384, 21.7), ("vit_b16", 768, 85.8)], ids=["s16", "b16"]
)
def test_those_for_224_pixels_have_the_parameters_counted_by_hand(model: str, width: int, millions: float) -> None:
    assert count(model, CIFAR10, pretrained=False) == by_hand(width, 16, 3, 196, 10)
    assert round(count(model, CIFAR10, pretrained=False) / 1e6, 1) == millions


@pytest.mark.parametrize("model", ["vit_tiny", "vit_small", "vit_s16", "vit_b16"])
def test_drop_path_grows_with_depth_and_dropout_is_everywhere_but_in_attention(model: str) -> None:
    params: dict[str, Any] = {"pretrained": False} if model.endswith("16") else {}
    with torch.device("meta"):
        plain, dropping = build(model, CIFAR10, **params), build(model, CIFAR10, **params, drop_path=0.2, dropout=0.1)
    assert of_type(plain, DropPath) == []
    assert {layer.p for layer in of_type(plain, nn.Dropout)} == {0.0}
    chances = [layer.drop_prob for layer in of_type(dropping, DropPath)]
    assert chances == pytest.approx([0.2 * block / 11 for block in range(1, 12) for _ in range(2)])
    rates = {name.rpartition(".")[2]: layer.p for name, layer in dropping.named_modules() if type(layer) is nn.Dropout}
    assert rates == {"pos_drop": 0.1, "proj_drop": 0.1, "drop1": 0.1, "drop2": 0.1, "attn_drop": 0.0, "head_drop": 0.0}


def test_a_patch_size_that_does_not_divide_the_image_is_told() -> None:
    with pytest.raises(BenchError, match="patch_size = 5 does not divide images of 8x8"):
        build("vit_tiny", DIGITS, patch_size=5)


def test_images_need_not_be_square() -> None:
    task = Images(1, 8, 16)
    with torch.no_grad():
        assert build("vit_tiny", task).eval()(task.batch(2)[0]).shape == (2, 10)


def test_those_for_224_pixels_resize_the_images() -> None:
    seen: list[Tensor] = []
    model = build("vit_s16", DIGITS, pretrained=False).eval()
    of_type(model, nn.Conv2d)[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        model(DIGITS.batch(1)[0])
    assert [x.shape for x in seen] == [(1, 1, 224, 224)]
