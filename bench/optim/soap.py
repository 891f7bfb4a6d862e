"""Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.registry import register_optimizer
from bench.optim.base.types import AtLeastOne, Momentum, NonNegative, Positive


@register_optimizer("soap")
def soap(
    params: Iterable[nn.Parameter],
    *,
    lr: Positive = 3e-3,
    beta1: Momentum = 0.95,
    beta2: Momentum = 0.95,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 0.01,
    precondition_every: AtLeastOne = 10,
) -> torch.optim.Optimizer:
    """SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al. 2024, arXiv:2409.11321).

    For a gradient G: L <- beta2 * L + (1 - beta2) * G G^T, R alike from G^T G, with eigenvectors Q_L and Q_R renewed
    every few steps; Adam on Q_L^T G Q_R, and its step turned back. By pytorch_optimizer.

    Args:
        precondition_every: steps between two renewals of the eigenvectors.

    Raises:
        BenchError: the package pytorch-optimizer is not installed.
    """
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise BenchError('soap needs the package pytorch-optimizer: pip install "sam-bench[rivals]"') from error
    return SOAP(
        params,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        precondition_frequency=precondition_every,
    )
