"""Functional-SAM (Singh et al. 2025, arXiv:2502.02407)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.options import AscentOptions, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.types import NonNegative


@register_optimizer("functional-sam", wraps_base=True, passes=one_more_where_perturbed)
class FunctionalSAM(PerturbedOptimizer):
    """Functional-SAM: the network's Jacobian at w + e, the loss's derivative at w; two passes (Singh et al. 2025).

    The gradient of a loss L of logits z is J^T dL/dz, with J the Jacobian of z by the weights. SAM takes both factors
    at w + e, and can lower the perturbed loss by the second factor alone, whatever the network does; here only J moves:

        g  = grad L(w) = J(w)^T dL/dz(w)
        e  = rho * g / (||g|| + 1e-12)                   as SAM
        w  <- base.step(w, J(w + e)^T dL/dz(w))

    The closure says what the logits are, by one call (see `logits`). Their derivative is kept from the first backward
    pass, and takes the place of the one at w + e in the second. It is the closure's own: each part of a batch (m) and
    each micro-batch has its own.

    Args:
        base: a constructed torch optimizer.
        rho: as SAM's. The default is SAM's too, and no published setting.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`.

    Raises:
        RuntimeError: at a step whose closure does not call `logits`, or whose loss does not depend on what it was
            called with, or whose second evaluation calls it with tensors of other shapes, or not as often.

    Traps: a network that is linear in its weights has the same J everywhere, so this is the base; a loss that is linear
    in the logits has the same derivative everywhere, so this is SAM. What a loss adds past the logits (a penalty on
    weights or on hidden features, the loss of an auxiliary output that `logits` is not called with) has SAM's gradient,
    at w + e. The second evaluation computes a loss that nothing follows. Of a pipeline only the stage that has the
    loss calls `logits`. Memory: the derivative of the logits, between the two passes: batch * outputs numbers, with a
    language model batch * length * vocabulary.

    The paper also ascends along a preconditioned gradient (by Adam's second moment); this is its Functional-SAM alone.

    Example:
        >>> optimizer = FunctionalSAM(torch.optim.AdamW(model.parameters()), rho=0.05, model=model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_function(optimizer.logits(model(x)), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    takes_sparse = True
    # The loop hands `logits` what the loss is computed from.
    takes_logits: ClassVar[bool] = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self._derivatives: Derivatives | None = None  # of the evaluations of a closure, while there are any

    def logits(self, outputs: Tensor) -> Tensor:
        """Return `outputs` as they are, and make their derivative in both passes of a step that of the first pass.

        Args:
            outputs: what the loss is computed from, of any shape: logits, or a regression's predictions. It may be
                called after the loss is computed (from what a Hugging Face model returns, `logits(out.logits)`), but
                before its backward pass; and several times, once for each output or each micro-batch, in the same
                order in both passes.

        Outside of a step, and where no gradient is wanted, it does nothing.
        """
        if "base" not in vars(self):  # a wrapper of Lightning's or Fabric's: see `OptimizerWrapper.backward`
            return self.optimizer.logits(outputs)  # type: ignore[attr-defined, no-any-return]
        if self.reductions.group is not None and _is_trial():
            return outputs
        if self._derivatives is not None and outputs.requires_grad:
            outputs.register_hook(self._derivatives.hook(outputs, self.first_pass))  # type: ignore[no-untyped-call]
        return outputs

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if not self.is_due():
            return super().gradient(closure)
        self._derivatives = Derivatives()
        try:
            loss, norm = super().gradient(closure)
            if norm is not None:
                self._derivatives.check_all_used()
        finally:
            self._derivatives = None
        return loss, norm

    def ascent(self, weights: list[Tensor]) -> Tensor:
        # Here the first pass is over, and nothing has moved yet. Other stages of a pipeline have no logits.
        if self.reductions.group is None and self._derivatives is not None:
            self._derivatives.check_some_kept()
        return super().ascent(weights)


def _is_trial() -> bool:
    """Return whether a pipeline's schedule tries the loss, as it does once before its first step, to learn shapes."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "_backward_metadata_inference":
            return True
        frame = frame.f_back
    return False


class Derivatives:
    """The derivatives of the logits at w: kept in the first pass of a step, put in place of others in the second.

    They are known by the number of the call of `logits`, and within a call by the order of backward passes.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[torch.Size, list[Tensor]]] = []
        self._calls = 0  # in the second pass

    def hook(self, outputs: Tensor, first_pass: bool) -> Callable[[Tensor], Tensor | None]:
        """Return a function that autograd calls with the derivative of `outputs`."""
        if first_pass:
            kept: list[Tensor] = []
            self._kept.append((outputs.shape, kept))
            # A copy: whoever has the memory of this one (CUDA graphs) may use it again before the second pass.
            return lambda derivative: kept.append(derivative.detach().clone())
        self._calls += 1
        if self._calls > len(self._kept):
            raise RuntimeError(
                f"FunctionalSAM.logits is called {len(self._kept)} times in the first evaluation of the closure, and "
                "more often in the second: both must do the same"
            )
        shape, of_first = self._kept[self._calls - 1]
        if shape != outputs.shape:
            raise RuntimeError(
                f"FunctionalSAM.logits is called with a tensor of shape {tuple(outputs.shape)} in the second "
                f"evaluation of the closure, and of shape {tuple(shape)} in the first: both must see the same batch"
            )

        def replaced(_: Tensor) -> Tensor:
            if not of_first:
                raise RuntimeError(
                    "FunctionalSAM: the second evaluation of the closure goes backward to logits more often than the "
                    "first: both must do the same"
                )
            return of_first.pop(0)

        return replaced

    def check_some_kept(self) -> None:
        """Raise RuntimeError if the first pass has gone backward to no logits."""
        if not any(kept for _, kept in self._kept):
            missing = (
                "never calls it"
                if not self._kept
                else "computes its loss from other tensors, or calls it after the backward pass"
            )
            raise RuntimeError(
                "FunctionalSAM needs to know the logits: in the closure, call optimizer.logits(outputs) with the "
                "tensor that the loss is computed from, as in loss_function(optimizer.logits(model(x)), y); this "
                f"closure {missing}"
            )

    def check_all_used(self) -> None:
        """Raise RuntimeError if the second pass has gone backward to fewer logits than the first."""
        if any(kept for _, kept in self._kept):
            raise RuntimeError(
                "FunctionalSAM: the second evaluation of the closure calls logits less often than the first, so its "
                "gradient would be SAM's there: call optimizer.logits(outputs) in every evaluation"
            )
