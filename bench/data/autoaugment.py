"""AutoAugment's policy for CIFAR-10 on batches of images, pixel for pixel what torchvision does to one image.

Cubuk et al. 2019, https://arxiv.org/abs/1805.09501. The images of a batch that draw the same kind of operation go
through it together. The policy is written down here, not read from torchvision at run time, because importing that
takes a second, and because results should not change with its version; a test compares the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.data.augment import Array, to_device

Operation = tuple[str, float, int | None]
"""Name, probability, and level of magnitude from 0 to 9; None for an operation without magnitude."""

POLICY: tuple[tuple[Operation, Operation], ...] = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)
"""25 sub-policies of two operations each."""

PROBABILITIES = np.array([[probability for _, probability, _ in pair] for pair in POLICY])
LEVELS = 10
SIGNED = {"Rotate", "ShearY", "TranslateX", "TranslateY", "Brightness", "Color", "Contrast", "Sharpness"}
"""Operations whose magnitude is made negative half of the time."""


def draw_policies(random: np.random.RandomState, count: int) -> tuple[Array, Array, tuple[int, ...]]:
    """Draw for `autoaugment` a sub-policy for each of `count` images, and whether its two operations happen.

    Returns:
        what `as_work` makes of that.
    """
    # The order of these draws is a part of every result with AutoAugment: a change would change the runs.
    chosen = random.randint(len(POLICY), size=count)
    happens = random.random_sample((count, 2)) < PROBABILITIES[chosen]
    positive = random.randint(2, size=(count, 2))
    return as_work(chosen, happens, positive)


def as_work(chosen: Array, happens: Array, positive: Array) -> tuple[Array, Array, tuple[int, ...]]:
    """Return which images go together through which kind of operation: that is decided on the host.

    Args:
        chosen: (N,) number of each image's sub-policy.
        happens: (N, 2) bool, whether its first and its second operation happens.
        positive: (N, 2), 1 where the magnitude is positive, 0 where negative, in operations that have a sign.

    Returns:
        (K,) int64 images, the first operations' before the second ones', by kind; (K,) int64 rows of the operations'
        parameters; and how many images each kind has, first and second operations apart.
    """
    places, drawn = _places(), (chosen[:, None], np.arange(2), positive)
    kinds, rows = np.where(happens, places.kinds[drawn], -1), places.rows[drawn]
    work = [(slot, np.flatnonzero(kinds[:, slot] == kind)) for slot in range(2) for kind in range(len(KINDS))]
    members = np.concatenate([here for _, here in work])
    return members, np.concatenate([rows[here, slot] for slot, here in work]), tuple(len(here) for _, here in work)


def autoaugment(images: Tensor, members: Tensor, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Give each image the sub-policy that was drawn, its operations one after the other.

    Args:
        images: (N, H, W, 3) uint8; left as they are.
        members, rows, sizes: what `draw_policies` has drawn for as many images.

    Returns:
        (N, H, W, 3) uint8; what comes in from outside an image is black.
    """
    _, height, width, _ = images.shape
    parameters = _parameters(height, width, images.device)
    # `work` has all first operations before the second ones, so that a second one gets the result of a first.
    images = images.clone()
    parts = zip(torch.split(members, list(sizes)), torch.split(rows, list(sizes)), strict=True)
    for number, (some, their_rows) in enumerate(parts):
        if sizes[number]:
            kind = number % len(KINDS)
            changed = KINDS[kind].apply(images.index_select(0, some), parameters[kind].index_select(0, their_rows))
            images.index_copy_(0, some, changed)
    return images


# ---- what an operation needs to know, computed once for a size of images -------------------------------------


@dataclass(frozen=True)
class Kind:
    """Operations that one function can do to a batch.

    Attributes:
        names: the operations.
        apply: from images (n, H, W, 3) uint8 and a parameter for each to changed images.
        parameter: from (name, signed magnitude, height, width) to the parameter.
    """

    names: tuple[str, ...]
    apply: Callable[[Tensor, Tensor], Tensor]
    parameter: Callable[[str, float, int, int], Tensor]


