"""Momentum whose matrices are made orthogonal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.registry import register_optimizer
from bench.optim.base.tensors import tensors_of
from bench.optim.base.types import Momentum, NonNegative, Positive

SMALLEST = 4
"""Rows and columns that timm's Muon asks of a matrix."""


@register_optimizer("muon")
def muon(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 0.02,
    momentum: Momentum = 0.95,
    nesterov: bool = True,
    weight_decay: NonNegative = 0.0,
    conv_mode: Literal["flatten", "batched"] = "flatten",
    adamw_lr_ratio: Positive = 1.0,
    adamw_beta1: Momentum = 0.9,
    adamw_beta2: Momentum = 0.95,
) -> torch.optim.Optimizer:
    """Muon: steps along momentum with its matrices made orthogonal; AdamW for all other weights (Jordan et al. 2024).

    m <- momentum * m + g;  w <- w - lr * weight_decay * w - lr * 0.2 * sqrt(max(rows, columns)) * orthogonal(m), where
    orthogonal(m) is U V^T of m = U S V^T, by five Newton-Schulz iterations. The factor makes a step about as long as
    AdamW's (Liu et al. 2025, arXiv:2502.16982), so that both kinds of weights can share lr. By timm.

    Trap: as a matrix counts what has at least 4 rows and columns, no side over 128 times the other, and more than one
    input channel. All else is AdamW's (with nesterov, NAdamW's): biases, scales, heads of two classes, the first
    convolution over grey images, depthwise ones.

    Args:
        conv_mode: a convolution as one matrix (output channels, all else), or as one matrix per place of its kernel.
        adamw_lr_ratio: lr of the weights that are no matrices, as a multiple of lr.

    Raises:
        BenchError: no weight is a matrix, so that nothing would be Muon's.
    """
    from timm.optim.muon import Muon

    weights = list(params)
    if not any(p.dim() >= 2 and min(len(p), p[0].numel()) >= SMALLEST for p in tensors_of(weights)):
        raise BenchError("muon: no weight of this model is a matrix; take adamw")
    return Muon(
        weights,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        conv_mode=conv_mode,
        fallback_lr_scale=adamw_lr_ratio,
        betas=(adamw_beta1, adamw_beta2),
    )
