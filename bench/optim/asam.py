"""Adaptive SAM (Kwon et al. 2021, arXiv:2102.11600)."""

import torch
from torch import nn
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, one_more_where_perturbed
from bench.optim.base.types import NonNegative
from bench.optim.sam import SAM, AdaptiveOn


@register_optimizer("asam", wraps_base=True, passes=one_more_where_perturbed)
def asam(
    base: torch.optim.Optimizer,
    model: nn.Module,
    *,
    rho: NonNegative = 0.5,
    eta: NonNegative = 0.01,
    adaptive_on: AdaptiveOn = "all",
    **options: Unpack[AscentOptions],
) -> SAM:
    """Adaptive SAM over a base optimizer: the neighbourhood scales with each weight; rho about ten times SAM's.

    e = rho * T^2 g / ||T g|| with T = |w| + eta; the paper (Kwon et al. 2021) takes rho 0.5 for CIFAR-10, 1.0 for
    CIFAR-100, eta 0.01. adaptive_on: "all" parameters, or those called "weight", as in the authors' code (T = 1 for the
    others), whose numbers belong to that. Options as in sam.
    """
    return SAM(base, rho=rho, adaptive=True, eta=eta, adaptive_on=adaptive_on, model=model, **options)
