"""Crops, flips, cutout and mixup, against torchvision or against what the papers say, and what they all promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scipy import stats
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as reference

from tests.data.augmentations import crop, cutout, mixup

LEAST_P = 1e-3
"""Seeds are fixed, so that a test of a distribution passes always or never."""


def pictures(count: int, height: int = 9, width: int = 7, channels: int = 3, seed: int = 0) -> Tensor:
    """(N, H, W, C) bytes without any order in them, so that no two windows are the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


# ---- crop and flip -------------------------------------------------------------------------------------------


def torchvision_windows(image: Tensor, padding: int, fill: float = 0) -> list[Tensor]:
    """Every window that torchvision's RandomCrop can cut out of the padded image, then every one of them mirrored."""
    height, width, _ = image.shape
    padded = reference.pad(image.permute(2, 0, 1), [padding] * 4, fill=fill)
    shifts = range(2 * padding + 1)
    cut = [reference.crop(padded, top, left, height, width) for top in shifts for left in shifts]
    return [window.permute(1, 2, 0) for window in cut + [reference.hflip(window) for window in cut]]


def which_window(result: Tensor, image: Tensor, padding: int, fill: float = 0) -> int:
    """The number of the only one of torchvision's windows that equals a result."""
    windows = torchvision_windows(image, padding, fill)
    (number,) = (number for number, window in enumerate(windows) if torch.equal(window, result))
    return number


def window_counts(flip: bool, padding: int, draws: int) -> np.ndarray:
    image = pictures(1)
    results = crop(image.expand(draws, -1, -1, -1), RandomState(0), padding, flip=flip)
    windows = torch.stack(torchvision_windows(image[0], padding))
    same = (results.flatten(1)[:, None] == windows.flatten(1)).all(dim=2)
    assert torch.equal(same.sum(dim=1), torch.ones(draws, dtype=torch.int64)), "each result is one of the windows"
    return same.sum(dim=0).numpy()


def test_every_crop_is_equally_likely_and_none_is_mirrored_unasked() -> None:
    counts = window_counts(flip=False, padding=2, draws=5000)
    assert counts[25:].sum() == 0
    assert stats.chisquare(counts[:25]).pvalue > LEAST_P


def test_every_crop_mirrored_or_not_is_equally_likely() -> None:
    assert stats.chisquare(window_counts(flip=True, padding=2, draws=8000)).pvalue > LEAST_P


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (12, 20, 3)])
def test_each_image_is_cropped_out_of_itself_with_a_draw_of_its_own(shape: tuple[int, int, int]) -> None:
    images = pictures(40, *shape)
    results = crop(images, RandomState(1), 4, flip=True)
    numbers = [which_window(result, image, padding=4) for result, image in zip(results, images, strict=True)]
    assert len(set(numbers)) > 20


def test_crop_keeps_floats_and_fills_with_any_number() -> None:
    images = torch.randn(30, 8, 8, 1, generator=torch.Generator().manual_seed(0))
    results = crop(images, RandomState(0), 1, fill=-1.7)
    numbers = [which_window(result, image, 1, fill=-1.7) for result, image in zip(results, images, strict=True)]
    assert set(numbers) == set(range(9))


def test_crop_takes_images_that_do_not_lie_in_memory_as_they_are_indexed() -> None:
    images = pictures(10)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not strided.is_contiguous()
    assert torch.equal(crop(strided, RandomState(0), 2, flip=True), crop(images, RandomState(0), 2, flip=True))


