"""Image files as bytes of one size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from bench.core.errors import BenchError

DEEP = "F"
"""Pillow's mode for floating numbers, in which images of more than 8 bits per pixel are held here. Pillow's conversion
of such images to grey or colour clips: 16-bit images become white, numbers from 0 to 1 black."""

GROUND = (128, 128, 128)
"""What stands behind transparent parts: mid-grey, from which black and white shapes both stand out."""

DARKEST = 64
"""Images of 16 bits per colour whose upper 8 stay below this hold 14 bits or fewer: mostly a camera's 12."""

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
Scale = tuple[float, float]  # the values that become 0 and 255


@dataclass(frozen=True)
class Encoded:
    """An image file that lies inside another file, as in a column of a table.

    Attributes:
        where: names it in messages.
        content: gives its bytes.
    """

    where: str
    content: Callable[[], bytes]

    def __str__(self) -> str:
        return self.where


Source = Path | Encoded


def read(paths: Sequence[Source], train: int, shape: tuple[int, int, int], *, fit: bool) -> torch.Tensor:
    """Return the pixels of images as (N, H, W, C) uint8.

    Images of more than 8 bits per pixel are scaled alike: from the darkest pixel of the training images to their
    lightest. Darker and lighter pixels of other images are clipped.

    Args:
        train: how many of them, the first ones, are the training set.
        shape: (C, H, W), of 1 or 3 channels.
        fit: whether images of another size are scaled and cut; if not, they are refused.

    Raises:
        BenchError: a file is damaged, of another size, or of another depth than the others, or 16 bits per colour lose
            nearly all that is in them; the message names it.
    """
    # One tensor that is filled image by image: a list to join would need the memory twice.
    pixels = torch.empty((len(paths), *shape[1:], shape[0]), dtype=torch.uint8)
    scale: Scale | None = None
    for number, path in enumerate(paths):
        image = _open(path, shape, fit)
        # The first image decides for all; any of the other kind is refused below.
        if number == 0 and image.mode == DEEP:
            # Only training images have a say in the scale, so that nothing of the test set is learned.
            scale = _range(paths[:train], shape, fit)
        if (image.mode == DEEP) != (scale is not None):
            raise _mixed(path, paths[0], first_is_deep=scale is not None)
        pixels[number] = torch.from_numpy(_bytes(image, shape[0], scale))
    if _is_cut(paths[0]) and int(pixels[:train].max()) < DARKEST:
        raise BenchError(
            f"{paths[0]} has 16 bits per colour, of which only the upper 8 can be read, and here these are almost "
            "empty; multiply the numbers so that they reach up to 65535, or save them with 8 bits per colour"
        )
    return pixels


def statistics(pixels: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and deviation, in pixels of 0..1, from whole numbers: the same on every machine.

    Args:
        pixels: (N, H, W, C) uint8.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in pixels.unbind(-1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (share * values).sum()
        means.append(mean.item())
        # A channel of one value has the deviation 0, by which nothing can be divided.
        deviations.append((share * (values - mean) ** 2).sum().sqrt().item() or 1.0)
    return tuple(means), tuple(deviations)


def size(path: Source) -> tuple[int, int]:
    """Return height and width of an image after its EXIF rotation.

    Raises:
        BenchError: it cannot be read.
    """
    try:
        with Image.open(_file(path)) as image:
            width, height = ImageOps.exif_transpose(image).size
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    return height, width


def _file(source: Source) -> Path | io.BytesIO:
    return source if isinstance(source, Path) else io.BytesIO(source.content())


def _open(path: Source, shape: tuple[int, int, int], fit: bool) -> Image.Image:
    """Return an image of the right size: in grey or colour, or in mode DEEP."""
    channels, height, width = shape
    try:
        with Image.open(_file(path)) as file:
            # The rotation comes before the size is compared, because it may swap height and width.
            image = ImageOps.exif_transpose(file)
            # Pillow's modes of more than 8 bits: F, I and its variants such as I;16.
            if image.mode == "F" or image.mode.startswith("I"):
                image = Image.fromarray(np.asarray(image, dtype=np.float32))
            else:
                image = _opaque(image).convert("RGB" if channels == 3 else "L")
    except UNREADABLE as error:
        raise _unreadable(path, error) from error
    if image.mode == DEEP and not np.isfinite(np.asarray(image)).all():
        raise BenchError(f"{path} has pixels that are not finite; write 0 there, or remove the image")
    if fit:
        return fitted(image, height, width)
    if image.size != (width, height):
        raise BenchError(
            f"{path} has {image.width}x{image.height} pixels, others {width}x{height}; set one size "
            "for all: task.size = 32, or 64, 224, ..."
        )
    return image


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """Return an image scaled until its shorter side fits, and its middle cut out."""
    return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)


def _is_cut(path: Source) -> bool:
    """Return whether Pillow reads only the upper 8 of an image's 16 bits per colour; its grey ones it reads in full."""
    with Image.open(_file(path)) as file:
        # Pillow tells the decoder how the file holds its numbers: "RGB;16B" (PNG, TIFF), or ("RGB", 65535) (PPM).
        how = [args if isinstance(args := tile.args, tuple) else (args,) for tile in getattr(file, "tile", [])]
        deep = (";16" in str(args[0]) or (file.format == "PPM" and args[-1] == 65535) for args in how)
        return file.mode != "F" and not file.mode.startswith("I") and any(deep)


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image with `GROUND` behind its transparent parts.

    Pillow's conversion drops the alpha channel and shows the colours beneath it, which in a drawing on a transparent
    ground are often the same everywhere: all black.
    """
    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    least, most = seen.getchannel("A").getextrema()
    # An alpha that is the same everywhere has no shape in it; most files with one are opaque.
    return image if least == most else Image.alpha_composite(Image.new("RGBA", seen.size, GROUND), seen)


def _range(paths: Sequence[Source], shape: tuple[int, int, int], fit: bool) -> Scale:
    # All training images are read once more for this: no pixel can be scaled before the range is known.
    lowest, highest = np.inf, -np.inf
    for path in paths:
        image = _open(path, shape, fit)
        if image.mode != DEEP:
            raise _mixed(path, paths[0], first_is_deep=True)
        values = np.asarray(image)
        lowest, highest = min(lowest, float(values.min())), max(highest, float(values.max()))
    return lowest, highest


def _bytes(image: Image.Image, channels: int, scale: Scale | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an image as (H, W, C)."""
    values = np.array(image)
    if scale is not None:
        lowest, highest = scale
        # Images of a single value have no range: dividing by 1 makes all of their pixels 0.
        share = (values.astype(np.float64) - lowest) / ((highest - lowest) or 1.0)
        values = np.repeat(np.rint(255 * share.clip(0, 1)).astype(np.uint8)[..., None], channels, axis=-1)
    return values.reshape(image.height, image.width, channels)


def _unreadable(path: Source, error: Exception) -> BenchError:
    return BenchError(f"{path} cannot be read as an image: {error}")


def _mixed(path: Source, first: Source, *, first_is_deep: bool) -> BenchError:
    deep, shallow = (first, path) if first_is_deep else (path, first)
    return BenchError(
        f"{deep} has more than 8 bits a pixel and {shallow} has 8, so one of them would be much too dark or too light; "
        "save all images with the same number of bits"
    )
