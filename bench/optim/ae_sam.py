"""AE-SAM, an adaptive policy to employ SAM (Jiang et al. 2023, arXiv:2304.14647)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup as TorchGroup
from typing_extensions import Unpack

from bench.core.process_group import ALONE, ProcessGroup
from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.options import Ascent, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.tensors import gradients
from bench.optim.base.types import Momentum, NonNegative


# Passes per step are known only after a run: this is their upper bound, two wherever a step may perturb.
@register_optimizer("ae-sam", wraps_base=True, passes=one_more_where_perturbed)
class AESAM(PerturbedOptimizer):
    """AE-SAM: SAM where the gradient is larger than of late, else the base; at most two passes (Jiang et al. 2023).

    The squared norm of the gradient stands for sharpness, and is compared with its own running mean and variance:

        s     = ||grad L(w)||^2                                       first pass
        mu    = delta * mu    + (1 - delta) * s                       mu = var = 0 before the first step
        var   = delta * var   + (1 - delta) * (s - mu)^2
        c     = (1 - t/T) * lambda_2 + t/T * lambda_1                 t: steps so far, T: all steps of training
        a step of SAM where s >= mu + c * sqrt(var), else w <- base.step(w, grad L(w))

    Args:
        delta: memory of mean and variance.
        lambda_1: the threshold at the end of training, in standard deviations above the mean.
        lambda_2: the same at its beginning. With 1 and -1 about half of all steps are SAM's if s is normal around a
            mean that does not move: few in the beginning, most at the end. Both far below 0 make SAM of it, both far
            above 0 the base; equal ones need no total_steps.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`, without perturb_every: when to perturb is
            what the method decides.

    Raises:
        ValueError: delta is not in [0, 1), a lambda is not finite, an option is impossible; or, at the first step,
            lambdas differ and there are no total_steps.

    Cost: between one and two passes per step. Recorded passes are those that were made; whatever is planned or shared
    out before a run (`bench run --dry-run`, tuning with equal passes) takes two, the upper bound, so that AE-SAM never
    gets more than its share.

    Traps: whether a second pass follows has to be known on the host, so that each step in which it may follow waits for
    the device once. s is of the loss alone, over all parameters and all processes that share the model, and before
    clipping; a skipped step leaves mean and variance as they were. Parts of a batch (m) are each decided on by their
    own s, against the same mean and variance, which then take in all of them: processes with parts of their own may
    differ in work. A GradScaler scales s by its square; a change of scale looks like a change of sharpness until mean
    and variance have followed: prefer bf16. Mean and variance are in the param_groups ("squared_norm_mean" and
    "squared_norm_variance"), so in every checkpoint.
    """

    needs_steps = True
    # Processes that saw different gradients would decide differently, and wait for each other's second pass for ever.
    needs_averages = True
    takes_sparse = True
    kept_settings: Mapping[str, float] = {"squared_norm_mean": 0.0, "squared_norm_variance": 0.0}

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        delta: Momentum = 0.9,
        lambda_1: float = -1.0,
        lambda_2: float = 1.0,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: TorchGroup | None = None,
        **options: Unpack[Ascent],
    ) -> None:
        if not 0 <= delta < 1 or not math.isfinite(lambda_1) or not math.isfinite(lambda_2):
            raise ValueError(
                f"AESAM: delta must be in [0, 1), lambda_1 and lambda_2 finite, got {delta}, {lambda_1} and {lambda_2}"
            )
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self.delta, self.lambda_1, self.lambda_2 = delta, lambda_1, lambda_2
        self._needs_total = self._needs_total or lambda_1 != lambda_2
        self._squared: list[Tensor] = []  # of the parts of this step

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if self._parts == 0:
            self._squared = []
        decided = len(self._squared)
        loss, norm = super().gradient(closure)
        # Processes with parts of their own decide differently, and exchange as many norms as each of them has parts.
        return loss, self._squared[-1].sqrt() if norm is None and len(self._squared) > decided else norm

    def goes_on(self) -> bool:
        parameters = self.parameters_with_gradient()
        # In fp64, where no norm that fp32 can hold has an infinite square.
        squared = self.reductions.norm(parameters, gradients(parameters)).double().square()
        self._squared.append(squared)
        mean, variance = self._renewed(squared)
        above = squared >= mean + self.threshold() * variance.sqrt()
        # All that share the model have the same sums; the same decision is worth one more exchange to them.
        return bool(self.reductions.anywhere(above.float()))

    def threshold(self) -> float:
        """Return how many standard deviations above the mean the squared norm must be for a step of SAM."""
        over = min(1.0, self.steps_done / self.total_steps) if self.total_steps else 0.0
        return (1 - over) * self.lambda_2 + over * self.lambda_1

    def after_update(self, skip: Tensor) -> None:
        super().after_update(skip)
        if not self._squared:
            return
        squared, self._squared = torch.stack(self._squared), []
        old, new = self._kept(squared), self._renewed(squared, self.group)
        skipped = (skip > 0) | ~torch.stack(new).isfinite().all()
        for group in self.param_groups:
            for name, before, after in zip(self.kept_settings, old, new, strict=True):
                group[self.keys[name]] = torch.where(skipped, before, after)

    def _kept(self, like: Tensor) -> list[Tensor]:
        """Return mean and variance so far, on the device and in the precision of a squared norm."""
        group = self.param_groups[0]
        return [
            torch.as_tensor(group[self.keys[name]], dtype=like.dtype, device=like.device) for name in self.kept_settings
        ]

    def _renewed(self, squared: Tensor, everyone: ProcessGroup = ALONE) -> list[Tensor]:
        """Return mean and variance after a squared norm, or after those of several parts, of all processes named."""

        def mean_of(numbers: Tensor) -> Tensor:
            mean = numbers.mean()
            everyone.mean_([mean])
            return mean

        mean, variance = self._kept(squared)
        mean = mean.lerp(mean_of(squared), 1 - self.delta)
        return [mean, variance.lerp(mean_of((squared - mean).square()), 1 - self.delta)]
