"""Adam."""

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.types import Momentum, NonNegative, Positive


@register_optimizer("adam")
def adam(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 1e-3,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """Adam with bias correction; weight decay is added to the gradient (Kingma & Ba 2015, arXiv:1412.6980)."""
    # Fused: the device itself then skips a gradient that is not finite (see `OptimizerWrapper._update_unless`).
    return torch.optim.Adam(params, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=True)
