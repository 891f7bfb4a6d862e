"""The common part of tasks of small colour or grey images: pixels to floats, and augmentation in training."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bench.core.errors import BenchError
from bench.data.augment import crop, cutout, draw_crop, draw_cutout, draw_mixup, mixup, to_device
from bench.data.autoaugment import autoaugment, draw_policies
from bench.data.datasets import Dataset
from bench.data.splits import Split
from bench.tasks.base import Task

Augment = Literal["none", "basic", "cutout", "autoaugment"]
MixupAlpha = Annotated[float, Field(ge=0)]

PADDING = 4
"""Pixels by which a training image is moved at most, as is usual for images of 32x32 since He et al. 2016."""


class ImageTask(Task):
    """Images of one size, kept as (N, H, W, C) bytes and augmented on the device. Subclass it and give `load`.

    Augmentation comes in levels, each with all that the one before it has:

        none         the images as they are
        basic        half of them mirrored, each moved by up to 4 pixels along each axis, filled with black
        cutout       basic, then a square of up to 16x16 pixels replaced by the data set's mean
        autoaugment  basic, then the policy that AutoAugment found for CIFAR-10, then cutout (as Foret et al. 2021)

    Attributes:
        mean: mean of each channel over the training set, in pixels of 0..1.
        std: standard deviation of each channel over the training set, in pixels of 0..1.

    Args:
        augment: the level; default "basic".
        mixup: alpha of mixup's Beta distribution; it comes after everything else. Default 0: no mixup.

    Raises:
        BenchError: "autoaugment" for images that are not RGB.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    memory_format = torch.channels_last

    def __init__(self, *, augment: Augment = "basic", mixup: MixupAlpha = 0.0) -> None:
        if augment == "autoaugment" and self.input_shape[0] != 3:
            raise BenchError('augment = "autoaugment" needs images in colour; use "none", "basic" or "cutout" here')
        self.augment = augment
        self.mixup = mixup

    def model_inputs(self, inputs: Tensor) -> Tensor:
        """(N, C, H, W) float32 in channels_last memory, normalised, of (N, H, W, C) bytes."""
        # The pixels lie in memory as channels_last wants them: `permute` moves nothing.
        return self._normalise(inputs).permute(0, 3, 1, 2)

    def draw(self, count: int, random: np.random.RandomState) -> tuple[Any, ...]:
        channels, height, width = self.input_shape
        drawn: tuple[Any, ...] = ()
        # Crop and policy work on bytes; cutout comes after, because its 0 is the mean of normalised pixels.
        if self.augment != "none":
            drawn += (draw_crop(random, count, height, width, PADDING, flip=True),)
        if self.augment == "autoaugment":
            drawn += draw_policies(random, count)
        if self.augment in ("cutout", "autoaugment"):
            drawn += (draw_cutout(random, count, height, width, channels),)
        return drawn + draw_mixup(random, count, self.mixup) if self.mixup else drawn

    def augmented(self, inputs: Tensor, targets: Tensor, drawn: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        waiting = iter(drawn)  # in the order of `draw`
        if self.augment != "none":
            inputs = crop(inputs, next(waiting), PADDING)
        if self.augment == "autoaugment":
            inputs = autoaugment(inputs, next(waiting), next(waiting), next(waiting))
        images = self._normalise(inputs)
        if self.augment in ("cutout", "autoaugment"):
            images = cutout(images, next(waiting))
        # The last step, because it makes probabilities of the class numbers.
        if self.mixup:
            images, targets = mixup(images, targets, self.num_outputs, next(waiting), next(waiting))
        return images.permute(0, 3, 1, 2), targets

    def _normalise(self, images: Tensor) -> Tensor:
        _, height, width, _ = images.shape
        scale, shift = _scale_and_shift(self.mean, self.std, height, width, images.device)
        # Converting first: kernels of one dtype are the fast ones. A copy, where images of a user's own are floats.
        return images.to(torch.float32, copy=True).mul_(scale).add_(shift)


class PublishedImages(ImageTask):
    """Images from a published data set's files: found, verified and read once per process. Subclass it, give `read`.

    Attributes:
        dataset: its files.
        published_examples: training examples in the official files.

    Args:
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.
    """

    dataset: ClassVar[Dataset]
    published_examples: ClassVar[int]

    def __init__(
        self, *, augment: Augment = "basic", mixup: MixupAlpha = 0.0, allow_unverified_data: bool = False
    ) -> None:
        super().__init__(augment=augment, mixup=mixup)
        self.allow_unverified_data = allow_unverified_data
        self.title = self.dataset.title

    @classmethod
    @abstractmethod
    def read(cls, paths: Sequence[Path]) -> tuple[Split, Split]:
        """Return the training and the test set out of the files of `dataset`, in their order."""

    def fetch(self) -> None:
        self.dataset.fetch(allow_unverified=self.allow_unverified_data)

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set: inputs (N, H, W, C) uint8, targets (N,) int64.

        The tensors are shared by all runs of a process: not to be written to.

        Raises:
            BenchError: files are missing, damaged, or not the official ones and not allowed to be others.
        """
        return self.dataset.load(self.read, allow_unverified=self.allow_unverified_data)

    def train_examples(self) -> int:
        if not self.dataset.is_there() or self.verified():
            return self.published_examples  # what it is or, once it is fetched, will be
        return super().train_examples()

    def verified(self) -> bool:
        return self.dataset.verified()


@functools.cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return scale and shift, each (H, W, C), with (x / 255 - mean) / std = x * scale + shift for a byte x.

    They are spread over a whole image because a kernel over runs of H * W * C numbers is much faster than one over C.
    """
    # Computed in double precision and rounded once.
    center, deviation = np.asarray(mean), np.asarray(std)
    constants = np.stack((1 / (255 * deviation), -center / deviation)).astype(np.float32)
    spread = np.broadcast_to(constants[:, None, None, :], (2, height, width, len(mean)))
    # A copy, because many places of a broadcast array share one number in memory.
    scale, shift = to_device(spread.copy(), device).unbind()
    return scale, shift
