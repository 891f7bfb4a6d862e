"""A check that both passes of a step see the same batch; a closure that draws a new one gets an error at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]


class SameInputs:
    """The inputs of a model in the first pass over a batch, to compare with those of later passes.

    A trainer's step may have state: it takes the next slice of a buffer at every call, or generates text. Then SAM's
    second pass would be over another batch, and nothing else would show it. The calls of the module that is called
    first, `model` or a part of it, are compared: all tensors of its first call, and those of whole numbers (tokens,
    masks, labels) of later calls. Tensors computed from the weights (adversarial examples, a decoder's states) may
    differ, since the weights have moved.

    Args:
        name: of the method, for the error.
        model: None: nothing is looked at.
    """

    def __init__(self, name: str, model: nn.Module | None) -> None:
        # A compiled module would be compiled anew for a hook.
        modules = [] if model is None else [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        self.modules = [] if any(module._compiled_call_impl is not None for module in modules) else modules
        self.name = name
        self.first: nn.Module | None = None
        self.seen: list[Inputs] = []
        self.is_first_pass = True

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """Record the inputs of the model's calls in this context, or compare them with those of the first pass.

        Raises:
            RuntimeError: within, where a call of a later pass has other inputs than the same call of the first.
        """
        calls = 0
        handles: dict[nn.Module, Any] = {}

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal calls
            # While torch traces a model its tensors have no numbers to compare.
            if torch.compiler.is_compiling():
                return
            if self.is_first_pass and self.first is None:
                self.first = module
            # The module that is called first gets the batch; hooks on all others would only cost time.
            if calls == 0:
                for other in [other for other in handles if other is not module]:
                    handles.pop(other).remove()
            if module is self.first:
                self._take(module, args, kwargs, calls)
            calls += 1

        for module in self.modules:
            handles[module] = module.register_forward_pre_hook(look, with_kwargs=True)
        try:
            yield
        finally:
            for handle in handles.values():
                handle.remove()
            self.is_first_pass = False

    def _take(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], call: int) -> None:
        given = dict(_tensors(args, "argument")) | dict(_tensors(kwargs, ""))
        # Later calls may get floats that were computed from weights (a decoder's states): these are not compared.
        if call > 0:
            given = {name: tensor for name, tensor in given.items() if not tensor.is_floating_point()}
        if self.is_first_pass:
            # Copies: the closure may write other numbers into the same tensors before the second pass.
            self.seen.append({name: tensor.detach().clone() for name, tensor in given.items()})
        elif call < len(self.seen) and (what := _difference(self.seen[call], given)):
            raise RuntimeError(
                f"{self.name}: the second pass of a step uses a different batch than the first: "
                f"{type(module).__name__} is called with {what}. Draw the batch outside of the closure (of a Trainer "
                "whose training_step does: see docs/sam-in-your-own-code.md). If this is intended, set "
                "optimizer.checked_steps = 0"
            )


def compiled_frames() -> int:
    """Return how many functions torch.compile has compiled in this process: each new guard makes it one more."""
    utils = sys.modules.get("torch._dynamo.utils")
    return 0 if utils is None else int(utils.counters["frames"]["total"])


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that were not computed from weights, each with the name it was given under."""
    if type(value) is Tensor:
        plain = value.layout == torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(value)
        if plain and not value.requires_grad:
            yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _tensors(item, f"{name} {key}".strip())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, item in enumerate(value):
            yield from _tensors(item, f"{name} {number}")


def _difference(before: Inputs, now: Inputs) -> str | None:
    if before.keys() != now.keys():
        return f"tensors {sorted(now)} instead of {sorted(before)}"
    for name, tensor in now.items():
        old = before[name]
        if (tensor.shape, tensor.dtype) != (old.shape, old.dtype):
            return f"{name} of shape {tuple(tensor.shape)} and {tensor.dtype}, not {tuple(old.shape)} and {old.dtype}"
        # NaN is not equal to itself, but NaN in the same place is the same input.
        both_nan = (tensor != tensor) & (old != old)
        if not bool(((tensor == old.to(tensor.device)) | both_nan).all()):
            return f"other numbers in {name}"
    return None
