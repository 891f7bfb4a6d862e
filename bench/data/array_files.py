"""Arrays of a user's own in numpy's files: found, checked, and brought to the forms that tasks have."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.core.errors import BenchError, counted, nearest

Array = np.ndarray[Any, Any]

NAMES = ("x_train", "y_train", "x_test", "y_test")
WANTED = "x_train and y_train, and x_test and y_test where there is a test set"
MOST_CHANNELS = 4
"""More channels than this in the last place, and at most this many in the second: the channels seem to come first."""


def files(path: Path) -> list[Path]:
    """Return the .npz file, or the .npy files of the four arrays in a folder.

    Raises:
        BenchError: there is no such file, or the folder lacks one.
    """
    if path.is_file():
        if path.suffix != ".npz":
            raise BenchError(f"{path} is no .npz file; name one, or a folder of .npy files, with {WANTED}")
        return [path]
    if not path.is_dir():
        raise BenchError(f"{path} is neither a .npz file nor a folder of .npy files")
    there = {file.stem: file for file in sorted(path.glob("*.npy"))}
    _check_names(there, path)
    return [there[name] for name in NAMES if name in there]


def read(path: Path) -> dict[str, Array]:
    """Return the arrays by name.

    Raises:
        BenchError: a file is damaged, holds Python objects, or lacks an array.
    """
    arrays: dict[str, Array] = {}
    for file in files(path):
        try:
            # Opened here: numpy leaves a damaged archive open.
            with open(file, "rb") as opened:
                # Python objects would run their own code when they are read.
                loaded = np.load(opened, allow_pickle=False)
                if isinstance(loaded, np.lib.npyio.NpzFile):
                    _check_names(loaded, file)
                    arrays |= {name: loaded[name] for name in NAMES if name in loaded}
                else:
                    arrays[file.stem] = loaded
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            why = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error)
            raise BenchError(
                f"{file} cannot be read: {why}; save plain arrays of one dtype with numpy.savez"
            ) from error
    for kind in ("train", "test"):
        _check_lengths(arrays, kind, path)
    return arrays


def _check_names(there: Mapping[str, Any], path: Path) -> None:
    needed = NAMES if "x_test" in there or "y_test" in there else NAMES[:2]
    for name in needed:
        if name not in there:
            raise BenchError(f"{path} has no array {name}; wanted are {WANTED}; {nearest(name, there)}")


def _check_lengths(arrays: Mapping[str, Array], kind: str, path: Path) -> None:
    x, y = arrays.get(f"x_{kind}"), arrays.get(f"y_{kind}")
    if x is None or y is None:
        return
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        raise BenchError(f"{path}: x_{kind} has shape {x.shape} and y_{kind} {y.shape}; the first axis is of examples")
    if not len(x):
        raise BenchError(f"{path}: x_{kind} has no examples")


def check_inputs(arrays: Mapping[str, Array], path: Path) -> bool:
    """Return whether the inputs are images; raise BenchError if they are neither images nor features.

    Images are (N, H, W) or (N, H, W, C), features (N, D); of whole or floating numbers without NaN and infinity.
    """
    train = arrays["x_train"]
    for name in ("x_train", "x_test"):
        if name not in arrays:
            continue
        array = arrays[name]
        if array.ndim not in (2, 3, 4):
            raise BenchError(
                f"{path}: {name} has shape {array.shape}; wanted are images (N, H, W) or (N, H, W, C), or features "
                "(N, D)"
            )
        if array.shape[1:] != train.shape[1:]:
            raise BenchError(f"{path}: examples of {name} have shape {array.shape[1:]}, of x_train {train.shape[1:]}")
        if 0 in array.shape:
            raise BenchError(f"{path}: {name} has shape {array.shape}, so its examples are empty")
        if array.ndim == 4 and array.shape[1] <= MOST_CHANNELS < array.shape[3]:
            raise BenchError(
                f"{path}: {name} has shape {array.shape}, in which the channels seem to come first; put them last: "
                f"{name}.transpose(0, 2, 3, 1)"
            )
        if array.dtype != np.bool_ and array.dtype.kind not in "uif":
            raise BenchError(f"{path}: {name} is of dtype {array.dtype}, not of whole or floating numbers")
        if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
            odd = np.argwhere(~finite)[0].tolist()
            count = counted(int((~finite).sum()), "number")
            raise BenchError(
                f"{path}: {name}{odd} is {array[tuple(odd)]}; {count} of {name} are not finite; fill them, or leave "
                "their examples out"
            )
    return train.ndim > 2


def targets(arrays: Mapping[str, Array], name: str, path: Path) -> Array:
    """Return labels or numbers to predict as (N,); raise BenchError if they are of another shape."""
    array = arrays[name]
    if array.ndim == 2 and array.shape[1] == 1:  # as Keras gives out CIFAR-10
        array = array[:, 0]
    if array.ndim != 1:
        hint = f"; class numbers of one-hot rows are {name}.argmax(1)" if array.ndim == 2 else ""
        raise BenchError(f"{path}: {name} has shape {array.shape}, not (N,){hint}")
    return array


def in_bytes(images: Array, lowest: float, highest: float) -> Array:
    """Return images of another dtype than bytes as (N, H, W, C) float32 on the scale of bytes, 0 to 255, not rounded.

    Args:
        lowest, highest: what becomes 0 and 255; images of a single value become 0.
    """
    scale = 255 / ((highest - lowest) or 1.0)
    scaled = (images.astype(np.float64) - lowest) * scale
    return scaled.astype(np.float32)
