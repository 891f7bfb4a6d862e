"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8, no download."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.core.registry import register_task
from bench.data.augment import crop, draw_crop
from bench.data.datasets import remembered
from bench.data.splits import Split
from bench.tasks.base import Task

TRAIN_EXAMPLES = 1200
TEST_EXAMPLES = 597
TEST_SEED = 19980701  # the data set's date; the split is the same in every run


@register_task("digits")
class Digits(Task):
    """Ten handwritten digits, 8x8 grey: 1,200 to train and validate on, 597 to test, by one fixed permutation.

    The test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin & Kaynak, 1998), as scikit-learn
    carries it. Pixels are 0..16, standardised with the training images' mean and deviation.

    Args:
        augment: "none", or "shift": each image moved by -1, 0 or 1 pixel along each axis, zero-filled.
    """

    num_outputs = 10
    input_shape = (1, 8, 8)

    def __init__(self, *, augment: Literal["none", "shift"] = "none") -> None:
        self.augment = augment

    def load(self) -> tuple[Split, Split]:
        table = _table()
        images = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 8, 8)
        targets = torch.from_numpy(table[:, -1].astype(np.int64))
        order = torch.from_numpy(np.random.RandomState(TEST_SEED).permutation(len(targets)))
        test, train = order[:TEST_EXAMPLES], order[TEST_EXAMPLES:]
        # By the training images alone, so that nothing of the test images goes into the inputs.
        mean, std = images[train].mean(), images[train].std()
        images = ((images - mean) / std).float()  # statistics in double: the same on every processor
        # An empty pixel after standardising: `training_batch` fills with it what a shift uncovers.
        self._blank = float(-mean / std)
        return Split(images[train], targets[train]), Split(images[test], targets[test])

    def train_examples(self) -> int:
        return TRAIN_EXAMPLES

    def draw(self, count: int, random: np.random.RandomState) -> tuple[Any, ...]:
        return (draw_crop(random, count, 8, 8, padding=1),) if self.augment == "shift" else ()

    def augmented(self, inputs: Tensor, targets: Tensor, drawn: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        if self.augment == "shift":
            # `crop` takes the channels last.
            (sources,) = drawn
            inputs = crop(inputs.permute(0, 2, 3, 1), sources, padding=1, fill=self._blank).permute(0, 3, 1, 2)
        return inputs, targets


def _table() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return 64 pixels and the digit of each image, (1797, 65), to read only, as scikit-learn's own reader does.

    Importing scikit-learn takes a second in every process, so its file is read without it where it is known to be.
    """
    package = importlib.util.find_spec("sklearn")
    path = Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return remembered(_read, [path])
    from sklearn.datasets import load_digits

    raw = load_digits()
    return np.column_stack([raw.data, raw.target])


def _read(paths: list[Path]) -> np.ndarray[Any, np.dtype[np.float64]]:
    (path,) = paths
    with gzip.open(path, "rt") as file:
        return np.loadtxt(file, delimiter=",")
