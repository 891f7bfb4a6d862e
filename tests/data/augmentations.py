"""Augmentation of one batch in one call: its numbers drawn from a stream, moved to the images' device, and used."""

from __future__ import annotations

from typing import Any

from numpy.random import RandomState
from torch import Tensor

from bench.data import augment, autoaugment


def crop(images: Tensor, random: RandomState, padding: int, fill: float = 0.0, *, flip: bool = False) -> Tensor:
    count, height, width, _ = images.shape
    (sources,) = _moved(images, augment.draw_crop(random, count, height, width, padding, flip=flip))
    return augment.crop(images, sources, padding, fill)


def cutout(images: Tensor, random: RandomState, size: int = 16) -> Tensor:
    count, height, width, channels = images.shape
    (outside,) = _moved(images, augment.draw_cutout(random, count, height, width, channels, size))
    return augment.cutout(images, outside)


def mixup(
    inputs: Tensor, targets: Tensor, num_classes: int, alpha: float, random: RandomState
) -> tuple[Tensor, Tensor]:
    return augment.mixup(inputs, targets, num_classes, *_moved(inputs, *augment.draw_mixup(random, len(inputs), alpha)))


def autoaugmented(images: Tensor, random: RandomState) -> Tensor:
    return autoaugment.autoaugment(images, *_moved(images, *autoaugment.draw_policies(random, len(images))))


def apply_policy(images: Tensor, chosen: Any, happens: Any, positive: Any) -> Tensor:
    return autoaugment.autoaugment(images, *_moved(images, *autoaugment.as_work(chosen, happens, positive)))


def _moved(images: Tensor, *drawn: Any) -> tuple[Any, ...]:
    (moved,) = augment.on_device([drawn], images.device)
    return moved
