"""The largest eigenvalues of the Hessian of the mean loss, by Lanczos' method on Hessian-vector products."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.evaluate import BATCH
from bench.measures.surface import Surface
from bench.seeding import numpy_stream
from bench.tasks.base import Task

TOLERANCE = 1e-3
"""Relative accuracy of an eigenvalue."""

SPARE_VECTORS = 6
"""Lanczos vectors beyond twice the eigenvalues: the largest stand apart, so that few are enough (scipy takes 20)."""


@dataclass(frozen=True)
class Eigenvalues:
    """The largest ones, the largest first; NaN where Lanczos' method did not converge.

    Attributes:
        products: Hessian-vector products over all examples that it took, of about two forward-backward passes each.
    """

    values: list[float]
    products: int


class _MeanLoss(nn.Module):
    """A task's loss as curvlinops asks for one."""

    reduction = "mean"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.task.losses(outputs, targets).mean()


def largest_eigenvalues(surface: Surface, count: int, seed: int) -> Eigenvalues:
    """The `count` algebraically largest eigenvalues of the Hessian over all parameters that are trained.

    scipy's eigsh (ARPACK, implicitly restarted Lanczos) on the products of curvlinops' HessianLinearOperator, with
    PyTorch's plain attention kernel, which alone can be differentiated twice.

    Args:
        count: at most one less than there are parameters.
        seed: of the vector that Lanczos' method starts from.
    """
    with _jit_script_unmentioned():
        from curvlinops import HessianLinearOperator

    device = surface.parameters[0].device
    operator = HessianLinearOperator(
        surface.model,
        _MeanLoss(surface.task),
        surface.parameters,
        list(surface.parts(BATCH[device.type])),
        check_deterministic=False,  # eval mode and fixed examples are
        num_data=len(surface.split),
    )
    product, size = operator.to_scipy(), operator.shape[0]
    products = 0

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        result: np.ndarray = product @ vector
        return result

    start = numpy_stream(seed, "landscape", 0).standard_normal(size)
    with sdpa_kernel(SDPBackend.MATH), _jit_script_unmentioned():
        try:
            found: Any = eigsh(
                LinearOperator((size, size), matvec=counted, dtype=np.float64),
                k=count,
                which="LA",
                ncv=min(size, 2 * count + SPARE_VECTORS),
                v0=start,
                tol=TOLERANCE,
                return_eigenvectors=False,
            )
        except ArpackNoConvergence as error:
            found = error.eigenvalues
    values = sorted((float(value) for value in found), reverse=True)
    # Those that are missing could be any of them, so that the largest of the others need not be the largest.
    return Eigenvalues(values if len(values) == count else [float("nan")] * count, products)


@contextmanager
def _jit_script_unmentioned() -> Iterator[None]:
    """Without the warning that torch.jit.script is deprecated: linear_operator, which curvlinops imports, still calls
    it, and so does torch itself where it first differentiates forwards."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script", category=FutureWarning)
        yield
