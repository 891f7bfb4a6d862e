"""What every registered model must do, whatever the shape of the images."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.errors import BenchError

from .helpers import CIFAR10, CIFAR100, DIGITS, FASHION, Images, build, of_type

TASKS = {"cifar10": CIFAR10, "cifar100": CIFAR100, "fashion": FASHION, "digits": DIGITS}
FAMILIES = {"timm/": "timm/test_vit"}
"""A small member of each family."""
LARGE = ("wrn28_10", "pyramidnet272", "shakeshake26_2x96d", "vit_small", "vit_s16", "vit_b16", "efficientnet_lite0")
"""Too slow for every task: they get a few small colour images alone."""
SMALL_IMAGES = Images(3, 8, 8)
SIGNALS = Images(40)
PARAMS: dict[str, dict[str, Any]] = {
    "vit_s16": {"pretrained": False},
    "vit_b16": {"pretrained": False},
    "efficientnet_lite0": {"pretrained": False, "image_size": 64},
}

IMAGE_MODELS = [
    entry for entry in registry.models if entry.plugin is None and entry.tokenizer is None and entry.name != "conv1d"
]
NAMES = [FAMILIES.get(entry.name, entry.name) for entry in IMAGE_MODELS]
CASES = [
    *((name, task) for name in NAMES if name not in LARGE for task in TASKS if (name, task) != ("lenet", "digits")),
    *((name, "small") for name in LARGE),
    ("conv1d", "signals"),
]


@dataclass(frozen=True)
class Case:
    """A model in its initial state (but for statistics of batch norm), and a batch of its task."""

    name: str
    task: Images
    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def build(self, seed: int) -> nn.Module:
        return build(self.name, self.task, seed, **PARAMS.get(self.name, {}))


@pytest.fixture(scope="module", params=CASES, ids=["-".join(case) for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    name, of = request.param
    task = {**TASKS, "signals": SIGNALS}.get(of, SMALL_IMAGES)
    return Case(name, task, build(name, task, **PARAMS.get(name, {})), *task.batch(2 if name in LARGE else 4))


def test_it_gives_one_row_of_outputs_an_example(case: Case) -> None:
    with torch.no_grad():
        outputs = case.model.train()(case.inputs)
    assert outputs.shape == (len(case.inputs), case.task.num_outputs)
    assert outputs.dtype == torch.float32
    assert outputs.isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(case: Case) -> None:
    weights, again, other = (dict(model.named_parameters()) for model in (case.model, case.build(0), case.build(1)))
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not all(torch.equal(weights[name], other[name]) for name in weights)


def test_every_parameter_learns(case: Case) -> None:
    case.model.train().zero_grad()
    case.task.losses(case.model(case.inputs), case.targets).mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in case.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_in_eval_mode_an_example_does_not_see_its_batch(case: Case) -> None:
    case.model.eval()
    with torch.no_grad():
        together = case.model(case.inputs)
        alone = torch.cat([case.model(image) for image in case.inputs.unsqueeze(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_channels_last_gives_the_same_outputs_and_reaches_every_convolution(case: Case) -> None:
    """No layer on the way puts the channels back in front: the next convolution would turn them round once more."""
    if case.inputs.dim() != 4:
        pytest.skip("signals have no other order of their channels")
    model = copy.deepcopy(case.model).eval()
    with torch.no_grad():
        contiguous = model(case.inputs)
        model.to(memory_format=torch.channels_last)
        for convolution in of_type(model, nn.Conv2d):
            convolution.register_forward_pre_hook(_refuse_contiguous)
        channels_last = model(case.inputs.contiguous(memory_format=torch.channels_last))
    scale = contiguous.abs().max().item()  # which kernels there are, and how they round, depends on the processor
    torch.testing.assert_close(channels_last, contiguous, rtol=1e-3, atol=1e-4 * scale)


def _refuse_contiguous(module: nn.Module, arguments: tuple[Tensor]) -> None:
    (x_BCHW,) = arguments
    _, channels, height, width = x_BCHW.shape
    if channels > 1 and height * width > 1:  # else both formats are the same
        assert x_BCHW.stride(1) == 1, module


# ---- all together --------------------------------------------------------------------------------------------


def test_every_family_has_a_member_here() -> None:
    assert {entry.name for entry in registry.models if entry.members} == set(FAMILIES)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mlp"])
def test_what_needs_images_says_so(name: str) -> None:
    with pytest.raises(BenchError, match=r"needs images .* examples of shape \(64,\); take the model mlp"):
        build(name, Images(64), **PARAMS.get(name, {}))


def test_the_models_are_known_without_importing_what_builds_them() -> None:
    """It takes seconds, and `bench list` would have to wait for them."""
    code = "import sys, bench.models; sys.exit(bool({'timm', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
