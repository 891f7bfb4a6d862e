"""Steps of one length along the sign of a momentum."""

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.sharded import any_sharded
from bench.optim.base.tensors import tensors_of
from bench.optim.base.types import Momentum, NonNegative, Positive


@register_optimizer("lion")
def lion(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 1e-4,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.99,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """Lion: every weight moves by lr, in the direction of a momentum's sign (Chen et al. 2023, arXiv:2302.06675).

    w <- w - lr * weight_decay * w - lr * sign(beta1 * m + (1 - beta1) * g);  m <- beta2 * m + (1 - beta2) * g, by timm.
    """
    from timm.optim.lion import Lion

    weights = list(params)
    # The joint operations of torch take no DTensors beside plain tensors, which tensor parallelism leaves.
    foreach = not any_sharded(tensors_of(weights))
    return Lion(weights, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay, foreach=foreach)