@dataclass(frozen=True)
class _Places:
    """The place of each operation's parameter, whatever the size of images.

    Attributes:
        kinds: [sub-policy, first or second, positive] -> index into KINDS.
        rows: the same -> row of that kind's parameters.
        operations: of each kind, its operations by row: name, level and sign.
    """

    kinds: Array
    rows: Array
    operations: tuple[list[tuple[str, int | None, int]], ...]


@functools.cache
def _places() -> _Places:
    kinds, rows = np.empty((2, len(POLICY), 2, 2), dtype=np.int64)
    operations: tuple[list[tuple[str, int | None, int]], ...] = tuple([] for _ in KINDS)
    for place in np.ndindex(kinds.shape):
        number, slot, positive = place
        name, _, level = POLICY[number][slot]
        kinds[place] = kind = next(k for k, candidate in enumerate(KINDS) if name in candidate.names)
        rows[place] = len(operations[kind])
        operations[kind].append((name, level, -1 if name in SIGNED and not positive else 1))
    return _Places(kinds, rows, operations)


@functools.cache
def _parameters(height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return a tensor of parameters for each kind, on the device."""
    stacked = []
    for kind, operations in zip(KINDS, _places().operations, strict=True):
        sized = [(name, sign * magnitude_of(name, level, height, width)) for name, level, sign in operations]
        stacked.append(torch.stack([kind.parameter(name, size, height, width) for name, size in sized]).numpy())
    return tuple(to_device(table, device) for table in stacked)


def magnitude_of(name: str, level: int | None, height: int, width: int) -> float:
    """Return the size of a level, without sign: degrees, slope, pixels, bits kept, threshold, a ratio's distance to 1.

    torchvision's ten equal steps, in single precision as there, so that no pixel is rounded otherwise.
    """
    if level is None:
        return 0.0
    if name == "Posterize":
        # 8 bits are kept at the lowest level, 4 at the highest.
        return float(8 - round(level * 4 / (LEVELS - 1)))
    # The magnitude at the first and the last level. 150 / 331 is torchvision's largest move, as a share of the side.
    first, last = {
        "Rotate": (0.0, 30.0),
        "ShearY": (0.0, 0.3),
        "TranslateX": (0.0, 150 / 331 * width),
        "TranslateY": (0.0, 150 / 331 * height),
        "Solarize": (255.0, 0.0),
    }.get(name, (0.0, 0.9))
    return float(torch.linspace(first, last, LEVELS, device="cpu")[level])


def _source_pixels(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """Return (H * W,), the old image's pixel for each pixel of the new image; H * W where it lies outside.

    Pixels are numbered row by row. Rotation is about the image's centre, shearing from its left edge.
    """
    y, x = np.mgrid[:height, :width].astype(np.float64)
    if name == "Rotate":
        # The inverse rotation: it leads from a pixel of the new image to where its value comes from.
        sine, cosine = np.sin(np.radians(magnitude)), np.cos(np.radians(magnitude))
        down, right = y - (height - 1) / 2, x - (width - 1) / 2
        y = cosine * down + sine * right + (height - 1) / 2
        x = cosine * right - sine * down + (width - 1) / 2
    elif name == "ShearY":
        # The left edge stays in place; the centres of the first pixels are half a pixel to the right of it.
        y += magnitude * (x + 0.5)
    elif name == "TranslateX":
        x -= int(magnitude)
    else:
        y -= int(magnitude)
    row, column = np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return torch.from_numpy(np.where(inside, row * width + column, height * width).ravel())


def _curve(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """Return (256,) uint8, the new value for each value of a pixel."""
    values = torch.arange(256, dtype=torch.uint8)
    if name == "Invert":
        return 255 - values
    if name == "Posterize":
        # The mask has ones in the highest `magnitude` bits.
        return values & (256 - (1 << (8 - int(magnitude))))
    if name == "Solarize":
        return torch.where(values >= magnitude, 255 - values, values)
    # Brightness: a blend with black.
    return _blend(values, torch.zeros(256), _ratios(name, magnitude, height, width))


def _ratios(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """Return (2,) float32, the shares of the old and the other image in a blend, rounded to single precision."""
    return torch.tensor([1 + magnitude, -magnitude], dtype=torch.float64).float()


def _nothing(name: str, magnitude: float, height: int, width: int) -> Tensor:
    return torch.zeros(0)


# ---- the operations ------------------------------------------------------------------------------------------
# Sums are taken over integers, and products and sums of floats are kernels of their own: every device rounds alike.


def _move(images: Tensor, sources: Tensor) -> Tensor:
    count, height, width, channels = images.shape
    # One black pixel behind each image, for sources outside of it: its number is H * W.
    with_black = F.pad(images.view(count, height * width, channels), (0, 0, 0, 1))
    first = torch.arange(0, count * (height * width + 1), height * width + 1, device=images.device)
    pixels = (sources + first[:, None]).view(-1)
    return with_black.view(-1, channels).index_select(0, pixels).view(images.shape)


def _map_values(images: Tensor, curves: Tensor) -> Tensor:
    return curves.gather(1, images.view(len(images), -1).long()).view(images.shape)


def _blend(images: Tensor, other: Tensor, ratios: Tensor) -> Tensor:
    """Return ratio * images + (1 - ratio) * other, clipped to 0..255; `ratios` are (..., 2)."""
    ratio, rest = ratios.view(-1, *[1] * (images.ndim - 1), 2).unbind(-1)
    return (images.float() * ratio).add_(other * rest).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Return (n, H, W, 1) uint8, the brightness of each pixel."""
    red, green, blue = images.float().unbind(-1)
    # torchvision's weights; the brightness is cut off to a whole number there too, not rounded.
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8)[..., None]


