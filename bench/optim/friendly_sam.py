"""Friendly SAM (Li et al. 2024, arXiv:2403.12350, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from bench.optim.memory import Remembering
from bench.optim.method import gradients
from bench.optim.options import AscentOptions, one_more_where_perturbed
from bench.optim.perturbing import Perturbing
from bench.optim.types import Momentum, NonNegative
from bench.registry import register_optimizer


class FriendlySAM(Perturbing, Remembering):
    """Ascend along what is special about this batch's gradient: without its average over past batches.

        m_t = lmbda * m_{t-1} + (1 - lmbda) * g          g = grad L(w), m_0 = 0
        d   = g - sigma * m_t
        e   = rho * d / (||d|| + 1e-12),  w <- base.step(w, grad L(w + e))

    Args:
        sigma: how much of the average is taken away; 0 is SAM.
        lmbda: memory of the average. (lambda is a word of Python's.)
        others: as of `bench.optim.perturbing.Perturbing`.

    Traps: m_t has this batch in it before it is taken away, with weight 1 - lmbda: of a gradient that never changes it
    comes to be that gradient, and what is left to ascend along is rounding. m_0 is 0 and is not corrected, as in the
    paper. Parts of a batch (m) share m_{t-1}, add each its own gradient, and leave the mean. The average is in the
    state_dict as "average_gradient"; it moves only in steps that perturb. With a GradScaler it is scaled as gradients
    are, and a change of scale mixes scales: prefer bf16. Memory: the average, and a copy of g during the step.
    """

    remembers = "average_gradient"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        sigma: float = 1.0,
        lmbda: float = 0.9,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not sigma >= 0 or not 0 <= lmbda < 1:
            raise ValueError(f"FriendlySAM: sigma must be >= 0 and lmbda in [0, 1), got {sigma} and {lmbda}")
        super().__init__(base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, **options)
        self.sigma, self.lmbda = sigma, lmbda

    def ascent(self, weights: list[Tensor]) -> Tensor:
        direction = gradients(weights)
        if direction:
            self.note(weights, [g.clone() for g in direction])
            torch._foreach_mul_(direction, 1 - self.sigma * (1 - self.lmbda))
            torch._foreach_add_(direction, self.remembered(weights), alpha=-self.sigma * self.lmbda)
        return super().ascent(weights)

    def renewed(self, old: list[Tensor], noted: list[Tensor]) -> list[Tensor]:
        return list(torch._foreach_lerp(old, noted, 1 - self.lmbda))


@register_optimizer("friendly-sam", wraps_base=True, passes=one_more_where_perturbed)
def friendly_sam(
    base: torch.optim.Optimizer,
    model: nn.Module,
    *,
    rho: NonNegative = 0.05,
    sigma: NonNegative = 1.0,
    lmbda: Momentum = 0.9,
    **options: Unpack[AscentOptions],
) -> FriendlySAM:
    """Friendly SAM: ascend along g minus sigma times an average of past g; two passes a step (Li et al. 2024).

    Options as in sam.
    """
    return FriendlySAM(base, rho=rho, sigma=sigma, lmbda=lmbda, model=model, **options)
