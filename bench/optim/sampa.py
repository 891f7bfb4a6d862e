"""SAMPa, SAM parallelized (Xie et al. 2024, arXiv:2410.10683)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.companion import WithCompanion
from bench.optim.base.options import Perturbation, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedGroup, PerturbedOptimizer
from bench.optim.base.sharded import any_sharded
from bench.optim.base.sparse import with_sparse_gradients
from bench.optim.base.state import StatefulWrapper
from bench.optim.base.tensors import gradients
from bench.optim.base.types import NonNegative


@register_optimizer("sampa", wraps_base=True, passes=one_more_where_perturbed, without={"pair"})
class SAMPa(PerturbedOptimizer, StatefulWrapper, WithCompanion):
    """SAMPa: SAM whose two gradients do not wait for each other; two passes per step (Xie et al. 2024).

    The perturbation follows the gradient d of an auxiliary point y, which the step before has left:

        y  = w - lr * d                                  d = 0 before the first step
        e  = rho * d / (||d|| + 1e-12)
        d' = grad L(y)                                   the next step's d
        w  <- base.step(w, (1 - lmbda) * grad L(w + e) + lmbda * d')

    y is where a plain step of gradient descent would go, so d is close to the gradient at w. Both passes are at points
    that are known when the step begins: on two devices they take the time of one.

    Args:
        rho: the authors' command for CIFAR-10 has 0.1.
        lmbda: share of d' in the step; 0 is SAMPa without it. The authors take 0.2. (lambda is a word of Python's.)
        pair: two processes, of which the first makes the pass at y and the other the one at w + e, at the same time.
            Both have the whole model, unwrapped, the same batch and the same random numbers; then they exchange the
            gradients and the model's buffers, and make the same update. Not in experiment files.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`, without m and ascent_decay, since e is the
            same for all examples, and without perturb_every, which would leave d to age.

    Raises:
        ValueError: lmbda is not in [0, 1], pair is no group of two processes or comes with a model that is split, an
            option is impossible; or, at a step, gradients are sparse.

    Traps: both passes are on the batch of the step, so e comes from the batch before. The authors' code computes
    grad L(w + e) on that batch before, the one that d is of; a step here has one batch, and one that is resumed cannot
    ask for another. Their code moves y by SGD's momentum and weight decay, too; here it is the plain step that their
    equations have, over any base. As in their code the first step has no d yet: both passes are at w, and the step is
    the base's. The loss that is returned is L(y), and batch-norm statistics are those of y. d is in the state_dict as
    "sampa_gradient"; a skipped step leaves it. A GradScaler, clipping and division by the number of micro-batches act
    on d as on the gradient that the base follows (see `bench.optim.base.companion`). With a pair, the loss
    that is returned, and gradients of parameters in no group, are those of the process's own pass. Memory: d, and in a
    step one copy of the parameters more than SAM.
    """

    # The first pass is at y.
    loss_is_at_w = False
    needs_averages = makes_gradient = True
    remembers = "sampa_gradient"

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.1,
        lmbda: NonNegative = 0.2,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        pair: ProcessGroup | None = None,
        **options: Unpack[Perturbation],
    ) -> None:
        if not 0 <= lmbda <= 1:
            raise ValueError(f"SAMPa: lmbda must be in [0, 1], got {lmbda}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        if pair is not None and (norm_group is not None or any_sharded(self._parameters())):
            raise ValueError(
                "SAMPa: a pair of processes needs the whole model in each; leave pair or the splitting out"
            )
        if pair is not None and dist.get_world_size(pair) != 2:
            raise ValueError(f"SAMPa: pair must be a group of 2 processes, got {dist.get_world_size(pair)}")
        self.lmbda, self.pair = lmbda, pair

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if not self.is_due():
            return super().gradient(closure)
        loss, at_y = self._both(closure) if self.pair is None else self._one_each(closure, self.pair)
        if at_y is None:
            return loss, None
        parameters, d = self.with_first(at_y)
        followed = gradients(parameters)
        if followed:
            torch._foreach_lerp_(followed, d, self.lmbda)
        self.accompany(parameters, [g.clone() for g in followed], d)
        return loss, None  # a d that is not finite skips the step as a companion

    def _both(self, closure: Closure) -> tuple[Any, dict[Tensor, Tensor] | None]:
        """Make both passes; leave the gradient at w + e in `.grad`, and return the loss and the gradient at y.

        None instead of the gradient if the first pass has computed none, and no second one was made.
        """
        rewind = self.rewinder()
        with self._to_y():
            loss = closure()
        if self.nothing_to_follow():
            return loss, None
        self._refuse_sparse()
        at_y = self._copied_gradients()
        for parameter in at_y:
            parameter.grad = None  # whose memory is free; and nothing must be added to it
        with self.kept_state(), self._to_the_worst_point(), self.last_pass():
            rewind()
            closure()
        return loss, at_y

    def _one_each(self, closure: Closure, pair: ProcessGroup) -> tuple[Any, dict[Tensor, Tensor]]:
        """Make one pass, and take the gradient of the other from the other process; see `_both`."""
        if dist.get_rank(pair) == 0:
            with self._to_y():
                loss = closure()
        else:
            with self.kept_state(), self._to_the_worst_point():
                loss = closure()
        self._refuse_sparse()
        at_y = dict[Tensor, Tensor]()
        for parameter, here in self._copied_gradients().items():
            there = [torch.empty_like(here), torch.empty_like(here)]
            dist.all_gather(there, here.contiguous(), group=pair)
            at_y[parameter] = there[0]
            gradients([parameter])[0].copy_(there[1])
        # Batch-norm statistics are those of y.
        for buffer in self.model.buffers() if self.model is not None else ():
            dist.broadcast(buffer, group=pair, group_src=0)
        return loss, at_y

    def _refuse_sparse(self) -> None:
        if with_sparse_gradients(self._parameters()):
            raise ValueError(f"{type(self).__name__} takes no sparse gradients; SAM does")

    def _to_y(self) -> AbstractContextManager[None]:
        """Move the weights to y."""
        # Groups whose radius is lr: all parameters go there, also those that are never perturbed.
        groups = [
            PerturbedGroup(known, group["lr"], 0.0, -1 if group.get("maximize") else 1)
            for group in self.param_groups
            if (known := [p for p in group["params"] if p in self.memory])
        ]
        return self.moved(groups, lambda group: (self._copies(group), -group.sign * group.rho))

    def _to_the_worst_point(self) -> AbstractContextManager[None]:
        """Move the weights to w + e."""
        groups = self.movable(lambda p: p in self.memory)
        known = [p for group in groups for p in group.parameters]
        norm = self.reductions.norm(known, self.remembered(known))
        return self.moved(groups, lambda group: (self._copies(group), group.sign * group.rho / (norm + 1e-12)))

    def _copies(self, group: PerturbedGroup) -> list[Tensor]:
        # `moved` overwrites the direction, and d is needed again.
        return [d.clone() for d in self.remembered(group.parameters)]

    def update_companions(self, parameters: list[Tensor], companions: list[Tensor], skip: Tensor) -> None:
        for parameter, before, d in zip(parameters, self.remembered(parameters), companions, strict=True):
            self.memory[parameter] = torch.where(skip > 0, before, d)
