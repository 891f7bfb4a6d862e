"""Efficient SAM (Du et al. 2022, arXiv:2110.03141, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import check_backward
from bench.optim.base.drawing import drawn
from bench.optim.base.options import AscentOptions, check_choice, share_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.side_effects import clear_caches
from bench.optim.base.tensors import gradients
from bench.optim.base.types import NonNegative, Share, Variant


def _passes(params: dict[str, Any]) -> float:
    gamma = params["gamma"]
    # The first pass, and where a step perturbs: a forward pass to rank the examples (1/3; none for gamma 1), and gamma.
    return 1 + share_perturbed(params) * float(gamma + (1 / 3 if gamma < 1 else 0))


@register_optimizer("esam", wraps_base=True, passes=_passes)
class ESAM(PerturbedOptimizer):
    """Efficient SAM: moves part of the weights, descends on part of the batch; 4/3 + gamma passes (Du et al. 2022).

    The part of the weights is random; the part of the batch is the examples whose loss the move raises most:

        e  = rho * g / (||g|| + 1e-12) * mask / beta     mask: each weight by itself, 1 with probability beta, else 0
        B+ = the gamma * |B| examples of the batch with the largest l(w + e) - l(w)
        w  <- base.step(w, grad L_B+(w + e))

    Its `step` takes another function than other methods': the losses of single examples, without a backward pass,
    which is ESAM's own since it decides on what.

    Args:
        beta: share of the weights that is moved; by 1 / beta as far, so that e is SAM's on average.
        gamma: share of the batch in the second pass; 1 is all of it. The paper takes beta 0.6 and gamma 0.5 for CIFAR.
        variant: "authors": as in dydjw9/Efficient_SAM, masks are of whole tensors, the norm is that of the tensors that
            are chosen, so ||e|| is rho / beta in every step (here about rho / sqrt(beta)), and B+ are the examples that
            rise by *more* than the one at rank gamma |B|: one fewer than here, or more fewer where examples tie; where
            none does, those that tie with it. How many they are is waited for on the device. After 20 steps of a small
            convolutional net the two differ by .58 of the distance moved at beta 1, gamma .5, and by .34 at beta .6.
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`.

    Raises:
        ValueError: there is a norm_group; beta, gamma or an option is impossible.
        TypeError: at a step whose function does not return one loss an example.

    Traps: ||e|| is not rho, but about rho / sqrt(beta). To know l(w + e) of all examples takes a forward pass, counted
    as a third of a pass: 1 + 1/3 + gamma passes per step; the paper leaves it out. Batch norm normalises B+ by B+'s
    own statistics, and with dropout B+ meets other masks than in the first pass. The masks of weights come from `seed`
    and the number of the step, not from torch's stream. What is chosen is chosen within a part (m), or a process.

    Example:
        >>> def losses(examples=slice(None)):
        ...     return torch.nn.functional.cross_entropy(model(x[examples]), y[examples], reduction="none")
        >>> loss = optimizer.step(losses)
    """

    # Masks are drawn from the seed and the number of the step (see `generator`).
    needs_steps = True
    # The loop hands `step` a function that returns the loss of each example and leaves backward to the method.
    takes_losses = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        beta: Share = 0.6,
        gamma: Share = 0.5,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        variant: Variant = "paper",
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if norm_group is not None:
            raise ValueError(
                "ESAM does not support norm_group: it chooses the examples of the backward pass, which pipeline "
                "schedules do not allow. Use SAM, or ESAM with FSDP2 or tensor parallelism, which need no norm_group"
            )
        if not 0 < beta <= 1 or not 0 < gamma <= 1:
            raise ValueError(f"ESAM: beta and gamma must be in (0, 1], got {beta} and {gamma}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        check_choice("ESAM", "variant", variant, get_args(Variant))
        self.beta, self.gamma, self.variant = beta, gamma, variant

    def gradient(self, closure: Callable[..., Tensor]) -> tuple[Tensor, Tensor | None]:
        rewind = self.rewinder()
        before = closure()
        if not isinstance(before, Tensor) or before.ndim != 1:
            got = f"shape {tuple(before.shape)}" if isinstance(before, Tensor) else f"type {type(before).__name__}"
            raise TypeError(
                "ESAM.step takes a function that returns the losses of single examples, without backward: "
                f"step(losses), where losses(examples) gives those of selected examples; got a result of {got}"
            )
        due = self.is_due()
        # In a step that perturbs, this gradient only gives the direction; in the others the base follows it.
        with nullcontext() if due else self.last_pass():
            loss = self._backward(before)
        if not due:
            return loss, None
        with self.kept_state(), self.at_the_worst_point() as norm:
            chosen = []
            if self.gamma < 1:
                # Forward only, for l(w + e). All passes have the dropout masks and buffers of the first one.
                rewind(last=False)
                rise = closure(grad=False) - before.detach()
                chosen.append(self._risen_most(rise))
                clear_caches()  # what that has left there has no graph
            rewind()
            with self.last_pass():
                self._backward(closure(*chosen))
        return loss, norm

    def ascent(self, weights: list[Tensor]) -> Tensor:
        if self.variant == "authors" and weights:
            # The authors' order: mask whole tensors, take the norm of those that are left, then divide by beta.
            generator = self.generator("cpu")
            # Drawn on the host, since the factors are Python numbers: numbers from a GPU would have to be waited for.
            chosen = torch.rand(len(weights), dtype=torch.float32, device="cpu", generator=generator) < self.beta
            torch._foreach_mul_(gradients(weights), chosen.double().tolist())
            norm = super().ascent(weights)
            torch._foreach_div_(gradients(weights), self.beta)
            return norm
        # The paper's order: the norm is that of the whole gradient, and the mask comes after it.
        norm = super().ascent(weights)
        generator = self.generator()

        def draw(mask: Tensor) -> None:
            mask.bernoulli_(self.beta, generator=generator)

        for weight, gradient in zip(weights, gradients(weights), strict=True):
            gradient.mul_(drawn(gradient, weight, draw).div_(self.beta))
        return norm

    def _risen_most(self, rise: Tensor) -> Tensor:
        """Return the indices of the examples in B+, those whose loss rises most."""
        if self.variant == "paper":
            return rise.topk(max(1, round(self.gamma * len(rise)))).indices
        # The authors take the examples strictly above this rank. If there are none (all tie), those at the rank count.
        last = rise.topk(max(1, int(self.gamma * len(rise)))).values[-1]
        above = (rise > last).nonzero().flatten()
        return above if len(above) else (rise >= last).nonzero().flatten()

    def _backward(self, losses: Tensor) -> Tensor:
        # No closure zeroes gradients here. Those of earlier micro-batches are not lost: `Earlier` has set them aside.
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with torch.enable_grad():
            loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        # `OptimizerWrapper._evaluated` leaves this check to methods with `takes_losses`.
        check_backward("ESAM.step", loss, self._parameters())
        return loss.detach()
