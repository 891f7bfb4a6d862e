"""The largest eigenvalues of the Hessian of the mean loss, by Lanczos' method on Hessian-vector products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from bench.core.seeding import numpy_stream
from bench.evidence.measures.surface import Part, Surface
from bench.training.evaluate import BATCH

TOLERANCE = 1e-3
"""Relative accuracy of an eigenvalue."""

SPARE_VECTORS = 6
"""Lanczos vectors beyond twice the eigenvalues: the largest stand apart, so that few are enough (scipy takes 20)."""


@dataclass(frozen=True)
class Eigenvalues:
    """Hold the largest eigenvalues.

    Attributes:
        values: the largest first; all NaN where Lanczos' method did not converge.
        products: Hessian-vector products over all examples, of about two forward-backward passes each.
    """

    values: list[float]
    products: int


class _PlainWeightNorm(TorchFunctionMode):
    """Compute weight normalisation from operations whose second derivatives are right.

    The second derivative of torch's fused kernel takes the norm of the weights for a constant (torch 2.14).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        return _weight_norm(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def hessian_vector_product(surface: Surface, parts: list[Part], vector: Tensor) -> Tensor:
    """Return the product of the Hessian of the mean loss with a vector.

    The gradient is differentiated by a second backward pass (Pearlmutter 1994). Forward differentiation of the gradient
    (torch.func's jvp of jacrev) is not used: in torch 2.13 and 2.14 it gives wrong products for LayerNorm, InstanceNorm
    and batch norm in training mode, and none for SiLU, Mish and GroupNorm.

    Args:
        surface: model, task and weights.
        parts: all examples of the surface, in batches; a batch weighs as much as it has examples.
        vector: (P,) of the surface's dtype, in the order of `surface.parameters`.

    Returns:
        (P,) in double precision, in which the sum over batches is taken.
    """
    # The vector in the shapes of the parameters.
    pieces = torch.split(vector, [parameter.numel() for parameter in surface.parameters])
    along = [piece.view_as(weight) for piece, weight in zip(pieces, surface.parameters, strict=True)]
    total = torch.zeros_like(vector, dtype=torch.float64)
    # The plain attention kernel is the only one that can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        for part in parts:
            gradient = torch.autograd.grad(
                surface.mean_loss(part), surface.parameters, create_graph=True, materialize_grads=True
            )
            # Where the gradient does not depend on a weight (a linear loss), the weight's part of the product is 0.
            if not any(piece.requires_grad for piece in gradient):
                continue
            product = torch.autograd.grad(gradient, surface.parameters, along, materialize_grads=True)
            # The mean over all examples is that over batches, each weighed by its share of the examples.
            total += torch.cat([piece.flatten() for piece in product]).double() * (len(part[1]) / len(surface.split))
    return total


def largest_eigenvalues(surface: Surface, count: int, seed: int) -> Eigenvalues:
    """Return the `count` algebraically largest eigenvalues of the Hessian over all trained parameters.

    Uses scipy's eigsh (ARPACK, implicitly restarted Lanczos).

    Args:
        surface: model, task, weights and examples.
        count: at most one less than there are parameters.
        seed: of the vector that Lanczos' method starts from.
    """
    weights = surface.parameters[0]
    size = sum(parameter.numel() for parameter in surface.parameters)
    parts = list(surface.parts(BATCH[weights.device.type]))
    products = 0

    def product(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        along = torch.from_numpy(vector).to(weights.device, weights.dtype).flatten()
        return hessian_vector_product(surface, parts, along).cpu().numpy()

    # A start of our own: scipy's is random, and the last digits would change with it.
    start = numpy_stream(seed, "landscape", 0).standard_normal(size)
    try:
        computed: Any = eigsh(
            # ARPACK works in double precision, whatever the model computes in.
            LinearOperator((size, size), matvec=product, dtype=np.float64),
            k=count,
            which="LA",
            ncv=min(size, 2 * count + SPARE_VECTORS),
            v0=start,
            tol=TOLERANCE,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        computed = error.eigenvalues
    values = sorted((float(value) for value in computed), reverse=True)
    # Those that are missing could be any of them, so that the largest of the others need not be the largest.
    return Eigenvalues(values if len(values) == count else [float("nan")] * count, products)
