"""Decoded images, kept in `<data folder>/pixels/`, so that many images are decoded once and not in every process.

They are read from there as long as the files, what is made of them, and Pillow are the same. Processes of one machine
share the memory of what they read.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import torch

from bench.core.data_folder import data_folder
from bench.store.files import StorageError, atomic_path

FORMAT = 1
"""Version of the cache; raise it when images decoded by older code must not be used any more."""

MANY = 2000
"""Fewer images are decoded in a few seconds, and are not kept."""


def kept(count: int, shape: tuple[int, int, int], source: object, decode: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return what `decode` returns, (count, H, W, C) uint8, from the data folder if it is there.

    Args:
        shape: (C, H, W).
        source: everything else that decides on the pixels, with a repr of its own: files with size and time of change.
    """
    if count < MANY:
        return decode()
    parts = (FORMAT, importlib.metadata.version("pillow"), shape, source)
    path = data_folder() / "pixels" / f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.npy"
    with suppress(OSError, ValueError, EOFError):
        # Copy on write: torch wants memory that it may write to, and the file stays as it is.
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)
        if pixels.shape == (count, *shape[1:], shape[0]) and pixels.dtype == np.uint8:
            return torch.from_numpy(pixels)
    decoded = decode()
    # Nothing is lost but time where the data folder cannot be written.
    with suppress(StorageError), atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, decoded.numpy(), allow_pickle=False)
    return decoded
