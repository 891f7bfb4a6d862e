"""LoRA (Hu et al. 2022, arXiv:2106.09685) by the package peft: adapters of low rank beside frozen linear layers.

A linear layer W gets the addition (alpha / rank) B A, with A drawn and B zero: the model begins as the pretrained one.
Only A and B, and a new head, require gradients. An optimizer gets what requires gradients and nothing else, so that SAM
perturbs no frozen weight either.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Annotated, TypedDict, Unpack

from pydantic import Field
from torch import nn

from bench.core.errors import BenchError, nearest
from bench.data.tokens import quiet_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraOptions(TypedDict, total=False):
    """Settings of a model with adapters; without `lora_rank` it has none.

    Attributes:
        lora_rank: r, the rank of every adapter.
        lora_alpha: default 2 * lora_rank; the adapters' product is multiplied by lora_alpha / lora_rank.
        lora_dropout: on the input of adapters; default 0.
        lora_targets: the last parts of names of the layers that get adapters (["query", "value"]); default all linear
            layers but the head, as Dettmers et al. 2023 (arXiv:2305.14314) have it.
    """

    lora_rank: Annotated[int, Field(ge=1)] | None
    lora_alpha: Annotated[float, Field(gt=0)] | None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] | None
    lora_targets: Annotated[list[str], Field(min_length=1)] | None


def add_adapters(net: PreTrainedModel, *, head_learns: bool = True, **lora: Unpack[LoraOptions]) -> None:
    """Freeze a net's weights and put adapters beside its linear layers; do nothing where no rank is set.

    Args:
        head_learns: leave what is outside of `net.base_model` to be trained: a new head, not a pretrained one.

    Raises:
        BenchError: peft is not installed, settings of LoRA stand without a rank, or the net has no such linear layers.
    """
    rank = lora.get("lora_rank")
    if rank is None:
        if given := [name for name, value in lora.items() if value is not None]:
            raise BenchError(f"{', '.join(given)}: without lora_rank there are no adapters; set model.lora_rank = 8")
        return
    if importlib.util.find_spec("peft") is None:
        raise BenchError('model.lora_rank needs the package peft: pip install "sam-bench[lora]"')
    targets = _targets(net.base_model, lora.get("lora_targets"), net.config.model_type)
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=lora.get("lora_alpha") or 2 * rank,  # type: ignore[arg-type]  # any number
        lora_dropout=lora.get("lora_dropout") or 0.0,
        target_modules=targets,
    )
    if not head_learns:
        net.requires_grad_(False)
    with quiet_transformers():  # peft warns where layers keep their weights transposed (GPT-2), and does it right
        inject_adapter_in_model(config, net.base_model)


def _targets(body: nn.Module, wanted: list[str] | None, kind: str) -> list[str]:
    """Return the full names of the linear layers that get adapters."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    layers = [name for name, module in body.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    if not layers:
        raise BenchError(f'model.lora_rank: "{kind}" has no linear layers to put adapters beside; leave it out')
    last = {name: name.rpartition(".")[2] for name in layers}
    for name in wanted or ():
        if name not in last.values():
            raise BenchError(
                f'model.lora_targets: "{kind}" has no linear layer "{name}"; {nearest(name, set(last.values()))}'
            )
    return [name for name in layers if wanted is None or last[name] in wanted]
