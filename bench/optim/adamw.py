"""Adam with decoupled weight decay."""

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.types import Momentum, NonNegative, Positive


@register_optimizer("adamw")
def adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 1e-3,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> torch.optim.Optimizer:
    """AdamW: w <- w - lr * weight_decay * w beside Adam's step (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    # Fused: the device itself then skips a gradient that is not finite (see `OptimizerWrapper._update_unless`).
    return torch.optim.AdamW(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)
