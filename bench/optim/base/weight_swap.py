"""Weights that are displaced during a pass and restored afterwards to the exact bits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from bench.core.deprecated import renamed
from bench.optim.base.tensors import all_as_real

LARGE = 1 << 16
"""Weights with at least this many numbers are checked for `can_stand_in`; for smaller ones it does not pay."""


class WeightSwap:
    """Weights that have been moved by e.

    A weight is moved in place and restored from a copy. For a large one `can_stand_in` may allow better: w + e is
    written into the memory of e, which is the weight's until `put_back` returns its own, untouched memory. That takes
    five reads and writes of that size instead of nine.

    Either way the sum has the same bits, there is one copy of the weights, and each ends where it was.
    """

    def __init__(self) -> None:
        self._elsewhere: list[tuple[Tensor, Tensor]] = []  # weights, and their own memory
        self._in_place: list[Tensor] = []
        self._copies: list[Tensor] = []  # of those in place

    def add(self, weights: Sequence[Tensor], direction: Sequence[Tensor], factor: Tensor | float) -> None:
        """Move weights by e = factor * direction; the real tensors (`all_as_real`) of direction are overwritten."""
        here, along = [], []
        for weight, e in zip(all_as_real(weights), direction, strict=True):
            if weight.numel() >= LARGE and can_stand_in(e, weight):
                self._elsewhere.append((weight, weight.data))
                weight.data = e.mul_(factor).add_(weight.data)
                increment_version(weight)  # a graph from before cannot go backward now, as after a change in place
            else:
                here.append(weight)
                along.append(e)
        if here:
            self._copies += copies_of(here)
            self._in_place += here
            torch._foreach_mul_(along, factor)
            torch._foreach_add_(here, along)

    def put_back(self) -> None:
        for weight, own in self._elsewhere:
            weight.data = own
            increment_version(weight)
        if self._in_place:
            torch._foreach_copy_(self._in_place, self._copies)


def copies_of(tensors: list[Tensor]) -> Sequence[Tensor]:
    """Return a copy of each tensor, made by few kernels (GPU) or, from torch 2.14 on, few calls (CPU)."""
    clone = getattr(torch, "_foreach_clone", None)
    if clone is not None and tensors[0].device.type == "cpu":
        clones: Sequence[Tensor] = clone(tensors)
        return clones
    copies = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)
    return copies


def can_stand_in(e: Tensor, weight: Tensor) -> bool:
    """Return whether the memory of e may stand in for the weight's own during a pass without side effects.

    Whoever shares the weight's memory (a view, a state_dict, a numpy array) would not see it move, and to whoever
    shares that of e (buckets in which gradients are exchanged) it belongs as well. On a GPU, CUDA graphs and
    cuDNN's flattened layers know weights by their addresses.
    """
    return (
        weight.device.type == "cpu"
        and type(weight) is nn.Parameter
        and type(e) is Tensor
        and e.layout == torch.strided
        and e.dtype == weight.dtype
        and e.stride() == weight.stride()
        and holds_its_memory_alone(e)
        and holds_its_memory_alone(weight)
    )


def holds_its_memory_alone(tensor: Tensor) -> bool:
    """Return whether a strided tensor shares its memory with no other tensor and no holder outside torch."""
    memory = tensor.untyped_storage()
    holders = torch._C._storage_Use_Count(memory._cdata)
    return holders == 2 and memory.nbytes() == tensor.numel() * tensor.element_size()  # the tensor and `memory`


if not TYPE_CHECKING:  # to type checkers, every misspelt name would be there
    __getattr__ = renamed(__name__, {"Moved": "WeightSwap"})
