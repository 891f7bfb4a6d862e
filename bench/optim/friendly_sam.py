"""Friendly SAM (Li et al. 2024, arXiv:2403.12350, algorithm 1)."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, check_choice, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.state import StatefulWrapper
from bench.optim.base.tensors import gradients
from bench.optim.base.types import Momentum, NonNegative, Variant


@register_optimizer("friendly-sam", wraps_base=True, passes=one_more_where_perturbed)
class FriendlySAM(PerturbedOptimizer, StatefulWrapper):
    """Friendly SAM: ascend along g minus sigma times an average of past g; two passes per step (Li et al. 2024).

    The direction d is the part of g that is particular to this batch:

        m_t = lmbda * m_{t-1} + (1 - lmbda) * g          g = grad L(w), m_0 = 0
        d   = g - sigma * m_t
        e   = rho * d / (||d|| + 1e-12),  w <- base.step(w, grad L(w + e))

    Args:
        sigma: how much of the average is taken away; 0 is SAM.
        lmbda: memory of the average. (lambda is a word of Python's.)
        variant: "authors": d = g - sigma * m_{t-1}, and m_1 is the first gradient, as in nblt/F-SAM. After 20 steps of
            a small convolutional net the variants differ by .19 to .39 of the distance moved at sigma 1 (lmbda .6 to
            .95), only because their averages begin differently, and by .25 at sigma .5 because of m_{t-1}. At sigma 1
            the directions differ only by that beginning, of weight lmbda^t: at lmbda .995 for more than 200 steps.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`.

    Traps: m_t contains this batch's g, with weight 1 - lmbda. If the gradient never changes, m_t becomes that gradient,
    and at sigma 1 only rounding is left to ascend along. m_0 is 0 and is not corrected, as in the paper's algorithm.
    Parts of a batch (m) share m_{t-1}, add each its own gradient, and leave the mean. The average is in the state_dict
    as "friendly_sam_average"; it moves only in steps that perturb. With a GradScaler it is scaled as gradients are, and
    a change of scale mixes scales: prefer bf16. Memory: the average, and a copy of g in the step.
    """

    # The average must be the same in all processes. `PerturbedOptimizer` cannot know: `combine` is not overridden.
    needs_averages = True
    remembers = "friendly_sam_average"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        sigma: NonNegative = 1.0,
        lmbda: Momentum = 0.9,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        variant: Variant = "paper",
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not sigma >= 0 or not 0 <= lmbda < 1:
            raise ValueError(f"FriendlySAM: sigma must be >= 0 and lmbda in [0, 1), got {sigma} and {lmbda}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        check_choice("FriendlySAM", "variant", variant, get_args(Variant))
        self.sigma, self.lmbda, self.variant = sigma, lmbda, variant

    def ascent(self, weights: list[Tensor]) -> Tensor:
        direction = gradients(weights)
        if not direction:
            return super().ascent(weights)
        # Copies, made before the lines below overwrite the gradients: the average is of g, not of d.
        self.note(weights, [g.clone() for g in direction])
        average = self.remembered(weights)
        if self.variant == "authors":
            torch._foreach_add_(direction, [m.nan_to_num(0.0) for m in average], alpha=-self.sigma)
        else:
            # g - sigma * m_t, with m_t written out, so that it needs no memory before the step is known to count.
            torch._foreach_mul_(direction, 1 - self.sigma * (1 - self.lmbda))
            torch._foreach_add_(direction, average, alpha=-self.sigma * self.lmbda)
        return super().ascent(weights)

    def nothing_of(self, parameter: Tensor) -> Tensor:
        # NaN, which the first gradient takes the place of: a first step that is skipped, which only the device knows,
        # leaves it. What is noted is finite.
        nothing = super().nothing_of(parameter)
        return nothing.fill_(torch.nan) if self.variant == "authors" else nothing

    def renewed(self, old: list[Tensor], noted: list[Tensor]) -> list[Tensor]:
        averages = list(torch._foreach_lerp(old, noted, 1 - self.lmbda))
        if self.variant == "authors":
            # NaN marks an average that has not begun: the first gradient takes its place (m_1 = g).
            return [torch.where(m.isnan(), g, average) for m, g, average in zip(old, noted, averages, strict=True)]
        return averages
