"""Loss-Equated SAM (Wang et al. 2026, arXiv:2605.10183)."""

from __future__ import annotations

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, Moment, share_perturbed
from bench.optim.base.perturbation import PerturbedGroup, PerturbedOptimizer
from bench.optim.base.schedule import lr_factor
from bench.optim.base.types import NonNegative


def _passes(params: dict[str, Any]) -> float:
    return 1 + (share_perturbed(params) if params["sigma"] else 0.0)


@register_optimizer("le-sam", wraps_base=True, passes=_passes)
class LESAM(PerturbedOptimizer):
    """Loss-Equated SAM: moves as far as costs a fixed rise of the loss; two passes per step (Wang et al. 2026).

    SAM's first-order rise of the loss is rho * ||g||, which differs from step to step. Here the rise is fixed, and the
    radius follows:

        g     = grad L(w)
        rho_t = min(sigma_t / (||g|| + 1e-12), rho)      one norm over all parameters of all groups
        e     = rho_t * g / (||g|| + 1e-12)
        w     <- base.step(w, grad L(w + e))

    sigma_t is sigma until `anneal_from`, then goes to 0 along half a cosine.

    Args:
        sigma: the rise of the loss to first order, in units of the loss; 0 is the base optimizer.
        rho: the paper's rho_max, the largest radius; 0 is the base optimizer. In a group "rho" overrides it there.
        anneal_from: share of training after which sigma is annealed, or "epoch 180" in an experiment file; None: sigma
            stays as it is. Needs total_steps, which `bench run` knows.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`; rho_schedule and rho_end are about the
            largest radius.

    Raises:
        ValueError: sigma, anneal_from or an option is impossible; or, at the first step, anneal_from is given and
            total_steps is not.

    Attributes:
        loss_scale: the factor that the closure's loss is multiplied with before its backward pass, a number or a
            tensor: `optimizer.loss_scale = scaler.get_scale()` with a GradScaler, 1 / n where each of n micro-batches
            divides its loss by n, the product with both. By default 1.

    Traps: unlike SAM's, this perturbation depends on the scale of the loss, so a loss that is scaled must be told of
    (`loss_scale`). Where gradients vanish the largest radius is all that holds the weights: it is SAM then, with that
    rho. Parts of a batch (m) have larger gradients than the whole, so smaller radii. Nothing is remembered but the
    number of the step, which annealing goes by.

    The paper anneals sigma in the last epochs of training. The three defaults are this package's and not published
    settings: sigma 0.05 moves as far as SAM's rho 0.05 does at a gradient of norm 1. Tune sigma as rho is tuned.
    """

    # e is 0 wherever g is 0, as SAM's is.
    takes_sparse = True
    # Annealing goes by the number of steps, which a checkpoint holds.
    needs_steps = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.5,
        sigma: NonNegative = 0.05,
        anneal_from: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, Moment] = 0.9,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not sigma >= 0:
            raise ValueError(f"LESAM: sigma must be >= 0, got {sigma}")
        if anneal_from is not None and (isinstance(anneal_from, str) or not 0 <= anneal_from < 1):
            raise ValueError(f"LESAM: anneal_from must be a share of training in [0, 1), or None, got {anneal_from!r}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self.sigma, self.anneal_from = sigma, anneal_from
        self.loss_scale: float | Tensor = 1.0

    def is_due(self) -> bool:
        # An e of 0 would cost a pass for nothing.
        return super().is_due() and self.sigma_now() > 0

    def radius(self, group: PerturbedGroup, norm: Tensor) -> float | Tensor:
        return torch.clamp(self.sigma_now() * self.loss_scale / (norm + 1e-12), max=group.rho)

    def sigma_now(self) -> float:
        """Return sigma at this step."""
        if self.anneal_from is None or self.sigma == 0:
            return self.sigma
        if self.total_steps is None:
            raise ValueError(
                "LESAM: anneal_from is a share of training: give the length of training, total_steps=..., or "
                "anneal_from=None for a sigma that stays as it is"
            )
        # Rounded first, as in `steps_inside`.
        begin = math.ceil(round(self.anneal_from * self.total_steps, 6))
        since = max(0, self.steps_done - begin)
        return self.sigma * lr_factor(since, self.total_steps - begin, 0, "cosine")
