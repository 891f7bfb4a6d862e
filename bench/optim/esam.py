"""Efficient SAM (Du et al. 2022, arXiv:2110.03141, algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from bench.optim.method import gradients, kept_buffers
from bench.optim.options import AscentOptions, share_perturbed
from bench.optim.perturbing import Perturbing
from bench.optim.types import NonNegative, Share
from bench.registry import register_optimizer


class ESAM(Perturbing):
    """SAM that moves a random part of the weights, and descends on the examples whose loss that raises most.

        e  = rho * g / (||g|| + 1e-12) * mask / beta     mask: each weight by itself, 1 with probability beta, else 0
        B+ = the gamma * |B| examples of the batch with the largest l(w + e) - l(w)
        w  <- base.step(w, grad L_B+(w + e))

    Its `step` takes another function than other methods': the losses of single examples, without a backward pass,
    which is ESAM's own since it decides on what.

    Args:
        beta: share of the weights that is moved; by 1 / beta as far, so that e is SAM's on average.
        gamma: share of the batch in the second pass; 1 is all of it. The paper takes beta 0.6 and gamma 0.5 for CIFAR.
        others: as of `bench.optim.perturbing.Perturbing`.

    Raises:
        TypeError: at a step whose function does not return one loss an example.

    Traps: ||e|| is rho only on average. To know l(w + e) of all examples takes a forward pass, counted as a third of a
    pass: 1 + 1/3 + gamma passes a step, where the paper leaves it out. Batch norm normalises B+ by B+'s own statistics,
    and with dropout B+ meets other masks than in the first pass. The masks of weights come from `seed` and the number
    of the step, not from torch's stream. What is chosen is chosen within a part (m), or a process.

    Example:
        >>> def losses(examples=slice(None)):
        ...     return torch.nn.functional.cross_entropy(model(x[examples]), y[examples], reduction="none")
        >>> loss = optimizer.step(losses)
    """

    needs_steps = True
    takes_losses = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: float = 0.05,
        beta: float = 0.6,
        gamma: float = 0.5,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not 0 < beta <= 1 or not 0 < gamma <= 1:
            raise ValueError(f"ESAM: beta and gamma must be in (0, 1], got {beta} and {gamma}")
        super().__init__(base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, **options)
        self.beta, self.gamma = beta, gamma

    def gradient(self, closure: Callable[..., Tensor]) -> tuple[Tensor, Tensor | None]:
        rewind = self.rewinder()
        before = closure()
        if before.ndim != 1:
            raise TypeError(
                "ESAM.step takes a function that returns the losses of single examples, without backward: "
                f"step(losses), where losses(examples) are those of some; got a result of shape {tuple(before.shape)}"
            )
        loss = self._backward(before)
        if not self.is_due():
            return loss, None
        with self.at_the_worst_point() as norm, kept_buffers(self.model):
            chosen = []
            if self.gamma < 1:
                rewind()
                rise = closure(grad=False) - before.detach()
                chosen.append(rise.topk(max(1, round(self.gamma * len(rise)))).indices)
            rewind()
            self._backward(closure(*chosen))
        return loss, norm

    def ascent(self, weights: list[Tensor]) -> Tensor:
        norm = super().ascent(weights)
        generator = self.generator()
        for gradient in gradients(weights):
            gradient.mul_(torch.empty_like(gradient).bernoulli_(self.beta, generator=generator).div_(self.beta))
        return norm

    def _backward(self, losses: Tensor) -> Tensor:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        with torch.enable_grad():
            loss = losses.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _passes(params: dict[str, Any]) -> float:
    gamma = params["gamma"]
    return 1 + share_perturbed(params) * float(gamma + (1 / 3 if gamma < 1 else 0))


@register_optimizer("esam", wraps_base=True, passes=_passes)
def esam(
    base: torch.optim.Optimizer,
    model: nn.Module,
    *,
    rho: NonNegative = 0.05,
    beta: Share = 0.6,
    gamma: Share = 0.5,
    **options: Unpack[AscentOptions],
) -> ESAM:
    """Efficient SAM: moves part of the weights, descends on part of the batch; 4/3 + gamma passes (Du et al. 2022).

    beta: share of the weights; gamma: share of the batch. Options as in sam.
    """
    return ESAM(base, rho=rho, beta=beta, gamma=gamma, model=model, **options)
