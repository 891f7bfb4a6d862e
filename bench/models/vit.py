"""Vision transformers (Dosovitskiy et al. 2021, arXiv:2010.11929), built by timm: small from scratch, or pretrained."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.models.layers import image_shape
from bench.models.pretrained import TimmWeights
from bench.models.timm_models import build
from bench.tasks.base import Task

Rate = Annotated[float, Field(ge=0, lt=1)]
PatchSize = Annotated[int, Field(ge=1)]

S16 = "vit_small_patch16_224.augreg_in21k"
B16 = "vit_base_patch16_224.augreg_in21k"
"""Trained on ImageNet-21k by Steiner et al. 2022 (arXiv:2106.10270), without the step over ImageNet-1k that
`augreg_in21k_ft_in1k` has: what is usually fine-tuned to other data sets."""


@register_model("vit_tiny", title="ViT-tiny")
def vit_tiny(task: Task, *, patch_size: PatchSize = 4, drop_path: Rate = 0.0, dropout: Rate = 0.0) -> nn.Module:
    """ViT-Ti (12 layers of 192, 3 heads) from scratch at the task's own resolution, 5.4 million parameters.

    Args:
        drop_path: chance that an image skips the last block in training; a block's own grows linearly up to it.
        dropout: after position embeddings and after every dense layer but those of queries, keys and values.
    """
    return from_scratch("vit_tiny_patch16_224", task, patch_size, drop_path, dropout)


@register_model("vit_small", title="ViT-small")
def vit_small(task: Task, *, patch_size: PatchSize = 4, drop_path: Rate = 0.0, dropout: Rate = 0.0) -> nn.Module:
    """ViT-S (12 layers of 384, 6 heads) from scratch at the task's own resolution, 21.3 million parameters.

    Args:
        drop_path: chance that an image skips the last block in training; a block's own grows linearly up to it.
        dropout: after position embeddings and after every dense layer but those of queries, keys and values.
    """
    return from_scratch("vit_small_patch16_224", task, patch_size, drop_path, dropout)


@register_model("vit_micro", title="ViT-micro")
def vit_micro(
    task: Task,
    *,
    patch_size: PatchSize = 4,
    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64,
    depth: Annotated[int, Field(ge=1)] = 6,
    heads: Annotated[int, Field(ge=1)] = 4,
    drop_path: Rate = 0.0,
    dropout: Rate = 0.0,
) -> nn.Module:
    """ViT small enough for a CPU (6 layers of 64, 4 heads) at the task's own resolution, 0.3 million parameters.

    Args:
        width: numbers per token, a multiple of `heads`.
        drop_path: chance that an image skips the last block in training; a block's own grows linearly up to it.
        dropout: after position embeddings and after every dense layer but those of queries, keys and values.

    Raises:
        BenchError: `heads` does not divide `width`, or `patch_size` the images.
    """
    if width % heads:
        raise BenchError(f"heads = {heads} does not divide width = {width}")
    shape = {"embed_dim": width, "depth": depth, "num_heads": heads}
    return from_scratch("vit_tiny_patch16_224", task, patch_size, drop_path, dropout, **shape)


def from_scratch(name: str, task: Task, patch_size: int, drop_path: float, dropout: float, **shape: Any) -> nn.Module:
    # timm takes seconds to import, so only its models pay for it.
    import timm

    channels, height, width = image_shape(task)
    # Otherwise the patches would leave out a border of every image.
    if height % patch_size or width % patch_size:
        raise BenchError(f"patch_size = {patch_size} does not divide images of {height}x{width}")
    net: nn.Module = timm.create_model(
        name,
        num_classes=task.num_outputs,
        in_chans=channels,
        img_size=(height, width),
        patch_size=patch_size,
        **shape,
        **rates(drop_path, dropout),
    )
    return net


def rates(drop_path: float, dropout: float) -> dict[str, Any]:
    # timm's names; its rates for attention weights and for the head stay 0.
    return {"drop_path_rate": drop_path, "pos_drop_rate": dropout, "proj_drop_rate": dropout}


def fetch_s16(params: dict[str, Any]) -> None:
    if params["pretrained"]:
        TimmWeights(S16).fetch()


def fetch_b16(params: dict[str, Any]) -> None:
    if params["pretrained"]:
        TimmWeights(B16).fetch()


@register_model("vit_s16", title="ViT-S/16", fetch=fetch_s16)
def vit_s16(task: Task, *, pretrained: bool = True, drop_path: Rate = 0.0, dropout: Rate = 0.0) -> nn.Module:
    """ViT-S/16 on images resized to 224x224, 21.7 million parameters, from ImageNet-21k (Steiner et al. 2022)."""
    # `build` resizes images to the size of the pretraining, 224x224.
    return build(S16, task, pretrained, **rates(drop_path, dropout))


@register_model("vit_b16", title="ViT-B/16", fetch=fetch_b16)
def vit_b16(task: Task, *, pretrained: bool = True, drop_path: Rate = 0.0, dropout: Rate = 0.0) -> nn.Module:
    """ViT-B/16 on images resized to 224x224, 85.8 million parameters, from ImageNet-21k (Steiner et al. 2022)."""
    return build(B16, task, pretrained, **rates(drop_path, dropout))
