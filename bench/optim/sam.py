"""Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412, algorithm 1), plain and adaptive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.optim.method import Closure, Method, global_norm, gradients, kept_buffers, rewinder
from bench.optim.sparse import Rows, is_sparse
from bench.optim.types import AtLeastOne, NonNegative
from bench.registry import register_optimizer


class SAM(Method):
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
        m: examples that share one perturbation, for loops that ask (that of `bench run` does): they hand `step` a
            closure for every m examples of a batch. None: the batch is the part.

    Raises:
        TypeError: base is no optimizer, or `step` gets no closure.
        ValueError: rho or eta is negative, m is less than 1.

    The ascent follows the gradient of the loss alone: a base's weight decay is not in it. The loss returned is L(w).
    A gradient that is not finite, in either pass, leaves weights and base state alone and counts in `skipped_steps`.
    In a loop of yours with DistributedDataParallel, a closure that calls the wrapped model averages the gradients of
    both passes over the processes: one perturbation for the whole batch. For one a process (the paper's m), have the
    first evaluation of each step go forward *and* backward under `ddp.no_sync()`, and the second one not: weights stay
    the same in all processes, since they only ever follow the second gradient. A first gradient that is not finite
    makes NaN of that process's second one, so of everyone's mean, and all of them skip the step.

    Memory: one copy of the parameters above the base, during the step only. e is built in the gradients' storage. Of
    parameters with sparse gradients (embeddings) only the rows that a batch touches are moved and copied.

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

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        m: int | None = None,
    ) -> None:
        if not eta >= 0:
            raise ValueError(f"SAM: eta must be >= 0, got {eta}")
        if m is not None and m < 1:
            raise ValueError(f"SAM: m must be >= 1, got {m}")
        super().__init__(base, model=model, clip_norm=clip_norm, rho=rho)
        self.adaptive = adaptive
        self.eta = eta
        self.m = m

    def _fill(self, group: dict[str, Any]) -> None:
        super()._fill(group)
        if not group["rho"] >= 0:
            raise ValueError(f"SAM: rho must be >= 0, got {group['rho']}")

    def gradient(self, closure: Closure) -> tuple[Tensor, Tensor | None]:
        if all(group["rho"] == 0 for group in self.param_groups):
            return closure(), None
        rewind = rewinder(next(p.device for group in self.param_groups for p in group["params"]))
        loss = closure()
        with self._at_the_worst_point() as norm, kept_buffers(self.model):
            rewind()
            closure()
        return loss, norm

    @contextmanager
    def _at_the_worst_point(self) -> Iterator[Tensor]:
        """Move the weights by e, in place, and put the very same bits back on leaving, come what may.

        Gradients are listed in functions of their own: a list kept here would keep e alive through the second pass.
        """
        groups = [([p for p in group["params"] if p.grad is not None], group["rho"]) for group in self.param_groups]
        sparse = {p: Rows(p) for parameters, _ in groups for p in parameters if is_sparse(p)}
        if sparse:
            groups = [([sparse[p].copy if p in sparse else p for p in parameters], rho) for parameters, rho in groups]
        weights = [p for parameters, _ in groups for p in parameters]
        if not weights:
            yield global_norm([])
            return
        spare = [torch.empty_like(p) for p in weights]
        norm = self._ascent_norm(weights, spare)
        torch._foreach_copy_(spare, weights)
        try:
            for parameters, rho in groups:
                _move(parameters, rho / (norm + 1e-12))
            for table, rows in sparse.items():
                table.grad = None
                rows.put_back()
            torch.clear_autocast_cache()  # an autocast around both passes keeps what it cast w to
            yield norm
        finally:
            torch._foreach_copy_(weights, spare)
            for rows in sparse.values():
                rows.put_back()
            torch.clear_autocast_cache()

    def _ascent_norm(self, weights: list[Any], spare: list[Tensor]) -> Tensor:
        """The norm of g; or, for ASAM, that of T g, with T^2 g left in place of g."""
        ascent = gradients(weights)
        if not self.adaptive:
            return global_norm(ascent)
        torch._foreach_copy_(spare, weights)  # `spare` holds T until it is needed for the weights
        torch._foreach_abs_(spare)
        torch._foreach_add_(spare, self.eta)
        torch._foreach_mul_(ascent, spare)
        norm = global_norm(ascent)
        torch._foreach_mul_(ascent, spare)
        return norm


def _move(parameters: list[Any], scale: Tensor) -> None:
    """Add the scaled gradients, and let go of them: they must not live through the second pass, nor be added to it."""
    ascent = gradients(parameters)
    if ascent:
        torch._foreach_mul_(ascent, scale)
        torch._foreach_add_(parameters, ascent)
    for parameter in parameters:
        parameter.grad = None


def two_unless_rho_is_0(params: dict[str, float]) -> int:
    return 2 if params["rho"] else 1


@register_optimizer("sam", wraps_base=True, passes=two_unless_rho_is_0)
def sam(base: torch.optim.Optimizer, model: nn.Module, *, rho: NonNegative = 0.05, m: AtLeastOne | None = None) -> SAM:
    """Sharpness-aware minimization over a base optimizer: two passes a step (Foret et al. 2021).

    m: examples that share one perturbation, a divisor of the batch size (m-sharpness, section 3 of the paper, whose
    m is 32: 256 images over 8 devices); default the whole batch.
    """
    return SAM(base, rho=rho, model=model, m=m)
