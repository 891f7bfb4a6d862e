"""Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412, algorithm 1), plain and adaptive."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from bench.optim.method import global_norm, gradients
from bench.optim.options import AscentOptions, one_more_where_perturbed
from bench.optim.perturbing import Perturbing
from bench.optim.types import NonNegative
from bench.registry import register_optimizer


class SAM(Perturbing):
    """Descend along the gradient found at the worst point within rho of the weights.

        g  = grad L(w)                                   first evaluation of the closure
        e  = rho * g / (||g|| + 1e-12)                   one norm over all parameters of all groups
        g' = grad L(w + e)                               second evaluation, same batch, same dropout masks
        w  <- base.step(w, g')                           from w itself, restored bit for bit

    ASAM (Kwon et al. 2021, arXiv:2102.11600) with `adaptive`: e = rho * T^2 g / (||T g|| + 1e-12), T = |w| + eta.

    Args:
        base: a constructed torch optimizer; its param_groups are shared, "rho" in a group overrides `rho` there.
        rho: radius of the neighbourhood, in the norm of the weights; 0 is the base optimizer. ASAM wants about ten
            times SAM's.
        adaptive: scale the neighbourhood by the size of each weight (ASAM).
        eta: ASAM's floor under the size of a weight.
        model: the module being trained. Given it, batch-norm statistics (all buffers) move once a step, as in a
            plain step; without it they move in both passes.
        clip_norm: largest norm of the final gradient g'; the ascent is never clipped.
        total_steps: steps of the whole training, for options that are shares of it; `bench run` knows it.
        options: where and when to perturb (m, perturb_only, perturb_every, perturb_from, perturb_until, rho_schedule,
            rho_end, ascent_decay): see `bench.optim.options`. m is for loops that ask (that of `bench run` does):
            they hand `step` a closure for every m examples of a batch.

    Raises:
        TypeError: base is no optimizer, `step` gets no closure, or there is no such option.
        ValueError: rho or eta is negative, or an option is impossible.

    The ascent follows the gradient of the loss alone, unless ascent_decay adds the base's weight decay. The loss that
    is returned is L(w). A gradient that is not finite, in either pass, leaves weights and base state alone and counts
    in `skipped_steps`.
    In a loop of yours with DistributedDataParallel, a closure that calls the wrapped model averages the gradients of
    both passes over the processes: one perturbation for the whole batch. For one a process (the paper's m), have the
    first evaluation of each step go forward *and* backward under `ddp.no_sync()`, and the second one not: weights stay
    the same in all processes, since they only ever follow the second gradient. A first gradient that is not finite
    makes NaN of that process's second one, so of everyone's mean, and all of them skip the step.

    Memory: one copy of the parameters above the base, during the step only. e is built in the gradients' storage, where
    on a CPU a large weight is during the second pass, unless its own memory has other users (see `bench.optim.moving`).
    Of parameters with sparse gradients (embeddings) only the rows that a batch touches are moved and copied.

    In a loop that is not yours, `backward(closure)` takes the place of `loss.backward()`, and `step()` stays what it is
    there; that is the way to accumulate, to clip by your own rule, and to use a GradScaler (fp16).

    Example:
        >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_function(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    takes_sparse = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not eta >= 0:
            raise ValueError(f"SAM: eta must be >= 0, got {eta}")
        super().__init__(base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, **options)
        self.adaptive = adaptive
        self.eta = eta

    def ascent(self, weights: list[Tensor]) -> Tensor:
        if not self.adaptive or not weights:
            return super().ascent(weights)
        direction, scale = gradients(weights), torch._foreach_abs(weights)
        torch._foreach_add_(scale, self.eta)
        torch._foreach_mul_(direction, scale)
        norm = global_norm(direction)
        torch._foreach_mul_(direction, scale)
        return norm


@register_optimizer("sam", wraps_base=True, passes=one_more_where_perturbed)
def sam(
    base: torch.optim.Optimizer, model: nn.Module, *, rho: NonNegative = 0.05, **options: Unpack[AscentOptions]
) -> SAM:
    """Sharpness-aware minimization over a base optimizer: two passes a step (Foret et al. 2021).

    m: examples that share one perturbation, a divisor of the batch size (m-sharpness, section 3 of the paper, whose
    m is 32: 256 images over 8 devices); default the whole batch. The other options say where and when to perturb.
    """
    return SAM(base, rho=rho, model=model, **options)
