"""The random scaling under ShakeDrop and Shake-Shake: one factor in the forward pass, another in the backward pass.

Both factors are drawn in the forward pass, from torch's default generator of the device. Their distribution is that of
the papers, which draw the second one during the backward pass; but when all draws belong to the forward pass, whoever
rewinds the generator and evaluates a batch again (SAM's second pass) gets the same factors, whatever order autograd
takes. Nothing here looks at a drawn value on the host: no device sync, and `torch.compile` takes it in whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ScaledApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor, gradient_factor: Tensor) -> Tensor:
        ctx.save_for_backward(gradient_factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_factor,) = ctx.saved_tensors
        # The derivative of x * factor would be `factor`: the papers put another number in its place.
        return gradients[0] * gradient_factor, None, None


def scaled_apart(x_BCHW: Tensor, factor_B111: Tensor, gradient_factor_B111: Tensor) -> Tensor:
    """Return `x * factor`, with the gradient `gradient_factor` times the incoming one; the factors have no gradient."""
    dtype = x_BCHW.dtype  # a bf16 activation stays one
    out_BCHW: Tensor = _ScaledApart.apply(x_BCHW, factor_B111.to(dtype), gradient_factor_B111.to(dtype))
    return out_BCHW


def uniform_per_image(draws: int, x_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Return `draws` tensors (B, 1, 1, 1) of numbers uniform in [0, 1), on the device of x."""
    return torch.rand(draws, len(x_BCHW), 1, 1, 1, device=x_BCHW.device).unbind()
