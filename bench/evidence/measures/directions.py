"""The loss along random directions of filter-normalised length (Li et al. 2018, arXiv:1712.09913, section 4).

The raw directions belong to the seed, so that all optimizers of one seed are looked at along the same ones; each model
then gives every filter of a direction the norm of its own filter. Parameters with fewer than two axes (biases, scales
and shifts of normalisation) stay where they are, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from bench.core.seeding import numpy_stream
from bench.evidence.measures.surface import Surface

EXTENT = 1.0
"""Lines and planes go from -1 to 1: as far as every filter is from 0."""


def direction(parameters: Sequence[Tensor], seed: int, number: int) -> list[Tensor]:
    """Return the seed's `number`-th (counted from 1) filter-normalised random direction for these parameters."""
    # Drawn on the host and in double precision: the same direction on every device.
    random = numpy_stream(seed, "landscape", number)
    raw = [torch.from_numpy(random.standard_normal(tuple(p.shape))) for p in parameters]
    return [filter_normalised(d.to(p.device, p.dtype), p.detach()) for d, p in zip(raw, parameters, strict=True)]


def filter_normalised(raw: Tensor, weights: Tensor) -> Tensor:
    """Give each filter of a direction (a slice of the first axis: of one output) the norm of that of the weights."""
    if weights.ndim < 2:
        return torch.zeros_like(weights)
    axes = tuple(range(1, weights.ndim))
    norms = torch.linalg.vector_norm(raw, dim=axes, keepdim=True)
    # A filter without any length in the direction stays 0.
    scale: Tensor = torch.linalg.vector_norm(weights, dim=axes, keepdim=True) / norms.clamp_min(1e-10)
    return raw * scale


def ticks(points: int) -> list[float]:
    """Return this many values from -1 to 1; the number is odd, so that 0 is one of them."""
    # Rounded, because linspace may miss 0, where the weights themselves are, by a last bit.
    return [float(value) for value in np.linspace(-EXTENT, EXTENT, points).round(12)]


def line(surface: Surface, along: Sequence[Tensor], points: int) -> list[tuple[float, float]]:
    """Return (alpha, loss at w + alpha d) for this many alpha from -1 to 1."""
    return [(alpha, _loss_at(surface, [d * alpha for d in along])) for alpha in ticks(points)]


def plane(
    surface: Surface, along: Sequence[Tensor], across: Sequence[Tensor], points: int
) -> list[tuple[float, float, float]]:
    """Return (alpha, beta, loss at w + alpha d + beta d') for alpha and beta from -1 to 1, alpha running slowest."""
    losses = []
    for alpha in ticks(points):
        for beta in ticks(points):
            by = [a * alpha + b * beta for a, b in zip(along, across, strict=True)]
            losses.append((alpha, beta, _loss_at(surface, by)))
    return losses


def _loss_at(surface: Surface, by: Sequence[Tensor]) -> float:
    with surface.moved(by):
        return surface.loss()
