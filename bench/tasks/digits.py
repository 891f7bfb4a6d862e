"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8, no download."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from bench.registry import register_task
from bench.tasks.base import Split, Task

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
        raw = load_digits()
        images = torch.from_numpy(raw.images).unsqueeze(1)
        targets = torch.from_numpy(raw.target.astype(np.int64))
        order = torch.from_numpy(np.random.RandomState(TEST_SEED).permutation(len(targets)))
        test, train = order[:TEST_EXAMPLES], order[TEST_EXAMPLES:]
        mean, std = images[train].mean(), images[train].std()
        images = ((images - mean) / std).float()  # statistics in double: the same on every processor
        self._blank = float(-mean / std)
        return Split(images[train], targets[train]), Split(images[test], targets[test])

    def model_inputs(self, inputs: Tensor, augment: torch.Generator | None = None) -> Tensor:
        if augment is None or self.augment == "none":
            return inputs
        return shift(inputs, augment, fill=self._blank)


def shift(images: Tensor, generator: torch.Generator, fill: float) -> Tensor:
    """Each image (N, C, H, W) moved by its own -1, 0 or 1 pixel along each axis, on the device, without a loop."""
    count, _, height, width = images.shape
    offsets = torch.randint(0, 3, (2, count, 1), device=images.device, generator=generator)
    rows = offsets[0] + torch.arange(height, device=images.device)
    columns = offsets[1] + torch.arange(width, device=images.device)
    padded = F.pad(images, (1, 1, 1, 1), value=fill)
    which = torch.arange(count, device=images.device)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
