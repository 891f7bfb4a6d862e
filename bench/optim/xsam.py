"""XSAM (Chen & Zhou 2026, arXiv:2603.10048)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.options import AscentOptions, share_perturbed
from bench.optim.base.perturbation import PerturbedGroup, PerturbedOptimizer
from bench.optim.base.reductions import Reductions
from bench.optim.base.sharded import has_others
from bench.optim.base.sparse import Rows
from bench.optim.base.tensors import as_real, gradients
from bench.optim.base.types import AtLeastOne, NonNegative, Positive


def _passes(params: dict[str, Any]) -> float:
    # A forward pass alone is a third of one with its backward pass.
    search = 0.0 if params["alpha"] is not None else params["points"] / 3 / params["search_every"]
    return 1 + share_perturbed(params) * float(params["ascents"] + search)


@register_optimizer("xsam", wraps_base=True, passes=_passes)
class XSAM(PerturbedOptimizer):
    """XSAM: descends away from the worst point near w, which it searches for; 2.02 passes (Chen & Zhou 2026).

    SAM takes the gradient at w + e for the direction, seen from w, of the worst point near w. XSAM looks for that
    direction, between e and this gradient and beyond, and goes down along it:

        g = grad L(w),  e = rho * g / (||g|| + 1e-12),  g' = grad L(w + e)
        v0 = e / ||e||,  v1 = g' / ||g'||,  theta = the angle between them
        v(a) = sin((1 - a) theta) / sin(theta) * v0 + sin(a theta) / sin(theta) * v1
        w  <- base.step(w, ||g'|| v(alpha))

    v(0) is the ascent's direction, v(1) that of SAM, and all v(a) have length 1. In the first step, and in every
    `search_every`-th from there on, alpha is searched for: of `points` evenly spaced values from 0 to alpha_max it is
    the one with the largest L(w + rho_max * v(a)); other steps use what the last search has found.

    Args:
        base: a constructed torch optimizer.
        rho: length of the ascent, of all its parts together; 0 is the base optimizer.
        rho_max: distance from w at which losses are compared.
        alpha: None: it is searched for. A number: it is this one, without a search; 1 is SAM's gradient.
        alpha_max: the largest value that is tried.
        points: values that are tried, at least 2.
        search_every: steps from one search to the next, of those that perturb.
        ascents: parts of the ascent, each rho / ascents along the gradient where the last one has ended; g' is the
            gradient at the end of the last, v0 the direction from w to there.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`.

    Raises:
        ValueError: there is a norm_group; a setting or an option is impossible.
        TypeError: at a search, if the closure does not return its loss.

    Attributes:
        loss_only: true while a search asks for a loss alone. A closure may then leave its backward pass out; then a
            try costs a third of a pass, as `bench run` has it and 2.02 counts it, and else a whole one (2.05):
            `with torch.set_grad_enabled(not optimizer.loss_only): ...`, and no `loss.backward()`.

    Traps: the search compares losses of one batch. Each part of a batch (m), or micro-batch, searches for itself in a
    step that does; the mean of what they find is used from then on. It is in the param_groups as "alpha", and moves
    only where a step is not skipped. With DistributedDataParallel or FSDP2 losses are averaged over all processes of
    torch.distributed, which must all train this model. Parameters that are not perturbed (perturb_only, rho 0 in a
    group) follow g' as SAM's do. Memory: v0, a copy of the parameters beside SAM's own, one more per further ascent,
    and in a search a copy of g' and one of v(a).

    Defaults are those of the paper's code (Cccjl219/XSAM) for CIFAR-100 and ResNet-18: rho 0.15, rho_max 0.3, alpha
    from 0 to 2 in steps of 0.1, searched for in the first step of each epoch, which has 400 (50,000 images in batches
    of 125); set search_every to the steps of your epoch. Where v0 and v1 are parallel their code takes half of v0 + v1,
    which this has as a limit: (1 - a) v0 + a v1. Losses below 0 count here, and theirs leave alpha at 0.
    """

    # v(a) is no sum of gradients.
    needs_averages = makes_gradient = True
    # The place in the period of searches follows from the number of steps.
    needs_steps = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.15,
        rho_max: Positive = 0.3,
        alpha: NonNegative | None = None,
        alpha_max: Positive = 2.0,
        points: Annotated[int, Field(ge=2)] = 21,
        search_every: AtLeastOne = 400,
        ascents: AtLeastOne = 1,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if norm_group is not None:
            raise ValueError(
                "XSAM does not support norm_group: it compares losses, which only the last stage of a pipeline has. "
                "Use SAM, or XSAM with FSDP2 or tensor parallelism, which need no norm_group"
            )
        if not rho_max > 0 or not alpha_max > 0:
            raise ValueError(f"XSAM: rho_max and alpha_max must be above 0, got {rho_max} and {alpha_max}")
        if alpha is not None and not alpha >= 0:
            raise ValueError(f"XSAM: alpha must be >= 0, or None to search for it, got {alpha}")
        if points < 2 or search_every < 1 or ascents < 1:
            raise ValueError(
                f"XSAM: points must be >= 2, search_every and ascents >= 1, got {points}, {search_every} and {ascents}"
            )
        self.ascents = ascents  # before the groups are filled: `rho_now` needs it
        # The number stands in the groups, so that it is saved and loaded with them.
        self.kept_settings = {"alpha": 1.0 if alpha is None else alpha}
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self.rho_max, self.searches, self.search_every = rho_max, alpha is None, search_every
        self.alphas = [alpha_max * n / (points - 1) for n in range(points)]
        self.loss_only = False
        self._found: list[Tensor] = []  # by the parts of this step
        self._ascended: dict[Tensor, Tensor] | None = None  # the way of an ascent, while there is one

    def rho_now(self, group: dict[str, Any]) -> float | Tensor:
        return super().rho_now(group) / self.ascents

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if self._parts == 0:
            self._found = []
        if not self.is_due():
            return super().gradient(closure)
        rewind = self.rewinder()
        loss = closure()
        if self.nothing_to_follow():
            return loss, None
        groups, way, norms = self.movable(), dict[Tensor, Tensor](), list[Tensor]()
        searching = self._searches_now()
        with self.kept_state():
            # On exit the weights are back at w.
            with ExitStack() as ascents:
                for number in range(self.ascents):
                    self._ascended = way
                    norms.append(ascents.enter_context(self.at_the_worst_point()))
                    rewind(last=not searching and number == self.ascents - 1)
                    closure()
            plane = Plane(self.reductions, groups, way)
            if searching:
                alpha: float | Tensor = self._search(plane, closure, rewind)
            else:
                alpha = self.param_groups[0][self.keys["alpha"]]
        plane.turn(alpha)
        return loss, torch.stack(norms).sum()  # not finite if any of them is not

    @contextmanager
    def moved(
        self,
        groups: list[PerturbedGroup],
        e: Callable[[PerturbedGroup], tuple[list[Tensor], Tensor | float]],
        sparse: Collection[Rows] = (),
    ) -> Iterator[None]:
        way, self._ascended = self._ascended, None  # only the ascent's own move, not those of a search

        def noted(group: PerturbedGroup) -> tuple[list[Tensor], Tensor | float]:
            direction, factor = e(group)
            # A group with rho 0 is not perturbed, so it follows g'.
            if way is not None and (isinstance(group.rho, Tensor) or group.rho != 0):
                for parameter, part in zip(
                    group.parameters, torch._foreach_mul(direction, factor * group.sign), strict=True
                ):
                    way[parameter] = way[parameter].add_(part) if parameter in way else part
            return direction, factor

        with super().moved(groups, noted, sparse):
            yield

    def after_update(self, skip: Tensor) -> None:
        super().after_update(skip)
        found, self._found = self._found, []
        if not found:
            return
        alpha = torch.stack(found).mean()
        self.group.mean_([alpha])
        for group in self.param_groups:
            # A tensor takes the place of the number, so that nothing waits for the device.
            old = torch.full_like(alpha, 1.0) * group[self.keys["alpha"]]
            group[self.keys["alpha"]] = torch.where(skip.to(alpha.device) > 0, old, alpha)

    def _searches_now(self) -> bool:
        since = self.steps_inside()
        return self.searches and since is not None and since // self.perturb_every % self.search_every == 0

    def _search(self, plane: Plane, closure: Closure, rewind: Callable[..., None]) -> Tensor:
        """Return the alpha of the largest loss at distance rho_max, a scalar; the first of several equal ones."""
        # Copies: whoever owns the memory of gradients (buckets, CUDA graphs) uses it again in the passes below.
        kept = {p: p.grad.clone() for p in self.parameters_with_gradient() if p.grad is not None}
        losses = []
        self.loss_only = True
        try:
            for alpha in self.alphas:
                for parameter in self._parameters():
                    parameter.grad = None
                with self.moved(plane.groups, plane.step(alpha, self.rho_max, kept)):
                    rewind(last=alpha == self.alphas[-1])
                    losses.append(_number(closure()))
        finally:
            self.loss_only = False
            for parameter in self._parameters():
                parameter.grad = kept.get(parameter)
        compared = torch.stack(losses).to(plane.angle.device)
        if self.group.size == 1 and has_others():
            dist.all_reduce(compared)
        if any(group.sign < 0 for group in plane.groups):  # for a base that maximizes the lowest is the worst
            compared = -compared
        worst = compared.nan_to_num(-torch.inf, torch.inf, -torch.inf).argmax()
        # Filled in there and gathered: a copy from the host, or an index that is a tensor, would make the host wait.
        alphas = [torch.full((), alpha, dtype=torch.float32, device=compared.device) for alpha in self.alphas]
        alpha_found = torch.stack(alphas).gather(0, worst.view(1)).squeeze(0)
        self._found.append(alpha_found)
        return alpha_found


class Plane:
    """The plane of v0 and v1, of which v1 is the gradients that are there.

    Args:
        groups: parameters that may have been moved; those of them that were count.
        way: from w to where the ascents have ended, for a base that minimizes; v0 is made of its tensors.

    Attributes:
        groups: the parameters that were moved.
        angle: between v0 and v1, in radians.
    """

    def __init__(self, reductions: Reductions, groups: list[PerturbedGroup], way: dict[Tensor, Tensor]) -> None:
        there = [replace(group, parameters=[p for p in group.parameters if p in way]) for group in groups]
        self.groups = [group for group in there if group.parameters]
        self.v0, self._parameters = way, [p for group in self.groups for p in group.parameters]
        for parameter in self._parameters:
            if parameter.grad is None:  # stochastic depth: not in the last pass
                parameter.grad = torch.zeros_like(parameter)
        g, all_v0 = gradients(self._parameters), [way[p] for p in self._parameters]
        self._length = reductions.norm(self._parameters, g)
        length = reductions.norm(self._parameters, all_v0)
        if all_v0:
            torch._foreach_div_(all_v0, length + 1e-30)
        cosine = reductions.dot(self._parameters, all_v0, g) / (self._length + 1e-30)
        self.angle = torch.arccos(cosine.clamp(-1, 1))

    def step(
        self, alpha: float, rho_max: float, v1: dict[Any, Tensor]
    ) -> Callable[[PerturbedGroup], tuple[list[Tensor], Tensor]]:
        """Return a function that gives rho_max * v(alpha) of a group, as `PerturbedOptimizer.moved` takes it.

        Args:
            v1: gradients of its length, which stand in for those that are there.
        """
        of_v0, of_v1 = self._shares(alpha)

        def e(group: PerturbedGroup) -> tuple[list[Tensor], Tensor]:
            direction = list(torch._foreach_mul([self.v0[p] for p in group.parameters], of_v0))
            g = [as_real(v1[p]) for p in group.parameters]
            torch._foreach_add_(direction, torch._foreach_mul(g, of_v1 / (self._length + 1e-30)))
            return direction, torch.full_like(self.angle, group.sign * rho_max)

        return e

    def turn(self, alpha: float | Tensor) -> None:
        """Overwrite the gradients with v(alpha), times their length."""
        if not self._parameters:
            return
        of_v0, of_v1 = self._shares(alpha.to(self.angle) if isinstance(alpha, Tensor) else alpha)
        g, all_v0 = gradients(self._parameters), [self.v0[p] for p in self._parameters]
        torch._foreach_mul_(g, of_v1)
        torch._foreach_add_(g, torch._foreach_mul(all_v0, of_v0 * self._length))

    def _shares(self, alpha: float | Tensor) -> tuple[Tensor, Tensor]:
        """Return what v0 and v1 are multiplied with in v(alpha)."""
        sine = torch.sin(self.angle)
        parallel = sine < 1e-8
        of_v0 = torch.where(parallel, 1 - alpha, torch.sin((1 - alpha) * self.angle) / sine)
        of_v1 = torch.where(parallel, alpha, torch.sin(alpha * self.angle) / sine)
        return of_v0, of_v1


def _number(loss: object) -> Tensor:
    """Return what a closure has returned as a scalar of its own memory.

    Raises:
        TypeError: it is not one number.
    """
    if not isinstance(loss, Tensor | float | int) or (isinstance(loss, Tensor) and loss.numel() != 1):
        raise TypeError(
            "XSAM.step needs a closure that returns its loss, one number, to search for the worst direction; got an "
            f"object of type {type(loss).__name__}. With alpha=... nothing is searched for"
        )
    return torch.as_tensor(loss).detach().reshape(()).clone()
