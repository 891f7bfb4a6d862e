"""Fashion-MNIST: 70,000 grey pictures of clothes (Xiao, Rasul & Vollgraf 2017, https://arxiv.org/abs/1708.07747)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from bench.core.registry import register_task
from bench.data.datasets import Dataset, content, damaged
from bench.data.download import Download
from bench.data.splits import Split
from bench.tasks.images import MixupAlpha, PublishedImages

SIDE = 28
SERVERS = (
    # The authors' server, then the copy in their repository.
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
PACKED = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""md5 of the files as they are given out."""


@register_task("fashion_mnist")
class FashionMNIST(PublishedImages):
    """Grey pictures, 28x28, of ten kinds of clothes: 60,000 to train and validate on, 10,000 to test.

    Xiao et al. 2017; 6,000 training and 1,000 test images of each class. `bench prepare` downloads 31 MB; Debian's
    package dataset-fashion-mnist is used if it is installed.

    Args:
        augment: "none", "basic" (mirrored, moved by up to 4 pixels) or "cutout", see `bench.tasks.images`.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.
    """

    num_outputs = 10
    input_shape = (1, SIDE, SIDE)
    mean = (0.28604060,)
    std = (0.35302424,)
    published_examples = 60_000
    dataset = Dataset(
        title="Fashion-MNIST",
        task="fashion_mnist",
        folder="FashionMNIST/raw",  # where torchvision has it
        # An absolute path stays as it is when it is joined to the data folder: Debian's package.
        elsewhere=(".", "fashion-mnist", "/usr/share/datasets/fashion-mnist"),
        files={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
        downloads=tuple(Download(name, md5, tuple(url + name for url in SERVERS)) for name, md5 in PACKED.items()),
    )

    def __init__(
        self,
        *,
        augment: Literal["none", "basic", "cutout"] = "basic",
        mixup: MixupAlpha = 0.0,
        allow_unverified_data: bool = False,
    ) -> None:
        super().__init__(augment=augment, mixup=mixup, allow_unverified_data=allow_unverified_data)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> tuple[Split, Split]:
        # The files come in the order of `files`: images and labels to train on, then those to test on.
        return _split(*paths[:2]), _split(*paths[2:])


def _split(images_path: Path, labels_path: Path) -> Split:
    images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
    if images.shape[1:] != (SIDE, SIDE):
        raise damaged(images_path, f"its images are not of {SIDE}x{SIDE} pixels")
    if not 0 < len(labels) == len(images):
        raise damaged(labels_path, f"it has {len(labels)} labels for {len(images)} images")
    if labels.max() >= FashionMNIST.num_outputs:
        raise damaged(labels_path, f"it has the label {labels.max()}; the last one is {FashionMNIST.num_outputs - 1}")
    # The channel, which the files do not have, comes last, as in all image tasks.
    return Split(images[..., None], labels.long())


def _read_idx(path: Path, axes: int) -> Tensor:
    """Return the array of bytes with this number of axes that an IDX file holds.

    The file's header is two zeros, 8 for "bytes", the number of axes, and the length of each as 32 bits, big-endian.

    Raises:
        BenchError: the file cannot be read, or holds anything else.
    """
    raw = content(path)
    if raw[:4] != bytes((0, 0, 8, axes)):
        raise damaged(path, f"it does not begin as an IDX file of bytes with {axes} axes does")
    header = 4 + 4 * axes
    shape = [int.from_bytes(raw[start : start + 4], "big") for start in range(4, header, 4)]
    if len(raw) != header + math.prod(shape):
        raise damaged(path, f"it has {len(raw)} bytes, where its header says {header + math.prod(shape)}")
    # The bytes of a file are read-only memory, of which torch would warn: hence the copy.
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy())
