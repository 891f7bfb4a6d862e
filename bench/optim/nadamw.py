"""Adam with Nesterov's momentum and decoupled weight decay."""

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.sharded import any_sharded
from bench.optim.base.tensors import tensors_of
from bench.optim.base.types import Momentum, NonNegative, Positive


@register_optimizer("nadamw")
def nadamw(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 1e-3,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
) -> torch.optim.Optimizer:
    """NAdamW: AdamW that looks one step of momentum ahead (Dozat 2016); the baseline of AlgoPerf (arXiv:2306.07179).

    m and v as Adam's;  w <- w - lr * weight_decay * w - lr * n / (sqrt(v / (1 - beta2^t)) + eps), where
    n = (beta1 * m + (1 - beta1) * g) / (1 - beta1^t), by timm. (torch's NAdam corrects both terms of n in other ways.)
    """
    from timm.optim.nadamw import NAdamW

    weights = list(params)
    # The joint operations of torch take no DTensors beside plain tensors, which tensor parallelism leaves.
    foreach = not any_sharded(tensors_of(weights))
    return NAdamW(weights, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, foreach=foreach)
