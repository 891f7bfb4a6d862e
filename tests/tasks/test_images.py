"""What image tasks make of their bytes: normalised floats, augmented in training as the level says, without waiting."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from numpy.random import RandomState
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import transforms

from bench.core.errors import BenchError
from bench.core.registry import Entry
from bench.data.splits import Split
from bench.tasks.images import Augment, ImageTask, MixupAlpha
from tests.data.augmentations import autoaugmented, crop, cutout, mixup

LEVELS: list[Augment] = list(get_args(Augment))


class Colour(ImageTask):
    """Colour images without data, their mean being no byte, so that no pixel normalises to 0."""

    num_outputs = 10
    input_shape = (3, 32, 32)
    mean: tuple[float, ...] = (0.491, 0.482, 0.447)
    std: tuple[float, ...] = (0.247, 0.243, 0.262)

    def __init__(self, *, augment: Augment = "basic", mixup: MixupAlpha = 0.0, unchecked: bool = False) -> None:
        super().__init__(augment=augment, mixup=mixup)
        self.unchecked = unchecked

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("the stand-in has no data")


class Grey(Colour):
    """Grey images without data."""

    input_shape = (1, 28, 28)
    mean = (0.286,)
    std = (0.353,)


def batch(task: ImageTask, count: int = 64) -> tuple[Tensor, Tensor]:
    channels, height, width = task.input_shape
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
    return inputs, torch.arange(count) % task.num_outputs


# ---- normalisation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [Colour(), Grey()], ids=["colour", "grey"])
@pytest.mark.parametrize("count", [1, 9])
def test_model_inputs_are_torchvisions_in_channels_last_memory(task: ImageTask, count: int) -> None:
    inputs, _ = batch(task, count)
    before = inputs.clone()
    result = task.model_inputs(inputs)
    torchvisions = transforms.Compose([transforms.ToTensor(), transforms.Normalize(task.mean, task.std)])
    expected = torch.stack([torchvisions(image.numpy()) for image in inputs])
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert task.memory_format == torch.channels_last
    assert torch.equal(inputs, before)


def test_every_byte_is_normalised_by_its_own_channel() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    inputs = torch.stack((values, values.flip(0), values // 2), dim=-1).view(1, 16, 16, 3)
    mean, std = (torch.tensor(numbers, dtype=torch.float64) for numbers in (Colour.mean, Colour.std))
    expected = ((inputs.double() / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(Colour().model_inputs(inputs).double(), expected, rtol=0, atol=1e-6)


def test_model_inputs_of_other_sizes_and_tasks_do_not_mix_in_the_cache() -> None:
    tall, wide = torch.full((1, 4, 2, 3), 255, dtype=torch.uint8), torch.full((1, 2, 4, 3), 255, dtype=torch.uint8)
    assert Colour().model_inputs(tall).shape == (1, 3, 4, 2)
    assert Colour().model_inputs(wide).shape == (1, 3, 2, 4)
    assert Grey().model_inputs(tall[..., :1])[0, 0, 0, 0].item() == pytest.approx((1 - 0.286) / 0.353)
    assert Colour().model_inputs(wide)[0, 0, 0, 0].item() == pytest.approx((1 - 0.491) / 0.247)


# ---- levels of augmentation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_these_steps_in_this_order(level: Augment, alpha: float) -> None:
    task, random = Colour(augment=level, mixup=alpha), RandomState(3)
    inputs, targets = batch(task)
    steps = inputs
    if level != "none":
        steps = crop(steps, random, 4, flip=True)
    if level == "autoaugment":
        steps = autoaugmented(steps, random)
    steps = task.model_inputs(steps).permute(0, 2, 3, 1)
    if level in ("cutout", "autoaugment"):
        steps = cutout(steps, random, 16)
    expected_targets = targets
    if alpha:
        steps, expected_targets = mixup(steps, targets, 10, alpha, random)

    result, result_targets = task.training_batch(inputs, targets, RandomState(3))
    assert torch.equal(result, steps.permute(0, 3, 1, 2))
    assert torch.equal(result_targets, expected_targets)


def test_levels_are_all_different_and_basic_is_the_default() -> None:
    inputs, targets = batch(Colour())
    results = {level: Colour(augment=level).training_batch(inputs, targets, RandomState(0))[0] for level in LEVELS}
    assert torch.equal(Colour().training_batch(inputs, targets, RandomState(0))[0], results["basic"])
    for one in LEVELS:
        assert [other for other in LEVELS if torch.equal(results[one], results[other])] == [one]


def test_without_augmentation_training_sees_what_evaluation_sees_and_nothing_is_drawn() -> None:
    task, random = Colour(augment="none"), RandomState(0)
    inputs, targets = batch(task)
    result, result_targets = task.training_batch(inputs, targets, random)
    assert torch.equal(result, task.model_inputs(inputs))
    assert torch.equal(result_targets, targets)
    assert random.randint(2**31) == RandomState(0).randint(2**31)


@pytest.mark.parametrize("level", ["cutout", "autoaugment"])
def test_what_cutout_takes_away_is_exactly_the_mean(level: Augment) -> None:
    task = Colour(augment=level)
    result, _ = task.training_batch(*batch(task), RandomState(0))
    gone = (result == 0).all(dim=1).sum(dim=(1, 2))
    assert gone.min() >= 8 * 8
    assert gone.max() <= 16 * 16


@pytest.mark.parametrize("task_class", [Colour, Grey])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("count", [1, 64])
def test_a_training_batch_has_the_promised_form_and_belongs_to_its_seed(
    task_class: type[Colour], level: Augment, alpha: float, count: int
) -> None:
    if (task_class, level) == (Grey, "autoaugment"):
        return
    task = task_class(augment=level, mixup=alpha)
    inputs, targets = batch(task, count)
    before = inputs.clone(), targets.clone()
    result, result_targets = task.training_batch(inputs, targets, RandomState(1))
    again, again_targets = task.training_batch(inputs, targets, RandomState(1))

    assert (result.shape, result.dtype) == ((count, *task.input_shape), torch.float32)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result_targets.shape == ((count, 10) if alpha else (count,))
    assert task.losses(torch.zeros(count, 10), result_targets).shape == (count,)
    assert torch.equal(result, again)
    assert torch.equal(result_targets, again_targets)
    assert torch.equal(inputs, before[0])
    assert torch.equal(targets, before[1])
    if count > 1 and (level, alpha) != ("none", 0.0):
        assert not torch.equal(result, task.training_batch(inputs, targets, RandomState(2))[0])


# ---- settings ------------------------------------------------------------------------------------------------


def test_the_policy_for_colour_images_is_refused_for_grey_ones() -> None:
    with pytest.raises(BenchError, match='augment = "autoaugment" needs images in colour; use "none", "basic"'):
        Grey(augment="autoaugment")


def test_settings_of_a_subclass_are_read_off_its_signature() -> None:
    assert Entry("images", ImageTask).schema().model_dump() == {"augment": "basic", "mixup": 0.0}
    schema = Entry("colour", Colour).schema
    assert schema().model_dump() == {"augment": "basic", "mixup": 0.0, "unchecked": False}
    schema.model_validate({"augment": "cutout", "mixup": 1, "unchecked": True})
    for wrong in ({"augment": "strong"}, {"mixup": -0.1}, {"mixup": "much"}):
        with pytest.raises(ValidationError):
            schema.model_validate(wrong)


# ---- devices -------------------------------------------------------------------------------------------------


class HostWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation inside that makes the host wait for a GPU's numbers."""

    TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    NAMED = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in ("aten::index", "aten::index_put", "aten::index_put_"):
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        else:
            waits = name in self.NAMED or any(tag in func.tags for tag in self.TAGS)
        if waits:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("level", LEVELS)
