"""Random changes of training images, one batch at a time on its device, each image with its own random draw.

Images are (N, H, W, C): a batch is then made channels_last by a permute, which moves nothing. All numbers are drawn on
the host (`draw_...`), so that a seed means the same augmentation on every device. They move to the device apart from
that (`on_device`), those of many batches at once: a step then copies nothing to the device and waits for nothing.
AutoAugment's policy has a file of its own, `autoaugment.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray[Any, Any]


def to_device(array: Array, device: torch.device) -> Tensor:
    """Return an array of the host as a tensor on `device`; a GPU copies it while the host goes on."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # only from pinned memory is a copy asynchronous
    return tensor.to(device, non_blocking=True)


def on_device(drawn: Sequence[tuple[Any, ...]], device: torch.device) -> list[tuple[Any, ...]]:
    """Return what was drawn for some batches with its arrays as tensors on `device`, in one transfer per kind of array.

    Args:
        drawn: one tuple per batch, alike in kind; arrays may differ in length. What is no array stays as it is.
    """
    columns = list[Sequence[Any]]()
    for parts in zip(*drawn, strict=True):
        if isinstance(parts[0], np.ndarray):
            whole = to_device(parts[0] if len(parts) == 1 else np.concatenate(parts), device)
            columns.append(torch.split(whole, list(map(len, parts))))
        else:
            columns.append(parts)
    return [tuple(column[number] for column in columns) for number in range(len(drawn))]


def draw_crop(
    random: np.random.RandomState, count: int, height: int, width: int, padding: int, *, flip: bool = False
) -> Array:
    """Draw for `crop` the moves of a batch of images: up to `padding` pixels along each axis, all equally likely.

    Args:
        count: number of images, each (height, width).
        flip: whether each image is also mirrored, left to right, with probability 1/2; default no.

    Returns:
        (count, height + width) int64, for each image the beginnings of its rows in the padded images, then columns.
    """
    top, left = random.randint(2 * padding + 1, size=(2, count, 1))
    columns = left + np.arange(width)
    if flip:
        # A mirrored image takes its columns from right to left.
        columns = np.where(random.randint(2, size=(count, 1)), columns[:, ::-1], columns)
    # Pixel (n, row, column) of the padded images, numbered through.
    rows = np.arange(count)[:, None] * (height + 2 * padding) + top + np.arange(height)
    return np.concatenate((rows * (width + 2 * padding), columns), axis=1)


def crop(images: Tensor, sources: Tensor, padding: int, fill: float = 0.0) -> Tensor:
    """Move each image, and mirror some, as `draw_crop` has drawn.

    The same as padding the image and cutting a random window of its old size out of it.

    Args:
        images: (N, H, W, C), any dtype; left as it is.
        sources: what `draw_crop` has drawn for as many images of that size, with this padding.
        padding: in pixels.
        fill: value of the pixels that come in from outside; default 0.

    Returns:
        (N, H, W, C), of the images' dtype.
    """
    _, height, _, channels = images.shape
    padded = F.pad(images, (0, 0, padding, padding, padding, padding), value=fill)
    # One gather of whole pixels does it all.
    # The sum is the number of a pixel among all padded pixels: start of its row plus its column.
    pixels = sources[:, :height, None] + sources[:, None, height:]
    return padded.reshape(-1, channels).index_select(0, pixels.view(-1)).view(images.shape)


def draw_cutout(
    random: np.random.RandomState, count: int, height: int, width: int, channels: int, size: int = 16
) -> Array:
    """Draw for `cutout` the squares of a batch: the centre is any pixel, so that part of a square may lie outside.

    Args:
        count: number of images, each (height, width, channels).
        size: side of the square in pixels; 16 is the authors' choice for CIFAR-10.

    Returns:
        (count, height + width * channels) float32: for each image its rows, then its columns; 0 inside the square.
    """
    rows, columns = _outside(random, count, height, size), _outside(random, count, width, size)
    # Columns are repeated for each channel: a kernel over runs of W * C numbers is several times as fast as over C.
    return np.concatenate((rows, columns.repeat(channels, axis=1)), axis=1)


def cutout(images: Tensor, outside: Tensor) -> Tensor:
    """Put a square of zeros on each image (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    Args:
        images: (N, H, W, C) floats, normalised, so that 0 is the mean of the data set; left as they are.
        outside: what `draw_cutout` has drawn for as many images of that size.

    Returns:
        (N, H, W, C), of the images' dtype.
    """
    height = images.shape[1]
    keep = torch.maximum(outside[:, :height, None], outside[:, None, height:])
    return images * keep.view(images.shape).to(images.dtype)


def _outside(random: np.random.RandomState, count: int, length: int, size: int) -> Array:
    """Return (count, length) float32, one axis of squares at random centres: 0 inside a square, else 1."""
    start = random.randint(length, size=(count, 1)) - size // 2
    position = np.arange(length)
    return ((position < start) | (position >= start + size)).astype(np.float32)


def draw_mixup(random: np.random.RandomState, count: int, alpha: float) -> tuple[Array, Array]:
    """Draw for `mixup` the share that each example keeps, (count,) float32, and its partner, (count,) int64.

    Shares are drawn from Beta(alpha, alpha), for each example anew; partners are given by a random permutation.

    Args:
        alpha: above 0; the paper has 0.1 to 0.4 on ImageNet and 1 on CIFAR-10.
    """
    return random.beta(alpha, alpha, size=count).astype(np.float32), random.permutation(count)


def mixup(inputs: Tensor, targets: Tensor, num_classes: int, share: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    """Blend each example with another one of the batch (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    Cross-entropy against the blended targets is the paper's blend of two cross-entropies.

    Args:
        inputs: (N, ...) floats; left as they are.
        targets: (N,) class numbers.
        share, partner: what `draw_mixup` has drawn for as many examples.

    Returns:
        blended inputs (N, ...) and blended targets, (N, num_classes) float32 probabilities.
    """
    # Not F.one_hot, which looks at the numbers first and so waits for the device.
    one_hot = (targets[:, None] == torch.arange(num_classes, device=targets.device)).float()
    return _blend(inputs, partner, share), _blend(one_hot, partner, share)


def _blend(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(values[partner], values, share.view(-1, *[1] * (values.ndim - 1)))
