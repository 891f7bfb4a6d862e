"""Momentum-SAM (Becker et al. 2024, arXiv:2401.12033, algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from bench.optim.method import Closure, global_norm
from bench.optim.options import PerturbationOptions
from bench.optim.perturbing import Movable, Perturbing
from bench.optim.types import NonNegative
from bench.registry import register_optimizer

BUFFERS = ("momentum_buffer", "exp_avg")
"""Where torch's optimizers keep their momentum: SGD and RMSprop; Adam and its kin."""


class MomentumSAM(Perturbing):
    """SAM at the price of its base: the perturbation follows the momentum that the base has anyway.

        e  = -rho * v / (||v|| + 1e-12)                  v: the base's momentum before this step
        w  <- base.step(w, grad L(w + e))                which also moves v

    The minus is the paper's: where momentum has carried the weights to, going on the same way raises the loss.

    Args:
        base: a torch optimizer with momentum: SGD's, or the first moment of Adam and its kin.
        rho: the paper's best are far above SAM's, 0.3 to 3.
        others: as of `bench.optim.perturbing.Perturbing`, without m and ascent_decay: e is the same for all examples.

    Raises:
        ValueError: the base has no momentum.

    Traps: the one pass is at w + e, so the loss that is returned is L(w + e), and batch-norm statistics are those of
    w + e. The first step has no momentum yet and is the base's. Where the paper keeps the weights moved between steps
    and moves them back to be evaluated, ours are at w: the same numbers, and nothing to forget.
    """

    loss_is_at_w = False

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.3,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        **options: Unpack[PerturbationOptions],
    ) -> None:
        super().__init__(base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, **options)
        for group in self.param_groups:
            if not (group.get("momentum") or "betas" in group):
                raise ValueError(f"MomentumSAM: {type(base).__name__} has no momentum here; give it momentum > 0")

    def gradient(self, closure: Closure) -> tuple[Tensor, Tensor | None]:
        if not self.is_due():
            return closure(), None
        groups = self.movable(lambda p: self._momentum(p) is not None)
        norm = global_norm([v for group in groups for v in self._momenta(group)])

        def e(group: Movable) -> tuple[list[Tensor], Tensor]:
            return list(torch._foreach_neg(self._momenta(group))), group.rho / (norm + 1e-12)

        with self.moved(groups, e):
            return closure(), None

    def _momenta(self, group: Movable) -> list[Tensor]:
        return [v for p in group.parameters if (v := self._momentum(p)) is not None]

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        kept: dict[str, Any] = self.base.state.get(parameter, {})
        return next((kept[name] for name in BUFFERS if kept.get(name) is not None), None)


@register_optimizer("momentum-sam", wraps_base=True)
def momentum_sam(
    base: torch.optim.Optimizer, model: nn.Module, *, rho: NonNegative = 0.3, **options: Unpack[PerturbationOptions]
) -> MomentumSAM:
    """Momentum-SAM: perturbs along minus the base's momentum; one pass a step (Becker et al. 2024).

    rho: 0.3 to 3 in the paper. Options as in sam, without m and ascent_decay.
    """
    return MomentumSAM(base, rho=rho, model=model, **options)