def test_no_augmentation_makes_the_host_wait(level: Augment, alpha: float) -> None:
    task = Colour(augment=level, mixup=alpha)
    inputs, targets = batch(task)
    task.training_batch(inputs, targets, RandomState(0))  # constants are computed once
    with HostWaits() as waits:
        task.training_batch(inputs, targets, RandomState(1))
    assert waits.seen == []


def test_waiting_would_be_noticed() -> None:
    x = torch.arange(6)
    mask = x > 2
    for wait in (
        lambda: x[0].item(),
        lambda: bool(x.sum() > 3),
        lambda: x[mask],
        lambda: x.clone().index_put_((mask,), torch.tensor(0)),
        lambda: mask.nonzero(),
        lambda: x.masked_select(mask),
        lambda: x.bincount(),
        lambda: torch.unique(x),
        lambda: F.one_hot(x),
    ):
        with HostWaits() as waits:
            wait()
        assert waits.seen
    with HostWaits() as waits:
        x[x.flip(0)] + x.index_select(0, x)
    assert waits.seen == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("level", LEVELS)
def test_a_gpu_makes_the_same_batch_without_the_host_waiting(level: Augment, alpha: float) -> None:
    task = Colour(augment=level, mixup=alpha)
    inputs, targets = batch(task)
    expected, expected_targets = task.training_batch(inputs, targets, RandomState(1))
    inputs, targets = inputs.cuda(), targets.cuda()
    task.training_batch(inputs, targets, RandomState(0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        result, result_targets = task.training_batch(inputs, targets, RandomState(1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.cpu(), expected)
    torch.testing.assert_close(result_targets.cpu(), expected_targets)
    if not alpha:
        assert torch.equal(result.cpu(), expected)
