"""CIFAR's files: read pixel for pixel, whichever Python wrote them; damaged ones told, and none of them ever run."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.registry import tasks
from bench.core.spec import DataSettings
from bench.data.datasets import Dataset
from bench.tasks.base import prepare_data
from bench.tasks.cifar import _CIFAR, CIFAR10, CIFAR100, _ArraysOnly, _read_batch
from bench.tasks.images import Augment

LEVELS: tuple[Augment, ...] = ("none", "basic", "cutout", "autoaugment")
TINY_TRAINING_SETS = {CIFAR10: 100, CIFAR100: 200}
both = pytest.mark.parametrize("make", [CIFAR10, CIFAR100])


def unpickled(path: Path) -> dict[str, Any]:
    """The file as Python reads it, as torchvision does too."""
    batch: dict[str, Any] = pickle.loads(path.read_bytes(), encoding="latin1")
    return batch


def expected(paths: list[Path], labels: str) -> tuple[np.ndarray[Any, Any], list[int]]:
    """(N, H, W, C) images and labels."""
    batches = [unpickled(path) for path in paths]
    images = np.vstack([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, [label for batch in batches for label in batch[labels]]


def hashes(images: Tensor) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in images.numpy()}


# ---- tiny files ----------------------------------------------------------------------------------------------


@both
def test_images_and_labels_are_those_of_the_files_in_their_order(data_folder: Path, make: type[_CIFAR]) -> None:
    splits = make(allow_unverified_data=True).load()
    *train, test, _ = make.dataset.paths()
    for split, files in zip(splits, (train, [test]), strict=True):
        images, labels = expected(files, make.labels)
        assert (split.inputs.dtype, split.targets.dtype) == (torch.uint8, torch.int64)
        assert split.inputs.is_contiguous()
        assert np.array_equal(split.inputs.numpy(), images)
        assert split.targets.tolist() == labels


def test_a_pixel_is_red_green_blue_at_its_row_and_column(data_folder: Path) -> None:
    train, _ = CIFAR10(allow_unverified_data=True).load()
    row = unpickled(data_folder / "cifar-10-batches-py" / "data_batch_2")["data"][3]
    assert train.inputs[23, 5, 7].tolist() == [row[5 * 32 + 7], row[1024 + 5 * 32 + 7], row[2048 + 5 * 32 + 7]]


@both
def test_the_data_folder_may_be_the_files_own(
    data_folder: Path, make: type[_CIFAR], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = make(allow_unverified_data=True).load()
    monkeypatch.setenv("BENCH_DATA", str(data_folder / make.dataset.folder))
    again, _ = make(allow_unverified_data=True).load()
    assert torch.equal(train.inputs, again.inputs)


@both
def test_runs_of_one_process_share_what_was_read(data_folder: Path, make: type[_CIFAR]) -> None:
    first, again = (make(augment=augment, allow_unverified_data=True).load() for augment in ("none", "basic"))
    assert first[0].inputs is again[0].inputs


@both
def test_files_that_are_not_the_real_ones_need_the_setting(data_folder: Path, make: type[_CIFAR]) -> None:
    assert not make().verified()
    assert not make(allow_unverified_data=True).verified()
    make(allow_unverified_data=True).fetch()
    for refuse in (make().load, make().fetch, make().train_examples):
        with pytest.raises(
            BenchError, match=rf"not the official {make.dataset.title}:(\n|.)*allow_unverified_data = true"
        ):
            refuse()


@both
def test_the_size_of_the_training_set_is_that_of_the_files_or_of_those_that_will_come(
    data_folder: Path, make: type[_CIFAR], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make(allow_unverified_data=True).train_examples() == TINY_TRAINING_SETS[make]
    monkeypatch.setenv("BENCH_DATA", str(data_folder / "empty"))
    assert make().train_examples() == 50_000


@both
def test_without_files_loading_names_the_command_that_gets_them(
    make: type[_CIFAR], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with pytest.raises(BenchError, match=f"^{make.dataset.title} is not in {tmp_path}: `bench prepare` downloads it"):
        make().load()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_settings_are_what_an_experiment_file_may_say(name: str) -> None:
    schema = tasks[name].schema
    defaults = {"augment": "basic", "mixup": 0.0, "allow_unverified_data": False}
    assert schema().model_dump() == defaults
    for wrong in ({"augment": "flip"}, {"mixup": -1.0}, {"allow_unverified_data": "yes"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            schema.model_validate(wrong)


@both
def test_the_settings_decide_what_is_trained_on(data_folder: Path, make: type[_CIFAR]) -> None:
    train, _ = make(allow_unverified_data=True).load()
    batch = train.inputs[:20], train.targets[:20]
    plain, labels = make(augment="none").training_batch(*batch, np.random.RandomState(0))
    assert torch.equal(plain, make().model_inputs(batch[0]))
    assert torch.equal(labels, batch[1])
    seen = [make(augment=augment).training_batch(*batch, np.random.RandomState(0))[0] for augment in LEVELS]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(seen, 2))
    _, mixed = make(augment="none", mixup=1.0).training_batch(*batch, np.random.RandomState(0))
    assert mixed.shape == (20, make.num_outputs)


# ---- files that Python 3 wrote, damaged files, and files that want to run --------------------------------------


def spoil(folder: Path, raw: bytes) -> Path:
    path = folder / "cifar-100-python" / "train"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_files_that_python_3_wrote_are_read_too(data_folder: Path, protocol: int) -> None:
    before, _ = CIFAR100(allow_unverified_data=True).load()
    path = data_folder / "cifar-100-python" / "train"
    spoil(data_folder, pickle.dumps(unpickled(path), protocol))
    after, _ = CIFAR100(allow_unverified_data=True).load()
    assert after.inputs is not before.inputs
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.targets, after.targets)


@pytest.mark.parametrize("name", ["multiarray._reconstruct", "numeric._frombuffer"])
def test_numpy_1_and_2_have_different_names_for_the_same(name: str) -> None:
    module, function = name.split(".")
    reader = _ArraysOnly(io.BytesIO())
    old, new = (reader.find_class(f"numpy.{core}.{module}", function) for core in ("core", "_core"))
    assert old is new


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_array_in_fortran_order_is_read_in_it(protocol: int, tmp_path: Path) -> None:
    rows = np.random.RandomState(0).randint(256, size=(2, 3072)).astype(np.uint8)
    (tmp_path / "train").write_bytes(pickle.dumps(batch(data=np.asfortranarray(rows)), protocol))
    images, _ = _read_batch(tmp_path / "train", "fine_labels", 100)
    assert np.array_equal(images, rows)


def batch(**changes: Any) -> dict[str, Any]:
    """Two good images, with changes."""
    return {"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 99]} | changes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "it holds no dictionary"),
        ({}, "its data are not rows of 3072 bytes"),
        (batch(data=np.zeros((2, 3071), np.uint8)), "its data are not rows of 3072 bytes"),
        (batch(data=np.zeros((2, 3, 32, 32), np.uint8)), "its data are not rows of 3072 bytes"),
        (batch(data=np.zeros((2, 3072))), "UnpicklingError: it holds an array of 'f8', where images are of 'u1'"),
        (batch(data=np.array([None])), "UnpicklingError: it holds an array of 'O8'"),
        (batch(data=[[0] * 3072] * 2), "its data are not rows of 3072 bytes"),
        (batch(fine_labels=[0, 100]), "its fine_labels are not a list of numbers from 0 to 99"),
        (batch(fine_labels=[0, -1]), "its fine_labels are not"),
        (batch(fine_labels=[0, 1.0]), "its fine_labels are not"),
        (batch(fine_labels=[0, True]), "its fine_labels are not"),
        (batch(fine_labels=[[0], [1]]), "its fine_labels are not"),
        (batch(fine_labels=None), "its fine_labels are not"),
        (batch(fine_labels=[0]), "it has 2 images and 1 fine_labels"),
        (batch(data=np.zeros((0, 3072), np.uint8), fine_labels=[]), "it has 0 images and 0 fine_labels"),
    ],
)
def test_a_file_of_something_else_is_told(data_folder: Path, value: Any, message: str) -> None:
    path = spoil(data_folder, pickle.dumps(value))
    with pytest.raises(BenchError, match=f"^{path} is damaged: {message}.*; move .*, and `bench prepare` downloads"):
        CIFAR100(allow_unverified_data=True).load()


def test_a_good_batch_is_read(tmp_path: Path) -> None:
    """Else the test before this one would prove nothing."""
    path = tmp_path / "train"
    path.write_bytes(pickle.dumps(batch()))
    images, labels = _read_batch(path, "fine_labels", 100)
    assert (images.shape, labels.tolist()) == ((2, 3072), [0, 99])


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_file_that_was_cut_or_garbled_is_told_whatever_the_unpickler_says(tmp_path: Path, protocol: int) -> None:
    whole = pickle.dumps(batch(), protocol)
    path = tmp_path / "train"
    for stop in (0, 1, 2, 10, 60, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:stop])
        with pytest.raises(BenchError, match=f"^{path} is damaged: "):
            _read_batch(path, "fine_labels", 100)
    for spot in range(250):
        for byte in b".Rt\xff":
            path.write_bytes(whole[:spot] + bytes([byte]) + whole[spot + 1 :])
            with contextlib.suppress(BenchError):  # or it can be read all the same; nothing else is ever raised
                _read_batch(path, "fine_labels", 100)


class _Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("function", [os.mkdir, eval, exec, subprocess.check_call])
def test_a_file_that_wants_to_run_something_is_refused_and_nothing_runs(
    data_folder: Path, tmp_path: Path, protocol: int, function: Callable[..., Any]
) -> None:
    trace = tmp_path / "trace"
    code = f"__import__('os').mkdir({str(trace)!r})"
    call = _Calls(function, {os.mkdir: str(trace), subprocess.check_call: ["mkdir", str(trace)]}.get(function, code))
    pickle.loads(pickle.dumps(call, protocol))
    assert trace.exists(), "it does run where it can"
    trace.rmdir()
    path = spoil(data_folder, pickle.dumps(batch(more=call), protocol))
    with pytest.raises(
        BenchError, match=f"^{path} is damaged: UnpicklingError: it asks for .*, which is not part of a f"
    ):
        CIFAR100(allow_unverified_data=True).load()
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["numpy\nndarray.tofile", "numpy\nload", "numpy.core.multiarray\n_reconstruct.__self__"]
)
def test_nothing_is_reached_through_what_is_allowed(name: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it asks for numpy"):
        _ArraysOnly(io.BytesIO(b"\x80\x04c" + name.encode() + b"\n.")).load()


def test_a_file_does_not_decide_about_numpy_s_flags(tmp_path: Path) -> None:
    """Plain unpickling of this one fails within numpy (2.4: "internal error", while arrays are freed)."""
    raw = pickle.dumps(batch(), 2)
    changed = raw.replace(b"K\x00t", b"K\x3ft", 1)  # the last number of that state: flags, one of them for "objects"
    assert changed != raw
    (tmp_path / "train").write_bytes(changed)
    images, _ = _read_batch(tmp_path / "train", "fine_labels", 100)
    assert (images.dtype, images.dtype.flags) == (np.uint8, 0)


# ---- the real files ------------------------------------------------------------------------------------------


@both
def test_means_and_deviations_are_those_of_the_training_images(
    make: type[_CIFAR], real_data: Callable[[Dataset], None]
) -> None:
    real_data(make.dataset)
    train, _ = make(allow_unverified_data=True).load()
    values = torch.arange(256).double() / 255
    for channel, (mean, std) in enumerate(zip(make.mean, make.std, strict=True)):
        shares = torch.bincount(train.inputs[..., channel].flatten(), minlength=256).double() / (50_000 * 32 * 32)
        measured = (shares * values).sum()
        deviation = (shares * (values - measured) ** 2).sum().sqrt()
        assert (measured.item(), deviation.item()) == pytest.approx((mean, std), abs=6e-9)


@both
def test_the_real_data_is_50000_and_10000_images_as_many_of_each_class(
    make: type[_CIFAR], real_data: Callable[[Dataset], None]
) -> None:
    real_data(make.dataset)
    task = make(allow_unverified_data=True)
    train, test = task.load()
    assert train.inputs.shape == (50_000, 32, 32, 3)
    assert test.inputs.shape == (10_000, 32, 32, 3)
    assert torch.bincount(train.targets).tolist() == [50_000 // task.num_outputs] * task.num_outputs
    assert torch.bincount(test.targets).tolist() == [10_000 // task.num_outputs] * task.num_outputs


def test_the_first_image_of_cifar_10_is_the_frog(real_data: Callable[[Dataset], None]) -> None:
    real_data(CIFAR10.dataset)
    train, test = CIFAR10(allow_unverified_data=True).load()
    assert (train.targets[0].item(), train.inputs[0, 0, 0].tolist()) == (6, [59, 62, 63])
    images, labels = expected([CIFAR10.dataset.paths()[5]], "labels")
    assert np.array_equal(test.inputs.numpy(), images)
    assert test.targets.tolist() == labels


def test_cifar_100_is_what_torchvision_reads(real_data: Callable[[Dataset], None]) -> None:
    real_data(CIFAR100.dataset)
    from torchvision import datasets

    task = CIFAR100()
    assert task.verified()
    for split, train in zip(task.load(), (True, False), strict=True):
        theirs = datasets.CIFAR100(task.dataset.paths()[0].parents[1], train=train, download=False)
        assert np.array_equal(split.inputs.numpy(), theirs.data)
        assert split.targets.tolist() == theirs.targets


def test_official_files_are_counted_without_reading_them(
    real_data: Callable[[Dataset], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_data(CIFAR100.dataset)
    monkeypatch.setattr(CIFAR100, "read", None)
    assert CIFAR100().train_examples() == 50_000


@pytest.mark.parametrize(("make", "shared"), [(CIFAR10, 0), (CIFAR100, 10)])
def test_training_validation_and_test_images_are_apart(
    make: type[_CIFAR], shared: int, real_data: Callable[[Dataset], None]
) -> None:
    """But for ten images of CIFAR-100 that are in both of its author's files, and 14 that are in one of them twice."""
    real_data(make.dataset)
    task = make(allow_unverified_data=True)
    full, _ = task.load()
    data = prepare_data(task, DataSettings(validation=0.1), seed=0)
    train, val, test = (hashes(split.inputs) for split in (data.train, data.val, data.test))
    assert len((train | val) & test) == shared
    assert train | val == hashes(full.inputs)
    twice = len(full) - len(train | val)
    assert len(train & val) <= twice == (0 if make is CIFAR10 else 14)
