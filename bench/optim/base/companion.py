"""A second gradient per parameter, which goes through all that happens to the one that the base follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bench.optim.base.closures import Closure
from bench.optim.base.tensors import as_real, found_inf, gradients
from bench.optim.base.wrapper import OptimizerWrapper


class WithCompanion(OptimizerWrapper):
    """A method that needs another gradient at the update than the one that the base follows.

    Between a pass and the update, `.grad` is averaged over parts of the batch and over processes, unscaled by a
    GradScaler, and clipped. The companion has to go through the same. Averages are linear, and all else multiplies by
    one number: the norm of `.grad` at the update over the norm of what was noted as followed. It is exactly 1 where
    nothing has happened. (Where somebody has changed single numbers of `.grad`, it is the nearest there is.)

    A companion that is not finite skips the step as a gradient does. Memory: the companion and what is followed, until
    the update.
    """

    # Both have to be the same in all processes; the companion of a local gradient would not be.
    needs_averages = True

    def __init__(self, base: torch.optim.Optimizer, **settings: Any) -> None:
        super().__init__(base, **settings)
        self._followed: dict[Tensor, Tensor] = {}
        self._companions: dict[Tensor, Tensor] = {}

    def accompany(self, parameters: Sequence[Tensor], followed: Sequence[Tensor], companions: Sequence[Tensor]) -> None:
        """Note, in addition to what earlier parts of the step have noted, what goes with the gradients of this part.

        Args:
            parameters: those that the tensors belong to, in the same order.
            followed: the gradients that this part leaves for the base; the caller must not change them afterwards.
            companions: the others, of the same shapes; likewise.
        """
        for kept, tensors in ((self._followed, followed), (self._companions, companions)):
            for parameter, tensor in zip(parameters, tensors, strict=True):
                earlier = kept.get(parameter)
                kept[parameter] = tensor if earlier is None else earlier.add_(tensor)

    def update_companions(self, parameters: list[Tensor], companions: list[Tensor], skip: Tensor) -> None:
        """Use the companions, right after the base's update; to be overridden.

        Args:
            parameters: the same ones in all processes.
            companions: theirs, scaled as `.grad` was; the method may overwrite them.
            skip: 1 where the step is skipped: nothing must change then, and companions may not be finite.
        """

    def _evaluated(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if self._parts == 0:  # what a step has left that a GradScaler has skipped
            self._followed, self._companions = {}, {}
        loss, norm = super()._evaluated(closure)
        if self._companions:
            flag = found_inf(list(self._companions.values()))
            norm = torch.where(flag > 0, torch.inf, flag if norm is None else norm)
        return loss, norm

    def _update_unless(self, skip: Tensor) -> None:
        parameters, companions = self._as_followed()  # before the base, which may overwrite gradients
        super()._update_unless(skip)
        if parameters:
            self.update_companions(parameters, companions, skip)

    def _as_followed(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters that have companions, and these as averaged and scaled as `.grad` is now."""
        if not self._companions and self.reductions.group is None:
            return [], []
        parameters: list[Tensor] = list(self._companions)
        if self.group.size > 1:  # the same ones in all processes
            parameters = [p for p in self._parameters() if p.requires_grad]
        followed, companions = (
            [kept[p] if p in kept else torch.zeros_like(as_real(p)) for p in parameters]
            for kept in (self._followed, self._companions)
        )
        self._followed, self._companions = {}, {}
        self.group.mean_([*followed, *companions])
        here = [p for p in parameters if p.grad is not None]
        before, now = self.reductions.norm(parameters, followed), self.reductions.norm(here, gradients(here))
        if companions:
            torch._foreach_mul_(companions, (now / before).nan_to_num(nan=0.0, posinf=0.0))
        return parameters, companions
