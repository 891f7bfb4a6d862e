"""Adam in the eigenbasis of Shampoo's preconditioner."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.registry import register_optimizer
from bench.optim.base.sharded import any_sharded
from bench.optim.base.tensors import tensors_of
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
        BenchError: the package pytorch-optimizer is not installed, or weights are sharded over processes.
    """
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise BenchError('soap needs the package pytorch-optimizer: pip install "sam-bench[rivals]"') from error
    weights = list(params)
    if any_sharded(tensors_of(weights)):
        raise BenchError(
            "soap makes its preconditioners of whole matrices, but the weights of this model are sharded (DTensors, as "
            "of FSDP2): take muon, which gathers them, or nadamw"
        )
    return SOAP(
        weights,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        precondition_frequency=precondition_every,
    )
