"""Tensors that are too large to copy in every step, or that foreach kernels do not accept."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

SAMPLE = 1 << 12
"""Numbers of a large, uncopied tensor that are compared, in the first step only."""


class Watched:
    """A tensor whose value the second pass must find, and leave, exactly as the first pass did.

    It is copied where it is small, or where a first pass has changed it, in this step or in one before. A pass has
    changed it if its version is a higher one, which autograd counts up at every write that it sees, or its memory is
    another one (`weight.data = ...`). A write through `.data`, by numpy or by a kernel of somebody's own is not seen:
    in the first step, and in every step if the tensor is small and on a CPU, numbers are compared. What has not changed
    is not written to: it may be in read-only memory.

    Args:
        small: numbers up to which a tensor is small.

    Attributes:
        moves: whether a first pass has ever changed it.
    """

    def __init__(self, tensor: Tensor, small: float) -> None:
        self.tensor, self.small = tensor, small
        self.moves = False
        self._mark: Any = None
        self._sample: Tensor | None = None
        self._before: Tensor | None = None
        self._after: Tensor | None = None
        self._rewound = False

    @property
    def nbytes(self) -> float:
        """Return the bytes of a copy; infinite for a tensor that is copied only once it is known to change."""
        torchs_own = _is_usual(self.tensor) and self.tensor.untyped_storage().resizable()
        return self.tensor.nbytes if torchs_own else math.inf

    def note(self, first: bool, room: bool) -> None:
        """Record the tensor before the first pass.

        Args:
            first: whether this is the first step.
            room: whether there is room for a copy although it may not be needed.
        """
        lazy = is_lazy(self.tensor)
        self._mark = None if lazy else _mark(self.tensor)
        self._before = self.tensor.detach().clone() if not lazy and (self._is_small() or self.moves or room) else None
        # Without a copy some numbers are kept instead, to see a write that the version does not count.
        unsure = first and self._before is None and _is_usual(self.tensor)
        self._sample = _sample(self.tensor) if unsure else None

    def keep(self, first: bool) -> None:
        """Record the tensor after the first pass, and whether that pass has changed it."""
        noted, mark, self._mark = self._mark is not None, self._mark, _mark(self.tensor)
        # A large tensor that has moved before is taken for changed without a comparison, which would read all of it.
        known_to_move = self.moves and not self._is_small()
        changed = noted and (mark != self._mark or known_to_move or self._differs(self._before, first))
        if self._sample is not None:
            changed |= not _same_bits(self._sample, _sample(self.tensor))
        self.moves |= changed
        if not (self._is_small() or self.moves):
            self._before = None  # there was room for it, no longer
        # If the pass has changed nothing, the copy from before it is also the one from after it.
        self._after = self._before
        unknown = changed or not noted or (self._after is None and self._is_small())
        if unknown and not is_lazy(self.tensor):
            self._after = self.tensor.detach().clone()
        # Nothing to rewind: `rewind` writes only if there is a copy.
        if not changed:
            self._before = None
        self._sample = None

    def rewind(self, last: bool) -> None:
        """Restore the tensor's value from before the first pass, if that pass changed it and a copy exists.

        Args:
            last: whether this is the last rewind of the step, so that the copy can be freed.
        """
        if self._before is not None:
            self._rewound = True
            _write(self.tensor, self._before)
            self._before = None if last else self._before

    def put_back(self) -> bool:
        """Restore the value that the first pass left; return False if the second changed it and no copy exists."""
        after, rewound = self._after, self._rewound
        self._before, self._after, self._rewound = None, None, False
        changed = _mark(self.tensor) != self._mark
        # Without a copy a change by the second pass cannot be undone: the caller raises, and later steps make a copy.
        if after is None:
            self.moves |= changed
            return not changed
        # Written only if needed: the memory may be read-only.
        if rewound or changed or self._differs(after) or (self.moves and not self._is_small()):
            _write(self.tensor, after)
        return True

    def _is_small(self) -> bool:
        return not is_lazy(self.tensor) and self.tensor.numel() <= self.small

    def _differs(self, copy: Tensor | None, first: bool = False) -> bool:
        """Return whether the tensor differs from its copy; after the first step only small CPU tensors are compared."""
        if copy is None or not _is_usual(self.tensor):
            return False
        return (first or (self._is_small() and copy.device.type == "cpu")) and not _same_bits(self.tensor, copy)


def is_plain(tensor: Tensor, small: float) -> bool:
    """Return whether foreach kernels can copy and write a tensor, and it has at most `small` numbers.

    Memory that is not torch's own (numpy's, a mapped file's) may be read-only: it is not plain.
    """
    return (
        _is_usual(tensor)
        and tensor.numel() <= small
        and not (tensor.is_inference() or tensor.is_conj() or tensor.is_neg() or _is_expanded(tensor))
        and tensor.untyped_storage().resizable()
    )


def copy_all(copies: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy plain tensors, reusing the memory of earlier copies of the same shapes."""
    if not _are_alike(copies, tensors):
        copies[:] = [torch.empty_like(tensor) for tensor in tensors]
    torch._foreach_copy_(copies, tensors)


