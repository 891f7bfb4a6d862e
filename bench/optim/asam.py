"""Adaptive SAM (Kwon et al. 2021, arXiv:2102.11600)."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, one_more_where_perturbed
from bench.optim.base.types import NonNegative
from bench.optim.sam import SAM, AdaptiveOn


# A class of its own: experiment files choose a method by name, and SAM's `adaptive` is no hyperparameter there.
@register_optimizer("asam", wraps_base=True, passes=one_more_where_perturbed)
class ASAM(SAM):
    """Adaptive SAM over a base optimizer: the neighbourhood scales with each weight; rho about ten times SAM's.

        e = rho * T^2 g / (||T g|| + 1e-12),  T = |w| + eta          all else as SAM

    It is `SAM(base, adaptive=True)` with other defaults. The paper (Kwon et al. 2021) takes rho 0.5 for CIFAR-10, 1.0
    for CIFAR-100, eta 0.01.

    Args:
        adaptive_on: "all" parameters, or those called "weight", as in the authors' code (T = 1 for the others), whose
            numbers belong to that.
        others: as of `bench.optim.sam.SAM`.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        # Ten times SAM's: ||e|| is at most rho times the largest T = |w| + eta, and most weights are far below 1.
        rho: NonNegative = 0.5,
        eta: NonNegative = 0.01,
        adaptive_on: AdaptiveOn = "all",
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        # Only the defaults are ASAM's own; `SAM.ascent` computes T^2 g.
        super().__init__(
            base,
            rho=rho,
            adaptive=True,
            eta=eta,
            adaptive_on=adaptive_on,
            model=model,
            clip_norm=clip_norm,
            total_steps=total_steps,
            norm_group=norm_group,
            **options,
        )
