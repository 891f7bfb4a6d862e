"""SGD and AdamW without a schedule: the weights that are evaluated are an average of those that are trained."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.registry import register_optimizer
from bench.optim.base.sharded import any_sharded
from bench.optim.base.tensors import tensors_of
from bench.optim.base.types import Momentum, NonNegative, Positive

CONSTANT = {"schedule": "constant"}


@register_optimizer("schedule-free-sgd", needs=CONSTANT)
def schedule_free_sgd(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive,
    momentum: Momentum = 0.9,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """Schedule-free SGD: gradients at y, evaluation at x, an average of the iterates z (Defazio et al. 2024).

    y = (1 - momentum) * z + momentum * x;  z <- z - lr * (g(y) + weight_decay * y);  x <- (1 - c) * x + c * z with
    c = 1 / t at a constant lr (arXiv:2405.15682, eq. 2 to 4), by the authors' package schedulefree.
    """
    from schedulefree import SGDScheduleFree

    weights = list(params)
    optimizer: torch.optim.Optimizer = SGDScheduleFree(
        weights, lr=lr, momentum=momentum, weight_decay=weight_decay, foreach=_foreach(weights)
    )
    return optimizer


@register_optimizer("schedule-free-adamw", needs=CONSTANT)
def schedule_free_adamw(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 2.5e-3,
    beta1: Momentum = 0.9,
    beta2: Momentum = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.0,
) -> torch.optim.Optimizer:
    """Schedule-free AdamW: Adam's steps, evaluated at an average of the iterates (Defazio et al. 2024).

    arXiv:2405.15682, algorithm 1: as schedule-free SGD, with gradients divided by sqrt(v_hat) + eps; by the authors'
    package schedulefree.
    """
    from schedulefree import AdamWScheduleFree

    weights = list(params)
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(
        weights, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, foreach=_foreach(weights)
    )
    return optimizer


def _foreach(weights: Iterable[nn.Parameter]) -> bool:
    # The joint operations of torch take no DTensors beside plain tensors, which tensor parallelism leaves.
    return not any_sharded(tensors_of(weights))
