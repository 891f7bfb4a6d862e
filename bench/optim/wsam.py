"""WSAM, weighted sharpness as a regularization term (Yue et al. 2023, arXiv:2305.15817)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.companion import WithCompanion
from bench.optim.base.options import AscentOptions, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.tensors import as_real, gradients
from bench.optim.base.types import Momentum, NonNegative

AVERAGE = "trains at an average of other weights, and would lose a step that is not its own"


def _passes(params: dict[str, Any]) -> float:
    return one_more_where_perturbed(params) if params["gamma"] else 1.0


@register_optimizer(
    "wsam",
    wraps_base=True,
    passes=_passes,
    unfit={"schedule-free-sgd": AVERAGE, "schedule-free-adamw": AVERAGE},
)
class WSAM(PerturbedOptimizer, WithCompanion):
    """WSAM: sharpness as a regularizer of weight gamma / (1 - gamma), beside the base; two passes (Yue et al. 2023).

    It minimizes L(w) + gamma / (1 - gamma) * (L(w + e) - L(w)), where the bracket is SAM's measure of sharpness:

        g  = grad L(w),  g' = grad L(w + e)              as SAM
        w  <- base.step(w, g) - lr * gamma / (1 - gamma) * (g' - g)

    Decoupled, as weight decay is in AdamW: the base's momentum and moments are those of the loss alone, and sharpness
    acts as far as it is that of this step. That is the paper's choice.

    Args:
        gamma: 0 is the base, at one pass per step. At 1/2 the loss is SAM's, above it sharpness counts for more. The
            paper finds 0.8 to 0.95 best.
        decouple: False: the base follows the whole gradient, g + gamma / (1 - gamma) * (g' - g); at gamma 1/2 that is
            SAM bit for bit.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`.

    Raises:
        ValueError: gamma is not in [0, 1) or an option is impossible; decoupled, over a base that keeps other weights
            for evaluation (schedule-free). Experiment files refuse such a base in either case.

    Traps: near gamma 1 sharpness weighs 1 / (1 - gamma): lr that suits the base may be too large. It is in units of the
    gradient times lr: over a base that divides or signs its gradient (AdamW, Lion) its share of the step is another
    one than over SGD. A GradScaler, clipping and division by the number of micro-batches act on the sharpness term as
    on g (see `bench.optim.base.companion`): clip_norm is the largest norm of g, and both are scaled alike. The authors'
    code (dlrover/atorch) clips g and g' each by itself, with a default of 1.0 in some versions; else it is as here.
    Memory: one copy of the parameters more than SAM, of g during the second pass, with another of g' - g after it.
    """

    keeps_first_gradient = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        gamma: Momentum = 0.9,
        decouple: bool = True,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not 0 <= gamma < 1:
            raise ValueError(f"WSAM: gamma must be in [0, 1), got {gamma}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        if decouple and self.keeps_evaluation_weights:
            raise ValueError(
                f"WSAM: decoupled over {type(base).__name__}, which {AVERAGE}: take decouple=False or another base"
            )
        self.gamma, self.decouple = gamma, decouple
        self.weight = gamma / (1 - gamma)

    def is_due(self) -> bool:
        return self.weight > 0 and super().is_due()

    def combine(self, first: dict[Tensor, Tensor]) -> None:
        parameters, at_w = self.with_first(first)
        moved = gradients(parameters)
        if not moved:
            return
        if not self.decouple:
            # From g' to g by 1 - weight: at weight 1 the bits of g' stay as they are.
            torch._foreach_lerp_(moved, at_w, 1 - self.weight)
            return
        sharpness = torch._foreach_sub(moved, at_w)
        torch._foreach_copy_(moved, at_w)
        self.accompany(parameters, at_w, sharpness)

    def update_companions(self, parameters: list[Tensor], companions: list[Tensor], skip: Tensor) -> None:
        sharpness = dict(zip(parameters, companions, strict=True))
        for group in self.param_groups:
            here = [p for p in group["params"] if p in sharpness]
            if not here:
                continue
            # Filled, not multiplied by 0: where the step is skipped they may be infinite.
            down = [sharpness[p].masked_fill_(skip > 0, 0.0) for p in here]
            torch._foreach_mul_(down, group["lr"] * self.weight * (-1 if group.get("maximize") else 1))
            torch._foreach_sub_([as_real(p) for p in here], down)
