"""Random numbers that a second pass must repeat, and caches that it must not read."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


def rewinder(tensors: Iterable[Tensor], generators: Iterable[Generator] = ()) -> Callable[[], None]:
    """Return a function that sets random numbers back to where they are now.

    They are torch's, on the host and on every GPU that a tensor is on, and the global ones of numpy and of Python, from
    which some models draw what they drop (layers of transformers' encoders).

    Args:
        generators: others that are rewound, too.

    Raises:
        TypeError: one of them is no generator.
    """
    # Where CUDA was never set up no tensor is on a GPU, and no GPU has random numbers to rewind.
    devices = {tensor.device for tensor in tensors if tensor.is_cuda} if torch.cuda.is_initialized() else set()  # type: ignore[no-untyped-call]
    on_devices = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    # legacy=False: the legacy tuple exists for one kind of numpy generator only.
    host, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate()
    others = [(generator, _state_of(generator)) for generator in generators]

    def rewind() -> None:
        torch.set_rng_state(host)
        np.random.set_state(of_numpy)
        random.setstate(of_python)
        for device, state in on_devices:
            torch.cuda.set_rng_state(state, device)
        for generator, state in others:
            _set_state(generator, state)

    return rewind


def _state_of(generator: Generator) -> Any:
    match generator:
        case torch.Generator() | np.random.RandomState():
            return generator.get_state()
        case np.random.Generator():
            # numpy's newer kind keeps its state in the bit generator behind it.
            return generator.bit_generator.state
        case random.Random():
            return generator.getstate()
    raise TypeError(
        "optimizer.generators are torch.Generator, numpy.random.Generator, numpy.random.RandomState or random.Random; "
        f"got {type(generator).__name__}"
    )


def _set_state(generator: Generator, state: Any) -> None:
    match generator:
        case torch.Generator() | np.random.RandomState():
            generator.set_state(state)
        case np.random.Generator():
            generator.bit_generator.state = state
        case random.Random():
            generator.setstate(state)


def clear_caches() -> None:
    """Forget what a context around both passes has computed from weights that have moved since.

    These are the caches of `torch.autocast` and of `torch.nn.utils.parametrize.cached`. torch empties the latter only
    where the outermost such context ends, and that context is the user's.
    """
    # Without this, an autocast around both passes would give the second one the casts of the unmoved weights.
    torch.clear_autocast_cache()
    # A private name of torch's: if a later version has none, nothing is cleared and nothing fails.
    getattr(parametrize, "_cache", {}).clear()
