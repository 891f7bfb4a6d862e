"""Random changes of training images, one batch at a time on its device, each image with its own random draw.

Images are (N, H, W, C): a batch is then made channels_last by a permute, which moves nothing. All numbers are drawn on
the host, so that a seed means the same augmentation on every device, and nothing here waits for the device.
AutoAugment's policy has a file of its own, `autoaugment.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Return an array of the host as a tensor on `device`; a GPU copies it while the host goes on."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # only from pinned memory is a copy asynchronous
    return tensor.to(device, non_blocking=True)


def crop(
    images: Tensor, random: np.random.RandomState, padding: int, fill: float = 0.0, *, flip: bool = False
) -> Tensor:
    """Move each image by up to `padding` pixels along each axis, all moves equally likely, and maybe mirror it.

    The same as padding the image and cutting a random window of its old size out of it.

    Args:
        images: (N, H, W, C), any dtype; left as it is.
        padding: in pixels.
        fill: value of the pixels that come in from outside; default 0.
        flip: whether each image is also mirrored, left to right, with probability 1/2; default no.

    Returns:
        (N, H, W, C), of the images' dtype.
    """
    count, height, width, channels = images.shape
    top, left = random.randint(2 * padding + 1, size=(2, count, 1))
    columns = left + np.arange(width)
    if flip:
        # A mirrored image takes its columns from right to left.
        columns = np.where(random.randint(2, size=(count, 1)), columns[:, ::-1], columns)

    # One gather of whole pixels does it all: pixel (n, row, column) of the padded images, numbered through.
    padded = F.pad(images, (0, 0, padding, padding, padding, padding), value=fill)
    rows = np.arange(count)[:, None] * padded.shape[1] + top + np.arange(height)
    sources = to_device(np.concatenate((rows * padded.shape[2], columns), axis=1), images.device)
    # The sum is the number of a pixel among all padded pixels: start of its row plus its column.
    pixels = sources[:, :height, None] + sources[:, None, height:]
    return padded.reshape(-1, channels).index_select(0, pixels.view(-1)).view(images.shape)


def cutout(images: Tensor, random: np.random.RandomState, size: int = 16) -> Tensor:
    """Put a square of zeros on each image (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552).

    Its centre is any pixel, all equally likely, so that a part of it may lie outside the image.

    Args:
        images: (N, H, W, C) floats, normalised, so that 0 is the mean of the data set; left as they are.
        size: side of the square in pixels; 16 is the authors' choice for CIFAR-10.

    Returns:
        (N, H, W, C), of the images' dtype.
    """
    count, height, width, channels = images.shape
    rows, columns = _outside(random, count, height, size), _outside(random, count, width, size)
    # Columns are repeated for each channel: a kernel over runs of W * C numbers is several times as fast as over C.
    outside = to_device(np.concatenate((rows, columns.repeat(channels, axis=1)), axis=1), images.device)
    keep = torch.maximum(outside[:, :height, None], outside[:, None, height:])
    return images * keep.view(images.shape).to(images.dtype)


def _outside(random: np.random.RandomState, count: int, length: int, size: int) -> np.ndarray[Any, Any]:
    """Return (count, length) float32, one axis of squares at random centres: 0 inside a square, else 1."""
    start = random.randint(length, size=(count, 1)) - size // 2
    position = np.arange(length)
    return ((position < start) | (position >= start + size)).astype(np.float32)


def mixup(
    inputs: Tensor, targets: Tensor, num_classes: int, alpha: float, random: np.random.RandomState
) -> tuple[Tensor, Tensor]:
    """Blend each example with another one of the batch (Zhang et al. 2018, https://arxiv.org/abs/1710.09412).

    The share that an example keeps is drawn from Beta(alpha, alpha), for each example anew; its partner is given by a
    random permutation. Cross-entropy against the blended targets is the paper's blend of two cross-entropies.

    Args:
        inputs: (N, ...) floats; left as they are.
        targets: (N,) class numbers.
        alpha: above 0; the paper has 0.1 to 0.4 on ImageNet and 1 on CIFAR-10.

    Returns:
        blended inputs (N, ...) and blended targets, (N, num_classes) float32 probabilities.
    """
    share = to_device(random.beta(alpha, alpha, size=len(inputs)).astype(np.float32), inputs.device)
    partner = to_device(random.permutation(len(inputs)), inputs.device)
    # Not F.one_hot, which looks at the numbers first and so waits for the device.
    one_hot = (targets[:, None] == torch.arange(num_classes, device=targets.device)).float()
    return _blend(inputs, partner, share), _blend(one_hot, partner, share)


def _blend(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    return torch.lerp(values[partner], values, share.view(-1, *[1] * (values.ndim - 1)))
