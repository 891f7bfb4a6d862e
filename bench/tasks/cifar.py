"""CIFAR-10 and CIFAR-100: 60,000 small photographs.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images",
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from bench.core.registry import register_task
from bench.data.datasets import Dataset, content, damaged
from bench.data.download import Download
from bench.data.splits import Split
from bench.tasks.images import PublishedImages

SIDE = 32
BYTES = 3 * SIDE * SIDE


class _CIFAR(PublishedImages):
    """The common part of CIFAR-10 and CIFAR-100: the Python files of the author's page."""

    input_shape = (3, SIDE, SIDE)
    published_examples = 50_000
    labels: ClassVar[str]
    """What the files call the class numbers."""

    @classmethod
    def read(cls, paths: Sequence[Path]) -> tuple[Split, Split]:
        # The last file, batches.meta or meta, has the names of the classes, which nothing needs.
        *train, test, _ = paths
        return cls._split(train), cls._split([test])

    @classmethod
    def _split(cls, paths: Sequence[Path]) -> Split:
        batches = [_read_batch(path, cls.labels, cls.num_outputs) for path in paths]
        rows = torch.from_numpy(np.concatenate([rows for rows, _ in batches]))
        targets = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
        # The files have all red, all green, all blue; image tasks have the channels of a pixel together.
        return Split(rows.view(-1, 3, SIDE, SIDE).permute(0, 2, 3, 1).contiguous(), targets)


@register_task("cifar10")
class CIFAR10(_CIFAR):
    """Colour photographs, 32x32, of ten kinds of animals and vehicles: 50,000 to train and validate on, 10,000 to test.

    Krizhevsky 2009; 5,000 training and 1,000 test images of each class. `bench prepare` downloads 170 MB.

    Args:
        augment: "none", "basic" (mirrored, moved by up to 4 pixels), "cutout" or "autoaugment", see
            `bench.tasks.images`.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.
    """

    num_outputs = 10
    mean = (0.49139968, 0.48215841, 0.44653091)
    std = (0.24703223, 0.24348513, 0.26158784)
    labels = "labels"
    dataset = Dataset(
        title="CIFAR-10",
        task="cifar10",
        folder="cifar-10-batches-py",
        elsewhere=(".",),
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
        downloads=(
            Download(
                "cifar-10-python.tar.gz",
                "c58f30108f718f92721af3b95e74349a",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            ),
        ),
    )


@register_task("cifar100")
class CIFAR100(_CIFAR):
    """Colour photographs, 32x32, of 100 kinds of things: 50,000 to train and validate on, 10,000 to test.

    Krizhevsky 2009, with the fine labels; 500 training and 100 test images of each class. `bench prepare` downloads
    169 MB.

    Args:
        augment: "none", "basic" (mirrored, moved by up to 4 pixels), "cutout" or "autoaugment", see
            `bench.tasks.images`.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.
    """

    num_outputs = 100
    mean = (0.50707516, 0.48654887, 0.44091784)
    std = (0.26733429, 0.25643846, 0.27615047)
    labels = "fine_labels"
    dataset = Dataset(
        title="CIFAR-100",
        task="cifar100",
        folder="cifar-100-python",
        elsewhere=(".",),
        files={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
        downloads=(
            Download(
                "cifar-100-python.tar.gz",
                "eb9058c3a382ffc7106e4002c42a8d85",
                ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",),
            ),
        ),
    )


# ---- the files -----------------------------------------------------------------------------------------------


def _read_batch(path: Path, key: str, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return (N, 3072) uint8 pixels, all red, all green, all blue, row by row, and (N,) int64 class numbers.

    Raises:
        BenchError: the file cannot be read, or holds anything else.
    """
    packed = content(path)
    try:
        # Python 2 wrote the files: its strings must come back as bytes, not as decoded text.
        batch = _ArraysOnly(io.BytesIO(packed), encoding="bytes").load()
    except Exception as error:  # given any bytes at all, an unpickler raises anything at all
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    if not isinstance(batch, dict):
        raise damaged(path, "it holds no dictionary")
    images, labels = (batch.get(name.encode(), batch.get(name)) for name in ("data", key))  # Python 2's and 3's keys
    # An array that was pickled in two steps is still in its stand-in, `_Array`.
    images = getattr(images, "array", images)
    if not isinstance(images, np.ndarray) or images.shape[1:] != (BYTES,):
        raise damaged(path, f"its data are not rows of {BYTES} bytes")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise damaged(path, f"its {key} are not a list of numbers from 0 to {classes - 1}")
    if not 0 < len(labels) == len(images):
        raise damaged(path, f"it has {len(images)} images and {len(labels)} {key}")
    return images, np.array(labels, np.int64)


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that makes plain Python values and arrays of bytes, and nothing else.

    A pickle may otherwise call anything: to read it is to run it. Not even numpy's own part in that is used, since its
    dtype believes a file about its innermost flags, and numpy then fails anywhere.
    """

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy.core.numeric", "_frombuffer"): _array,
            ("numpy", "ndarray"): None,  # an argument of the former, not needed
            ("numpy", "dtype"): _Type,
            ("_codecs", "encode"): _latin1,  # how Python 3 writes bytes in an old protocol
        }
        wanted = module.replace("numpy._core", "numpy.core"), name  # numpy 2 has renamed it
        if wanted not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not part of a file of images")
        return known[wanted]


class _Type:
    """A stand-in for numpy's dtype that accepts bytes only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}, where images are of 'u1'")

    def __setstate__(self, state: object) -> None:
        """Ignore the state: bytes have no byte order."""


class _Array:
    """A stand-in for numpy's array, which a pickle first makes empty and then fills by a state."""

    def __init__(self, *_: object) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        # This is the state that numpy pickles of an array; its first entry is a version.
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: bytes, dtype: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray[Any, Any]:
    return np.frombuffer(raw, np.uint8).reshape(shape, order=order)


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")