def _color(images: Tensor, ratios: Tensor) -> Tensor:
    return _blend(images, _grey(images).float(), ratios)


def _contrast(images: Tensor, ratios: Tensor) -> Tensor:
    _, height, width, _ = images.shape
    total = _grey(images).sum(dim=(1, 2), keepdim=True)
    mean = (total.double() / (height * width)).float()  # a GPU divides by multiplying: in double, so that it is exact
    return _blend(images, mean, ratios)


def _sharpness(images: Tensor, ratios: Tensor) -> Tensor:
    """Blend with an image blurred by a 3x3 kernel of 1s around a 5, except at the border."""
    values = images.float()
    # Sums of three along both axes; four times the centre in addition gives it the weight 5 of 13.
    columns = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    total = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * values[:, 1:-1, 1:-1]
    blurred = values.clone()
    blurred[:, 1:-1, 1:-1] = (total / 13).round_()  # no number of 13ths is near a half: no device rounds otherwise
    return _blend(images, blurred, ratios)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to 0..255; one that has a single value stays."""
    low = images.amin(1, keepdim=True).amin(2, keepdim=True).float()
    high = images.amax(1, keepdim=True).amax(2, keepdim=True).float()
    flat = high == low
    # Channels of a single value: minus 0, times 1 leaves them as they are.
    low, scale = low.masked_fill(flat, 0), (255 / (high - low)).masked_fill(flat, 1)
    return ((images.float() - low) * scale).clamp_(0, 255).to(torch.uint8)


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    """Give each channel's values a new brightness such that their histogram becomes as flat as it can be."""
    values = images.flatten(1, 2).transpose(1, 2).long()  # (n, 3, H * W)
    histogram = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    up_to = histogram.scatter_add_(2, values, torch.ones_like(values)).cumsum(2)
    # `below` counts smaller values, `up_to` equal ones too; they are the same for values that do not occur.
    below = F.pad(up_to[..., :-1], (1, 0))
    without_largest = below.masked_fill(up_to == below, 0).amax(2, keepdim=True)
    # A 255th of the pixels below the largest value. Where it is 0, the channel stays as it is.
    step = without_largest // 255
    curve = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    curve = torch.where(step > 0, curve, torch.arange(256, device=images.device)).to(torch.uint8)
    return curve.gather(2, values).transpose(1, 2).reshape(images.shape)


KINDS = (
    Kind(("Rotate", "ShearY", "TranslateX", "TranslateY"), _move, _source_pixels),
    Kind(("Invert", "Posterize", "Solarize", "Brightness"), _map_values, _curve),
    Kind(("Color",), _color, _ratios),
    Kind(("Contrast",), _contrast, _ratios),
    Kind(("Sharpness",), _sharpness, _ratios),
    Kind(("AutoContrast",), _autocontrast, _nothing),
    Kind(("Equalize",), _equalize, _nothing),
)
