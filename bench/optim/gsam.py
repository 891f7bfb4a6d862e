"""Surrogate-gap guided SAM (Zhuang et al. 2022, arXiv:2203.08065, algorithm 1)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.tensors import TINY, gradients
from bench.optim.base.types import NonNegative


@register_optimizer("gsam", wraps_base=True, passes=one_more_where_perturbed)
class GSAM(PerturbedOptimizer):
    """Surrogate-gap guided SAM: g' minus alpha times the part of g orthogonal to it; two passes (Zhuang et al. 2022).

    SAM that also descends the gap between the perturbed loss and the loss:

        g  = grad L(w),  g' = grad L(w + e)              as SAM
        g_ = g - (g . g' / ||g'||^2) g'                  the part of g that is orthogonal to g'
        w  <- base.step(w, g' - alpha * g_)

    The minus is right: g' already lowers the perturbed loss, and -g_ raises L(w) without changing that loss to first
    order, which closes the gap.

    Args:
        alpha: weight of g_; 0 is SAM. The paper tries 0.01 to 0.4.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`. The paper has rho go down as lr does, from
            rho_max to rho_min: rho=rho_max, rho_schedule="lr", rho_end=rho_min, and lr_min where lr does not end at 0.

    Traps: one scalar product over all parameters, not one per tensor. g has to be kept through the second pass: one
    copy of the parameters more than SAM needs.
    """

    # SAM builds e in the memory of g; without a copy g would be gone when `combine` needs it.
    keeps_first_gradient = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        alpha: NonNegative = 0.1,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not alpha >= 0:
            raise ValueError(f"GSAM: alpha must be >= 0, got {alpha}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self.alpha = alpha

    def combine(self, first: dict[Tensor, Tensor]) -> None:
        parameters, at_w = self.with_first(first)
        moved = gradients(parameters)
        dot = partial(self.reductions.dot, parameters)
        # Outside the `if`: all processes that share the model take part in the sums, also one without gradients.
        along = dot(at_w, moved) / (dot(moved, moved) + TINY)
        if moved:  # g' - alpha (g - along g'), without a tensor for what is in the brackets
            torch._foreach_mul_(moved, 1 + self.alpha * along)
            torch._foreach_add_(moved, at_w, alpha=-self.alpha)
