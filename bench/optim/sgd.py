"""Stochastic gradient descent with momentum."""

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.types import Momentum, NonNegative, Positive


@register_optimizer("sgd")
def sgd(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive,
    momentum: Momentum = 0.9,
    nesterov: bool = False,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """SGD with (Nesterov) momentum; weight decay is added to the gradient (L2).

    v <- momentum * v + (g + weight_decay * w);  w <- w - lr * v       (Sutskever et al. 2013, torch.optim.SGD)
    """
    return torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        # torch refuses Nesterov without momentum, and a sweep of momentum may contain 0.
        nesterov=nesterov and momentum > 0,
        weight_decay=weight_decay,
        # Fused: the device itself then skips a gradient that is not finite (see `OptimizerWrapper._update_unless`).
        fused=True,
    )
