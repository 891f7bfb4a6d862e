"""LookSAM (Liu et al. 2022, arXiv:2203.02714, algorithm 1)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.options import Ascent, share_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.state import StatefulWrapper
from bench.optim.base.tensors import TINY, gradients
from bench.optim.base.types import AtLeastOne, NonNegative


def _passes(params: dict[str, Any]) -> float:
    return 1 + share_perturbed(params) / float(params["k"])


@register_optimizer("looksam", wraps_base=True, passes=_passes)
class LookSAM(PerturbedOptimizer, StatefulWrapper):
    """LookSAM: a step of SAM every k steps, what it added reused between; 1 + 1/k passes per step (Liu et al. 2022).

        every k-th step:  g' = grad L(w + e),  g_v = g' - (g' . g / ||g||^2) g,  w <- base.step(w, g')
        the others:       w <- base.step(w, g + alpha * ||g|| / ||g_v|| * g_v)

    with g = grad L(w): g_v, the part of g' that is orthogonal to g, changes slowly.

    Args:
        k: period; 1 is SAM. The paper's 5 costs 1.2 passes per step.
        alpha: weight of what is reused. The paper takes 0.5 to 1.0.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`, without perturb_every, which k is.

    Traps: norms and the scalar product are over all parameters. What is remembered is g_v, in the state_dict as
    "looksam_reused"; a resumed run goes on in the same place of its period. A skipped step leaves g_v as it was.
    Memory: g_v between steps, and in every k-th one a copy of g.
    """

    # The place in the period follows from the number of steps, which a checkpoint holds.
    needs_steps = True
    keeps_first_gradient = True
    remembers = "looksam_reused"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        k: AtLeastOne = 5,
        alpha: NonNegative = 0.7,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[Ascent],
    ) -> None:
        if k < 1 or not alpha >= 0:
            raise ValueError(f"LookSAM: k must be >= 1 and alpha >= 0, got {k} and {alpha}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        # `is_due` goes by this name; it is no option of LookSAM's own.
        self.perturb_every = k
        self.alpha = alpha

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        # Every k-th step is SAM's. Outside perturb_from and perturb_until nothing is reused: the step is the base's.
        if self.is_due() or self.steps_inside() is None:
            return super().gradient(closure)
        loss = closure()
        if self.nothing_to_follow():
            return loss, None
        parameters, norm = self.parameters_with_gradient(), self.reductions.norm
        # ||g_v|| is over all that is remembered, also of parameters that have no gradient in this step.
        of_g, of_reused = norm(parameters, gradients(parameters)), norm(list(self.memory), list(self.memory.values()))
        factor = self.alpha * of_g / (of_reused + 1e-12)
        known = [p for p in self.memory if p.grad is not None]
        if known:
            torch._foreach_add_(gradients(known), torch._foreach_mul(self.remembered(known), factor))
        return loss, None

    def combine(self, first: dict[Tensor, Tensor]) -> None:
        parameters, at_w = self.with_first(first)
        moved = gradients(parameters)
        dot = partial(self.reductions.dot, parameters)
        # Only g_v is computed here, for the steps to come: the base follows g' itself, which stays in `.grad`.
        along = dot(moved, at_w) / (dot(at_w, at_w) + TINY)
        if moved:
            self.note(parameters, torch._foreach_sub(moved, torch._foreach_mul(at_w, along)))
