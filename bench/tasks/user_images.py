"""Tasks of a user's own data that are images or something else, which the settings and the data decide."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.tasks.images import Augment, ImageTask
from bench.tasks.scores import Scored


class MaybeImages(Scored, ImageTask):
    """A task whose examples may be images; where they are none, nothing is augmented or normalised. Subclass it.

    Call `augment_as` once `input_shape` is known.

    Attributes:
        images: whether they are.
    """

    images = True

    def augment_as(self, augment: Augment | None, mixup: float, *, images: bool, where: str, are: str) -> None:
        """Set how training examples are augmented.

        Args:
            augment: None for the default: "basic" for images.
            where: the data, for messages.
            are: what the examples are if they are no images, for messages.

        Raises:
            BenchError: there is nothing that could be augmented so.
        """
        self.images = images
        if images:
            ImageTask.__init__(self, augment=augment or "basic", mixup=mixup)
            return
        self.augment, self.mixup, self.memory_format = "none", 0.0, torch.contiguous_format
        if augment not in (None, "none") or mixup:
            raise BenchError(f"{where}: task.{'mixup' if mixup else 'augment'} is for images, and these are {are}")

    def model_inputs(self, inputs: Tensor) -> Tensor:
        return super().model_inputs(inputs) if self.images else inputs

    def draw(self, count: int, random: np.random.RandomState) -> tuple[Any, ...]:
        return super().draw(count, random) if self.images else ()

    def augmented(self, inputs: Tensor, targets: Tensor, drawn: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        return super().augmented(inputs, targets, drawn) if self.images else (inputs, targets)
