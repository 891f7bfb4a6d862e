"""Sums over many tensors at once: norms, scalar products, checks for non-finite numbers. No function waits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from bench.optim.base.sharded import PLAIN, aligned_gradient, is_sharded, part_here
from bench.optim.base.sparse import coalesced

_is_sparse, _dtype = attrgetter("is_sparse"), attrgetter("dtype")

TINY = 1e-24
"""Added to squared norms, as 1e-12 is to norms: the projection onto a gradient of 0 is then 0, not NaN."""


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the existing gradients of the parameters; callers may change them in place.

    A sparse one has each of its entries once from here on, a complex one is seen as its real and imaginary parts, and
    of a DTensor it is the part that is here.
    """
    there = [gradient for p in parameters if (gradient := p.grad) is not None]
    # In the usual case (dense, real, not sharded) the gradients are returned as they are, without a call for each.
    if set(map(type, there)) - {Tensor} or any(map(_is_sparse, there)) or _any_complex(there):
        return [_plain(p, p.grad) for p in parameters if p.grad is not None]
    return there


def _any_complex(tensors: Sequence[Tensor]) -> bool:
    return any(dtype.is_complex for dtype in set(map(_dtype, tensors)))  # in half the time of asking each tensor


def _plain(parameter: Tensor, gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        return coalesced(parameter)
    if is_sharded(gradient):
        return as_real(aligned_gradient(parameter))
    if gradient.is_conj():  # only a mark so far: such a tensor cannot be seen as its parts
        parameter.grad = gradient = gradient.resolve_conj()
    return as_real(gradient)


def all_as_real(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return `as_real` of all tensors."""
    if set(map(type, tensors)).issubset(PLAIN) and not _any_complex(tensors):
        return tensors
    return list(map(as_real, tensors))


def as_real(tensor: Tensor) -> Tensor:
    """Return the tensor itself; for a complex one a real view (*shape, 2), as torch's optimizers use.

    Of a DTensor it is the part that is here.
    """
    if type(tensor) not in PLAIN and is_sharded(tensor):
        tensor = part_here(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _values(tensors: list[Tensor]) -> list[Tensor]:
    """Return the tensors themselves; for sparse ones their values."""
    return [t._values() if t.is_sparse else t for t in tensors] if any(map(_is_sparse, tensors)) else tensors


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, a scalar on their device; half precision is summed in fp32.

    Sparse tensors must be coalesced, as those of `gradients` are.
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float32)
    dtype = torch.float64 if torch.float64 in set(map(_dtype, tensors)) else torch.float32
    # The norm of all norms: a few kernels for all tensors, and no copy of their squares.
    norms = torch._foreach_norm(_values(tensors), 2, dtype=dtype)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def found_inf(tensors: list[Tensor]) -> Tensor:
    """Return 1.0 if any tensor has a number that is not finite, else 0.0: a scalar on their device.

    It is what a GradScaler computes while it divides by its scale, here by 1, which changes no bit. Of many small
    tensors on a CPU it takes a quarter of the time of their norm. Sparse ones have to be coalesced.
    """
    device = tensors[0].device if tensors else None
    flag = torch.zeros((), dtype=torch.float32, device=device)  # whatever the default dtype: the kernel takes no other
    if tensors:
        torch._amp_foreach_non_finite_check_and_unscale_(_values(tensors), flag, torch.ones_like(flag))
    return flag


def dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Return the scalar product over all tensors together, a scalar on their device.

    Half precision is summed in fp32.
    """
    if not left:
        return torch.zeros((), dtype=torch.float32)
    # The products themselves are in the tensors' own dtype; only their sum is in fp32.
    dtype = torch.float64 if torch.float64 in set(map(_dtype, left)) else torch.float32
    return torch.stack([product.sum(dtype=dtype) for product in torch._foreach_mul(left, right)]).sum()


def tensors_of(params: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among what an optimizer takes: parameters, or groups as dicts with "params"."""
    return [p for one in params for p in (one["params"] if isinstance(one, dict) else [one])]
