"""State that a forward pass changes besides gradients: buffers, and parameters of other optimizers."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter, is_, methodcaller
from typing import Any

import torch
from torch import Tensor, nn

from bench.optim.base.closures import leaves
from bench.optim.base.sharded import any_sharded, reshard
from bench.optim.base.watched import Watched, copy_all, is_plain, place_in_memory, write_all

SMALL = 1 << 16
"""Tensors of at most this many numbers are copied in every step of two passes, even if unchanged."""

_values, _items = methodcaller("values"), methodcaller("items")  # TorchScript's modules have dictionaries of their own


Slot = tuple[Any, str, Tensor]
"""A module's dictionary of buffers or of parameters, a name in it, and the tensor of that name."""


@dataclass
class Group:
    """Small tensors of one device and dtype, ready for foreach kernels, with copies from before and after a pass.

    Copies' memory stays theirs from step to step.
    """

    tensors: list[Tensor]
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)


class ForwardState:
    """State of a model that the second pass over a batch must find, and leave, exactly as the first pass did.

    It belongs to an optimizer, and is about the buffers of its model (statistics of batch norm, a queue of keys), the
    model's parameters in none of its groups (a momentum encoder), which a forward pass may move too, and the gradients
    of those, which another optimizer follows: they are as after one plain pass.

    Tensors of up to `small` numbers are copied before each pass. Larger ones are copied only if a first pass changes
    them, in this step or an earlier one: what nobody changes costs nothing. In the very first step that is not known:
    large tensors are copied for the first pass, the smallest first, while their copies together are no larger than the
    optimizer's parameters. If that pass changes one without a copy, the second pass finds it as the first has left it.

    Memory: two copies of all tensors of up to `small` numbers, kept from step to step, and two of each larger one that
    forward moves, during the step only; nothing of the others, but for 4,096 numbers of each in the first step.

    Args:
        small: see above; by default SMALL, infinity copies everything.
    """

    def __init__(self, small: float | None = None) -> None:
        self.small = SMALL if small is None else small
        self._model: nn.Module | None = None
        self._own: list[nn.Parameter] = []
        self._dicts: list[Any] | None = None  # of children, buffers and parameters of all modules,
        self._sizes: list[int] = []  # how many they held when they were last looked at,
        self._full: list[Any] = []  # those that held any, and what
        self._content: list[Any] = []
        self._slots: list[Slot] = []
        self._plain: list[Group] = []
        self._watched: list[Watched] = []  # all others
        self._outside: list[Tensor] = []
        self._leaves: list[weakref.ref[Tensor]] | None = None
        self._first = True
        self._before: tuple[list[Slot], list[Group]] = [], []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.small,)  # the tensors of a copy are other ones

    # ---- a step of two passes -------------------------------------------------------------------------------------

    @torch.no_grad()
    def note(self, model: nn.Module | None, own: list[nn.Parameter]) -> None:
        """Record the state before the first pass.

        Args:
            own: the parameters that the optimizer has.
        """
        if not (self._first or self._slots):
            return
        self._look(model, own)
        self._before = self._slots, self._plain
        for group in self._plain:
            copy_all(group.before, group.tensors)
        room = float(sum(parameter.nbytes for parameter in own)) if self._first else 0.0
        for watched in sorted(self._watched, key=attrgetter("nbytes")) if self._first else self._watched:
            room -= watched.nbytes
            watched.note(self._first, room >= 0)

    def see(self, returned: object, own: list[nn.Parameter]) -> None:
        """Find, once, tensors outside the model that get gradients (parameters of the loss), from the loss's graph."""
        if self._leaves is None and isinstance(returned, Tensor) and returned.grad_fn is not None:
            known = {id(p) for p in own}
            self._leaves = [weakref.ref(leaf) for leaf in leaves(returned) if id(leaf) not in known]

    @contextmanager
    def kept(self, model: nn.Module | None, own: list[nn.Parameter]) -> Iterator[None]:
        """Undo, on exit, every change that the pass in this context makes to this state.

        Raises:
            RuntimeError: the pass has changed a large tensor that the one before it had left alone.
        """
        with torch.no_grad():
            outside = [p for p in self.outside(model, own) if p.requires_grad]
            slots, plain = self._slots, self._plain
            for group in plain:
                copy_all(group.after, group.tensors)
            for watched in self._watched:
                watched.keep(self._first)
            self._first = False
            # Copies, since memory in which DistributedDataParallel exchanges gradients is written to in every pass.
            theirs = [None if p.grad is None else p.grad.clone() for p in outside]
            for parameter in outside:
                parameter.grad = None
        try:
            yield
        finally:
            with torch.no_grad():
                _put_in_place(slots)
                for group in plain:
                    write_all(group.tensors, group.after)
                self._before = [], []
                lost = [watched.tensor for watched in self._watched if not watched.put_back()]
                for parameter, gradient in zip(outside, theirs, strict=True):
                    parameter.grad = gradient
        if lost:
            raise RuntimeError(_told(model, lost[0]))

    @torch.no_grad()
    def rewind(self, last: bool = True) -> None:
        """Restore the state that the first pass found, for the next pass; within `kept`.

        Args:
            last: whether it is the last time in this step.
        """
        slots, plain = self._before
        _put_in_place(slots)
        for group in plain:
            write_all(group.tensors, group.before)
        for watched in self._watched:
            watched.rewind(last)

    def outside(self, model: nn.Module | None, own: list[nn.Parameter]) -> list[Tensor]:
        """Return tensors outside the param_groups that may get gradients: of the model, and found by `see`."""
        self._look(model, own)
        if not self._leaves:
            return self._outside
        known = {id(p) for p in chain(own, self._outside)}
        alive = [leaf for leaf in (ref() for ref in self._leaves) if leaf is not None]
        return [*self._outside, *(leaf for leaf in alive if id(leaf) not in known)]

    # ---- what there is --------------------------------------------------------------------------------------------

    def _look(self, model: nn.Module | None, own: list[nn.Parameter]) -> None:
        """Find all tensors again if any module holds other tensors than at the last search."""
        if any_sharded(own):
            reshard(model)  # in place of its parameters FSDP2 may have others, whole ones, whose memory it frees again
        if (
            self._dicts is not None
            and model is self._model
            and len(own) == len(self._own)
            and all(map(is_, own, self._own))
            and list(map(len, self._dicts)) == self._sizes
            and all(map(is_, chain.from_iterable(map(_values, self._full)), self._content))
        ):
            return
        self._model, self._own = model, list(own)
        modules = list(_modules(model))
        places: list[Any] = [place for module in modules for place in (module._buffers, module._parameters)]
        self._dicts = [*(module._modules for module in modules), *places]
        self._sizes = list(map(len, self._dicts))
        self._full = list(filter(None, self._dicts))
        self._content = list(chain.from_iterable(map(_values, self._full)))
        known, memory = {id(p) for p in own}, {place_in_memory(p) for p in own} - {0}
        self._slots = [
            (place, name, tensor)
            for place in places
            for name, tensor in _items(place)
            # What shares the memory of a weight moves with it.
            if tensor is not None and id(tensor) not in known and place_in_memory(tensor) not in memory
        ]
        tensors = list({id(tensor): tensor for _, _, tensor in self._slots}.values())
        self._outside = [tensor for tensor in tensors if isinstance(tensor, nn.Parameter)]
        before = {id(watched.tensor): watched for watched in self._watched}
        plain: dict[Any, list[Tensor]] = {}
        self._watched = []
        for tensor in tensors:
            if is_plain(tensor, self.small):
                plain.setdefault((tensor.device, tensor.dtype), []).append(tensor)
            else:
                self._watched.append(before.get(id(tensor)) or Watched(tensor, self.small))
        self._plain = [Group(tensors) for tensors in plain.values()]


def kept_buffers(model: nn.Module | None) -> AbstractContextManager[None]:
    """Undo, on exit, every change to the model's buffers, of any size and by any number of passes."""
    return ForwardState(small=math.inf).kept(model, [] if model is None else list(model.parameters()))


def _put_in_place(slots: list[Slot]) -> None:
    """Put tensors back where they were; a tensor that a pass has removed stays removed."""
    for place, name, tensor in slots:
        if name in place and place[name] is not tensor:
            place[name] = tensor


def _modules(model: nn.Module | None) -> Iterator[nn.Module]:
    """Yield a module and all modules within it, each once.

    `model.modules()` also builds the names, which takes ten times as long.
    """
    seen, waiting = set[nn.Module](), [] if model is None else [model]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [child for child in module._modules.values() if child is not None]
            yield module


def _told(model: nn.Module | None, tensor: Tensor) -> str:
    named = [] if model is None else [*model.named_buffers(), *model.named_parameters()]
    name = next((name for name, other in named if other is tensor), "a tensor")
    return (
        f"the second evaluation of the closure has changed {name} ({tensor.numel():,} numbers), which the first had "
        "left alone, so that its value at the weights is lost. Change it in every evaluation, or only in the "
        "first one, where optimizer.first_pass is true"
    )