def write_all(tensors: list[Tensor], copies: list[Tensor]) -> None:
    """Write copies back into plain tensors, restoring shapes that have changed."""
    if _are_alike(copies, tensors):
        torch._foreach_copy_(tensors, copies)
    else:
        for tensor, copy in zip(tensors, copies, strict=True):
            _write(tensor, copy)


def _are_alike(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(
        one.shape == other.shape and one.dtype == other.dtype for one, other in zip(left, right, strict=True)
    )


def place_in_memory(tensor: Tensor) -> int:
    """Return the address of the memory that a tensor lies in, perhaps as a part of it; 0 if it is unknown."""
    return tensor.untyped_storage().data_ptr() if _has_address(tensor) else 0


def _is_usual(tensor: Tensor) -> bool:
    """Return whether a tensor is an ordinary strided one: not lazy, nested, quantized, meta or a wrapper."""
    return (
        not is_lazy(tensor)
        and tensor.layout == torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta or hasattr(tensor, "__tensor_flatten__"))
    )


def _has_address(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and _is_usual(tensor)


def _is_expanded(tensor: Tensor) -> bool:
    return any(n > 1 and step == 0 for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def _mark(tensor: Tensor) -> Any:
    """Return a mark that changes when the tensor is written to; writes to inference tensors are not counted."""
    if is_lazy(tensor) or tensor.is_inference():
        return ()
    return tensor._version, tensor.data_ptr() if _has_address(tensor) else 0


def _sample(tensor: Tensor) -> Tensor:
    """Return a copy of evenly spaced entries of the tensor."""
    # Entries per axis, the same for all axes, so that all together they are at most about SAMPLE.
    each = max(1, int(SAMPLE ** (1 / max(1, tensor.ndim))))
    return tensor[tuple(slice(None, None, max(1, -(-n // each))) for n in tensor.shape)].clone()


def _same_bits(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    # Bytes and not numbers: NaN is not equal to itself, and -0.0 is equal to 0.0.
    bits = [t.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8) for t in (left, right)]
    return torch.equal(*bits)


def _write(tensor: Tensor, copy: Tensor) -> None:
    if _is_usual(tensor):
        if tensor.shape != copy.shape or tensor.dtype != copy.dtype:  # resized
            tensor.data = copy.clone()
            return
        if _is_expanded(tensor):  # each number of its memory once
            once = tuple(slice(1 if step == 0 else None) for step in tensor.stride())
            tensor, copy = tensor[once], copy[once]
    # torch refuses to write in place to an inference tensor outside of inference mode, but not through `.data`.
    (tensor.data if tensor.is_inference() else tensor).copy_(copy)
