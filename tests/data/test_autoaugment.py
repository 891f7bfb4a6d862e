"""AutoAugment on batches, against torchvision's on single images: pixel for pixel, and draw for draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from scipy import stats
from torch import Tensor
from torchvision.transforms import (
    AutoAugment,
    AutoAugmentPolicy,
    InterpolationMode,
)
from torchvision.transforms import autoaugment as reference

from bench.data import autoaugment as module
from bench.data.autoaugment import POLICY, SIGNED, as_work, magnitude_of
from tests.data.augmentations import apply_policy
from tests.data.augmentations import autoaugmented as autoaugment

LEAST_P = 1e-3
"""Seeds are fixed, so that a test of a distribution passes always or never."""
SIZES = [(32, 32), (28, 40), (31, 17)]
TORCHVISION = AutoAugment(AutoAugmentPolicy.CIFAR10)


def pictures(height: int = 32, width: int = 32, noisy: int = 6) -> Tensor:
    """(N, H, W, 3) bytes that try an operation: noise, slopes, one value, few values, few contrasts, every grey."""
    generator = torch.Generator().manual_seed(height * width)
    noise = torch.randint(0, 256, (noisy, height, width, 3), dtype=torch.uint8, generator=generator)
    slope = torch.arange(height * width).view(height, width, 1).expand(-1, -1, 3)
    one_flat_channel = noise[0].clone()
    one_flat_channel[..., 1] = 5
    other = [
        torch.full((height, width, 3), 77),
        torch.zeros(height, width, 3),
        slope % 256,
        slope * 255 // (height * width) * torch.tensor([1.0, 0.5, 0.2]),
        noise[1] // 40 + 100,
        noise[2] // 200 * 255,
        one_flat_channel,
    ]
    return torch.cat([noise, torch.stack([image.to(torch.uint8) for image in other])])


def each(count: int, chosen: int, first: bool, second: bool, positive: int) -> tuple[Any, Any, Any]:
    """The same draw for every image."""
    return np.full(count, chosen), np.tile([first, second], (count, 1)), np.full((count, 2), positive)


# ---- the table -----------------------------------------------------------------------------------------------


def test_the_policy_is_torchvisions() -> None:
    assert list(POLICY) == TORCHVISION.policies


@pytest.mark.parametrize("size", SIZES)
def test_magnitudes_are_torchvisions_to_the_last_bit(size: tuple[int, int]) -> None:
    space = TORCHVISION._augmentation_space(10, size)
    for name, _, level in (operation for pair in POLICY for operation in pair):
        magnitudes, signed = space[name]
        assert magnitude_of(name, level, *size) == (0 if level is None else magnitudes[level].item())
        assert (name in SIGNED) == signed


# ---- single operations ---------------------------------------------------------------------------------------

OPERATIONS = sorted(
    {
        (name, level or 0): (number, slot)
        for number, pair in enumerate(POLICY)
        for slot, (name, _, level) in enumerate(pair)
    }.items()
)


@pytest.mark.parametrize(
    ("place"), [place for _, place in OPERATIONS], ids=[f"{name}-{level}" for (name, level), _ in OPERATIONS]
)
@pytest.mark.parametrize("positive", [0, 1])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_operation_gives_torchvisions_pixels(place: tuple[int, int], positive: int, size: tuple[int, int]) -> None:
    number, slot = place
    name, _, level = TORCHVISION.policies[number][slot]
    magnitudes, signed = TORCHVISION._augmentation_space(10, size)[name]
    magnitude = 0.0 if level is None else magnitudes[level].item() * (-1 if signed and not positive else 1)

    images = pictures(*size)
    expected = reference._apply_op(images.permute(0, 3, 1, 2), name, magnitude, InterpolationMode.NEAREST, None)
    result = apply_policy(images, *each(len(images), number, slot == 0, slot == 1, positive))
    assert torch.equal(result, expected.permute(0, 2, 3, 1))
    assert result.dtype == torch.uint8


def test_the_pictures_put_each_operation_to_use() -> None:
    """Or else the test above could pass for an operation that does nothing."""
    images = pictures()
    for (name, level), (number, slot) in OPERATIONS:
        result = apply_policy(images, *each(len(images), number, slot == 0, slot == 1, 1))
        assert not torch.equal(result, images) or (name, level) == ("Color", 0), name


# ---- batches -------------------------------------------------------------------------------------------------


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """What is drawn, call by call: sub-policies, which operations happen, signs."""
    seen = []

    def spy(*drawn: Any) -> Any:
        seen.append(drawn)
        return as_work(*drawn)

    monkeypatch.setattr(module, "as_work", spy)
    return seen


def test_a_batch_is_what_torchvision_makes_of_its_images_one_by_one(
    draws: list[tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(noisy=400)
    results = autoaugment(images, RandomState(0))
    ((chosen, happens, positive),) = draws
    assert len(set(zip(chosen.tolist(), map(tuple, happens), strict=True))) > 70, "nearly all there is was drawn"
    for n, image in enumerate(images):
        forced = (int(chosen[n]), torch.tensor(np.where(happens[n], -1.0, 2.0)), torch.tensor(positive[n]))
        monkeypatch.setattr(TORCHVISION, "get_params", lambda _, forced=forced: forced)
        expected = TORCHVISION(image.permute(2, 0, 1)).permute(1, 2, 0)
        assert torch.equal(results[n], expected), (POLICY[chosen[n]], happens[n], positive[n])


def test_where_nothing_happens_images_stay_but_are_copies() -> None:
    images = pictures()
    result = apply_policy(images, *each(len(images), 3, False, False, 1))
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


def test_images_of_a_batch_have_draws_of_their_own() -> None:
    image = pictures()[:1]
    results = autoaugment(image.expand(200, -1, -1, -1), RandomState(0))
    assert len({result.numpy().tobytes() for result in results}) > 30


def test_sub_policies_operations_and_signs_are_drawn_as_the_paper_has_them(draws: list[tuple[Any, Any, Any]]) -> None:
    autoaugment(torch.zeros(50_000, 1, 1, 3, dtype=torch.uint8), RandomState(0))
    ((chosen, happens, positive),) = draws
    assert stats.chisquare(np.bincount(chosen, minlength=25)).pvalue > LEAST_P
    for number, ((_, first, _), (_, second, _)) in enumerate(POLICY):
        mine = chosen == number
        joint = np.array([(1 - first) * (1 - second), (1 - first) * second, first * (1 - second), first * second])
        counts = np.bincount(2 * happens[mine, 0] + happens[mine, 1], minlength=4)
        assert counts[joint == 0].sum() == 0
        assert stats.chisquare(counts[joint > 0], joint[joint > 0] * mine.sum()).pvalue > LEAST_P, number
        signs = np.bincount(2 * positive[mine, 0] + positive[mine, 1], minlength=4)
        assert stats.chisquare(signs).pvalue > LEAST_P, number


@pytest.mark.parametrize("size", SIZES)
def test_the_seed_decides_everything_and_nothing_else_does(size: tuple[int, int]) -> None:
    images = pictures(*size)
    before = images.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    first = autoaugment(images, RandomState(7))
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(autoaugment(images, RandomState(7)), first)
    assert not torch.equal(autoaugment(images, RandomState(8)), first)
    assert torch.equal(images, before), "the images given are left as they were"
    assert first.shape == images.shape


def test_a_batch_of_one() -> None:
    image = pictures()[:1]
    results = [autoaugment(image, RandomState(seed)) for seed in range(20)]
    assert {result.shape for result in results} == {image.shape}
    assert any(not torch.equal(result, image) for result in results)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", SIZES)
def test_a_gpu_gives_the_same_bytes(size: tuple[int, int]) -> None:
    images = pictures(*size, noisy=1000)
    assert torch.equal(autoaugment(images.cuda(), RandomState(0)).cpu(), autoaugment(images, RandomState(0)))
