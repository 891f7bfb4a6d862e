"""Hessian-vector products against finite differences of the gradient, for every family of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from bench.core import registry
from bench.data.splits import Split
from bench.evidence.measures.hessian import hessian_vector_product, largest_eigenvalues
from bench.evidence.measures.surface import Surface
from bench.models.encoders import Encoder
from tests.models.encoder_files import Sentences, configuration
from tests.models.helpers import DIGITS, Images, build

DOUBLE = torch.float64
SMALL_IMAGES = Images(3, 8, 8)
SIGNALS = Images(40)

FAMILIES = (
    "mlp",
    "conv1d",
    "lenet",
    "resnet8",
    "wrn16_8",
    "shakeshake26_2x96d",
    "pyramidnet272",
    "vit_tiny",
    "timm/test_vit",
    "timm/test_resnet",
    "timm/test_efficientnet",  # SiLU
    "timm/test_efficientnet_gn",  # group norm
    "timm/test_efficientnet_ln",
    "timm/test_convnext",  # GELU
)
"""One registered model per module of bench/models, and timm's with the layers that need care."""


class Tail(nn.Module):
    """Layers under test between two linear ones, so that curvature mixes all parameters."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), *layers, nn.Flatten(), nn.LazyLinear(10))

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.layers(images.flatten(2))
        return outputs


LAYERS: dict[str, Callable[[], tuple[nn.Module, ...]]] = {
    "LayerNorm": lambda: (nn.LayerNorm(64),),
    "RMSNorm": lambda: (nn.RMSNorm(64),),
    "InstanceNorm": lambda: (nn.InstanceNorm1d(4, affine=True),),
    "GroupNorm": lambda: (nn.GroupNorm(2, 4),),
    "BatchNorm": lambda: (nn.BatchNorm1d(4),),
    "batch norm without running statistics": lambda: (nn.BatchNorm1d(4, track_running_stats=False),),
    "weight norm": lambda: (nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 4, 1)),),
    "SiLU": lambda: (nn.SiLU(),),
    "Mish": lambda: (nn.Mish(),),
    "GELU": lambda: (nn.GELU(),),
    "Softplus": lambda: (nn.Softplus(),),
}


def finite_difference(surface: Surface, along: Tensor, step: float) -> Tensor:
    """Return the central difference of the gradient of the mean loss: (P,)."""

    def gradient(sign: float) -> Tensor:
        pieces = torch.split(along, [parameter.numel() for parameter in surface.parameters])
        by = [sign * step * p.view_as(w) for p, w in zip(pieces, surface.parameters, strict=True)]
        total = torch.zeros_like(along)
        with surface.moved(by):
            for part in surface.parts(3):
                got = torch.autograd.grad(surface.mean_loss(part), surface.parameters, materialize_grads=True)
                total += torch.cat([g.flatten() for g in got]) * len(part[1]) / len(surface.split)
        return total

    return (gradient(1) - gradient(-1)) / (2 * step)


def assert_right(surface: Surface, *, step: float = 1e-6) -> None:
    torch.manual_seed(1)
    # Initial weights are no generic point: scales of zero put activations exactly on the kink of a ReLU.
    with torch.no_grad():
        for parameter in surface.parameters:
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    along = torch.randn(sum(parameter.numel() for parameter in surface.parameters), dtype=DOUBLE)
    along /= along.norm()
    expected = finite_difference(surface, along, step)
    found = hessian_vector_product(surface, list(surface.parts(3)), along)  # the last batch is smaller
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_products_are_right_for_every_family_of_models(name: str) -> None:
    task = {"conv1d": SIGNALS, "lenet": Images(3, 12, 12)}.get(name, SMALL_IMAGES)
    inputs, targets = task.batch(4)
    model = build(name, task)
    assert_right(Surface(model, task, Split(inputs.double(), targets), DOUBLE))


def test_every_module_of_models_has_a_family() -> None:
    """A new module of models gets a case in FAMILIES; text encoders have tests of their own below."""
    images = [entry for entry in registry.models if entry.plugin is None and entry.tokenizer is None]
    modules = {entry.factory.__module__ for entry in images}
    covered = {registry.models[name].factory.__module__ for name in FAMILIES}
    # EfficientNet-Lite0 has the layers of timm/test_efficientnet, and weights from a package.
    assert modules <= {*covered, "bench.models.efficientnet"}


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_right_for_layers_that_forward_differentiation_gets_wrong(name: str) -> None:
    torch.manual_seed(0)
    inputs, targets = SMALL_IMAGES.batch(4)
    model = Tail(*LAYERS[name]())
    model(inputs)
    assert_right(Surface(model, SMALL_IMAGES, Split(inputs.double(), targets), DOUBLE))


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_products_are_right_for_text_encoders(kind: str) -> None:
    torch.manual_seed(0)
    task = Sentences()
    auto: Any = AutoModelForSequenceClassification
    model = Encoder(auto.from_config(configuration(kind, 20, initializer_range=0.1)))
    tokens = torch.randint(5, 20, (4, 6))
    inputs = torch.stack([tokens, torch.ones_like(tokens)], 1)
    assert_right(Surface(model, task, Split(inputs, torch.tensor([0, 1, 1, 0])), DOUBLE))


def test_a_loss_that_is_linear_in_the_weights_has_no_curvature() -> None:
    class Linear(Images):
        def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs[:, 0]

    task = Linear(1, 8, 8)
    inputs, targets = DIGITS.batch(5)
    surface = Surface(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task, Split(inputs.double(), targets), DOUBLE)
    along = torch.randn(650, dtype=DOUBLE)
    assert not hessian_vector_product(surface, list(surface.parts(3)), along).any()


def test_frozen_and_unused_weights_have_no_curvature() -> None:
    torch.manual_seed(0)

    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.frozen, self.unused = nn.Linear(64, 10), nn.Linear(10, 10), nn.Linear(3, 3)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            outputs: Tensor = self.frozen(F.silu(self.used(x.flatten(1))))
            return outputs

    inputs, targets = DIGITS.batch(6)
    surface = Surface(Partly(), DIGITS, Split(inputs.double(), targets), DOUBLE)
    assert_right(surface)
    along: Any = torch.zeros(650 + 12, dtype=DOUBLE)
    along[650:] = 1
    assert not hessian_vector_product(surface, list(surface.parts(3)), along).any()
    assert largest_eigenvalues(surface, 2, seed=0).values[0] > 0