def test_without_padding_flip_only_mirrors_and_does_so_half_of_the_time() -> None:
    images = pictures(2000, 4, 5)
    results = crop(images, RandomState(0), 0, flip=True)
    mirrored = (results != images).flatten(1).any(dim=1)
    expected = reference.hflip(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert torch.equal(results, torch.where(mirrored[:, None, None, None], expected, images))
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > LEAST_P


# ---- cutout --------------------------------------------------------------------------------------------------


def squares(height: int, width: int, size: int) -> list[Tensor]:
    """For each centre the (H, W) bool mask of its square, clipped at the border as the authors' code does it."""
    masks = []
    for y in range(height):
        for x in range(width):
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[max(0, y - size // 2) : y + size // 2, max(0, x - size // 2) : x + size // 2] = True
            masks.append(mask)
    return masks


def test_every_centre_of_cutout_is_equally_likely_and_squares_are_clipped() -> None:
    height, width, size, draws = 6, 7, 4, 6000
    cut = (cutout(torch.ones(draws, height, width, 1), RandomState(0), size) == 0).view(draws, -1)
    masks = torch.stack(squares(height, width, size)).flatten(1)
    same = (cut[:, None] == masks).all(dim=2)
    assert same.sum(dim=1).eq(1).all()
    assert stats.chisquare(same.sum(dim=0).numpy()).pvalue > LEAST_P


def test_cutout_is_16_pixels_wide_by_default_and_at_least_half_of_it_is_seen() -> None:
    cut = cutout(torch.ones(3000, 32, 32, 1), RandomState(0))[..., 0] == 0
    heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert set(heights.tolist()) == set(widths.tolist()) == set(range(8, 17))
    assert torch.equal(cut.sum(dim=(1, 2)), heights * widths), "they are rectangles"


def test_cutout_takes_all_channels_of_a_pixel_and_leaves_the_other_pixels_as_they_were() -> None:
    images = torch.rand(50, 12, 20, 3, generator=torch.Generator().manual_seed(0)) + 1
    results = cutout(images, RandomState(0), 8)
    gone = (results == 0).any(dim=3)
    assert gone.flatten(1).any(dim=1).all()
    assert torch.equal(results, images.masked_fill(gone[..., None], 0))


# ---- mixup ---------------------------------------------------------------------------------------------------


def mix(count: int, alpha: float, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs, blended inputs, and each example's share and partner, read off the labels, which are all different."""
    inputs = torch.randn(count, 4, 3, 2, generator=torch.Generator().manual_seed(seed))
    mixed, targets = mixup(inputs, torch.arange(count), count, alpha, RandomState(seed))
    share = targets.diagonal()
    partner = (targets - torch.diag(share)).argmax(dim=1)
    partner = torch.where(share == 1, torch.arange(count), partner)
    return inputs, mixed, share, partner


def test_mixup_blends_inputs_in_the_shares_that_the_labels_tell() -> None:
    inputs, mixed, share, partner = mix(300, alpha=1.0)
    kept = share.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, kept * inputs + (1 - kept) * inputs[partner])
    assert len(set(share.tolist())) > 290, "each pair has its own share"


def test_partners_of_mixup_are_a_random_permutation() -> None:
    _, _, _, partner = mix(300, alpha=1.0)
    assert torch.equal(partner.sort().values, torch.arange(300))
    assert stats.kstest((partner - torch.arange(300)) % 300 / 300, "uniform").pvalue > LEAST_P


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_of_mixup_come_from_the_beta_distribution(alpha: float) -> None:
    _, _, share, partner = mix(1500, alpha)
    share = share[partner != torch.arange(1500)]  # an example that is its own partner has 1 in its label
    assert stats.kstest(share.numpy(), stats.beta(alpha, alpha).cdf).pvalue > LEAST_P


def test_labels_of_mixup_are_probabilities_also_where_both_are_the_same() -> None:
    labels = torch.arange(200) % 3
    _, targets = mixup(torch.zeros(200, 1), labels, 5, 0.3, RandomState(0))
    assert (targets.dtype, targets.shape) == (torch.float32, (200, 5))
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(200))
    assert (targets[:, 3:] == 0).all()
    assert (targets.gather(1, labels[:, None]) == 1).any()


def test_cross_entropy_against_blended_labels_is_the_loss_of_the_paper() -> None:
    outputs = torch.randn(60, 60, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(60)
    _, targets = mixup(torch.zeros(60, 1), labels, 60, 0.4, RandomState(5))
    share, partner = targets.diagonal(), (targets - torch.diag(targets.diagonal())).argmax(dim=1)
    own = F.cross_entropy(outputs, labels, reduction="none")
    other = F.cross_entropy(outputs, partner, reduction="none")
    torch.testing.assert_close(F.cross_entropy(outputs, targets, reduction="none"), share * own + (1 - share) * other)


# ---- what all of them promise --------------------------------------------------------------------------------

Change = Callable[[Tensor, RandomState], Tensor]
CHANGES: dict[str, Change] = {
    "crop": lambda images, random: crop(images, random, 4),
    "flip": lambda images, random: crop(images, random, 0, flip=True),
    "flip and crop": lambda images, random: crop(images, random, 4, flip=True),
    "cutout": lambda images, random: cutout(images, random, 8),
    "mixup": lambda images, random: mixup(images, torch.arange(len(images)), 50, 1.0, random)[0],
    "mixup's labels": lambda images, random: mixup(images, torch.arange(len(images)), 50, 1.0, random)[1],
}


@pytest.fixture(params=CHANGES)
def change(request: pytest.FixtureRequest) -> Change:
    return CHANGES[request.param]


@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1), (12, 20, 3)])
def test_the_seed_decides_everything_and_nothing_else_does(change: Change, shape: tuple[int, int, int]) -> None:
    images = pictures(50, *shape) + 1.0
    before = images.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    first = change(images, RandomState(7))
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(change(images, RandomState(7)), first)
    assert not torch.equal(change(images, RandomState(8)), first)
    assert torch.equal(images, before), "the images given are left as they were"


def test_the_stream_goes_on_from_batch_to_batch(change: Change) -> None:
    images, random = pictures(50) + 1.0, RandomState(7)
    assert not torch.equal(change(images, random), change(images, random))


def test_a_batch_of_one_keeps_its_shape(change: Change) -> None:
    result = change(pictures(1) + 1.0, RandomState(0))
    assert result.shape in ((1, 9, 7, 3), (1, 50))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(change: Change) -> None:
    images = pictures(50, 32, 32)
    cropped = crop(images.cuda(), RandomState(3), 4, flip=True)
    assert torch.equal(cropped.cpu(), crop(images, RandomState(3), 4, flip=True))
    floats = images + 1.0
    torch.testing.assert_close(change(floats.cuda(), RandomState(3)).cpu(), change(floats, RandomState(3)))
