"""A control for SAM: weights moved by the same distance in a random direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.drawing import drawn, pass_over
from bench.optim.base.options import PerturbationOptions
from bench.optim.base.perturbation import PerturbedGroup, PerturbedOptimizer
from bench.optim.base.tensors import as_real
from bench.optim.base.types import AtLeastOne, NonNegative


@register_optimizer("random-direction", wraps_base=True)
class RandomDirection(PerturbedOptimizer):
    """Control: the gradient at a random point at distance rho; one pass per step (noise as in Wen et al. 2018).

        e  = rho * z / ||z||,  z ~ N(0, 1)               one norm over all parameters
        w  <- base.step(w, grad L(w + e))

    SAM's lead over this control is due to its direction. (Smoothing by noise: Wen et al. 2018, arXiv:1805.07898.)

    Args:
        m: examples that share one direction; None: the whole batch.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`, without ascent_decay.

    Traps: one pass, at w + e: the loss that is returned and batch-norm statistics are those of w + e. In many
    dimensions a random direction is almost orthogonal to any gradient: rho must be far above SAM's to matter.
    Directions come from `seed` and the number of the step, so they are the same after a restart and alike in all
    processes, and dropout masks are the base's.
    """

    # Directions are drawn from the seed and the number of the step (see `generator`).
    needs_steps = True
    loss_is_at_w = False

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        m: AtLeastOne | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[PerturbationOptions],
    ) -> None:
        super().__init__(
            base,
            rho=rho,
            model=model,
            clip_norm=clip_norm,
            total_steps=total_steps,
            norm_group=norm_group,
            m=m,
            **options,
        )

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if not self.is_due():
            return super().gradient(closure)
        generator = self.generator()
        # No gradient exists yet that tells which parameters the loss depends on: all trainable ones are moved.
        groups = self.movable(lambda p: p.requires_grad)
        parameters = [p for group in groups for p in group.parameters]

        def draw(numbers: Tensor) -> None:
            numbers.normal_(generator=generator)

        # In a pipeline each process draws for its own stage, after the numbers of the stages before it.
        pass_over(parameters, draw, self.reductions.group, generator.device)
        noise = [[drawn(as_real(p), p, draw) for p in group.parameters] for group in groups]
        # No 1e-12 as in SAM: normal random numbers are not all 0.
        norm = self.reductions.norm(parameters, [z for some in noise for z in some])

        def e(group: PerturbedGroup) -> tuple[list[Tensor], Tensor]:
            return noise.pop(0), group.rho / norm  # groups come in their order; none of it shall live through the pass

        with self.moved(groups, e), self.last_pass():
            return closure(), None
