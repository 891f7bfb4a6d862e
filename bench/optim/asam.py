"""Adaptive SAM (Kwon et al. 2021, arXiv:2102.11600)."""

import torch
from torch import nn

from bench.optim.sam import SAM, two_unless_rho_is_0
from bench.optim.types import AtLeastOne, NonNegative
from bench.registry import register_optimizer


@register_optimizer("asam", wraps_base=True, passes=two_unless_rho_is_0)
def asam(
    base: torch.optim.Optimizer,
    model: nn.Module,
    *,
    rho: NonNegative = 0.5,
    eta: NonNegative = 0.01,
    m: AtLeastOne | None = None,
) -> SAM:
    """Adaptive SAM over a base optimizer: the neighbourhood scales with each weight; rho about ten times SAM's.

    e = rho * T^2 g / ||T g|| with T = |w| + eta; the paper (Kwon et al. 2021) takes rho 0.5 for CIFAR-10, 1.0 for
    CIFAR-100, eta 0.01. m as in sam.
    """
    return SAM(base, rho=rho, adaptive=True, eta=eta, model=model, m=m)
