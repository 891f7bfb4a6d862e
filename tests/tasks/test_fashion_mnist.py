"""Fashion-MNIST's files: read pixel for pixel, gzipped or not; damaged ones told."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.core.registry import tasks
from bench.core.spec import DataSettings
from bench.data.datasets import Dataset
from bench.tasks.base import prepare_data
from bench.tasks.fashion_mnist import FashionMNIST

LEVELS: tuple[Literal["none", "basic", "cutout"], ...] = ("none", "basic", "cutout")
NAMES = list(FashionMNIST.dataset.files)


@pytest.fixture
def raw(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tiny files; what is installed on this machine is not seen."""
    here = tuple(place for place in FashionMNIST.dataset.elsewhere if not place.startswith("/"))
    monkeypatch.setattr(FashionMNIST, "dataset", replace(FashionMNIST.dataset, elsewhere=here))
    return data_folder / "FashionMNIST" / "raw"


def unpacked(path: Path) -> bytes:
    return gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())


# ---- tiny files ----------------------------------------------------------------------------------------------


def test_images_and_labels_are_those_of_the_files(raw: Path) -> None:
    splits = FashionMNIST(allow_unverified_data=True).load()
    for split, name, count in zip(splits, ("train", "t10k"), (60, 20), strict=True):
        pixels = np.frombuffer(unpacked(raw / f"{name}-images-idx3-ubyte")[16:], np.uint8)
        labels = unpacked(raw / f"{name}-labels-idx1-ubyte")[8:]
        assert (split.inputs.dtype, split.targets.dtype) == (torch.uint8, torch.int64)
        assert split.inputs.is_contiguous()
        assert np.array_equal(split.inputs.numpy(), pixels.reshape(count, 28, 28, 1))
        assert split.targets.tolist() == list(labels)


@pytest.mark.parametrize("place", ["FashionMNIST/raw", ".", "fashion-mnist"])
@pytest.mark.parametrize("gzipped", [True, False])
def test_files_are_found_where_others_have_them(raw: Path, data_folder: Path, place: str, gzipped: bool) -> None:
    before, _ = FashionMNIST(allow_unverified_data=True).load()
    (data_folder / place).mkdir(exist_ok=True)
    for name in NAMES:
        packed = (raw / f"{name}.gz").rename(data_folder / place / f"{name}.gz")
        if not gzipped:
            packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
    after, _ = FashionMNIST(allow_unverified_data=True).load()
    assert torch.equal(before.inputs, after.inputs)
    assert torch.equal(before.targets, after.targets)


def test_debian_s_package_is_looked_for_last() -> None:
    assert FashionMNIST.dataset.elsewhere[-1] == "/usr/share/datasets/fashion-mnist"


def test_files_that_are_not_the_real_ones_need_the_setting(raw: Path) -> None:
    assert not FashionMNIST().verified()
    FashionMNIST(allow_unverified_data=True).fetch()
    for refuse in (FashionMNIST().load, FashionMNIST().fetch, FashionMNIST().train_examples):
        with pytest.raises(BenchError, match=r"not the official Fashion-MNIST:(\n|.)*allow_unverified_data = true"):
            refuse()


def test_the_size_of_the_training_set_is_that_of_the_files_or_of_those_that_will_come(raw: Path) -> None:
    assert FashionMNIST(allow_unverified_data=True).train_examples() == 60
    (raw / f"{NAMES[0]}.gz").unlink()
    assert FashionMNIST().train_examples() == 60_000


def test_missing_files_are_named(raw: Path) -> None:
    (raw / f"{NAMES[1]}.gz").unlink()
    with pytest.raises(
        BenchError, match=f"^Fashion-MNIST is in {raw} without {NAMES[1]}: `bench prepare` downloads it"
    ):
        FashionMNIST().load()


def test_the_settings_are_what_an_experiment_file_may_say() -> None:
    schema = tasks["fashion_mnist"].schema
    assert schema().model_dump() == {"augment": "basic", "mixup": 0.0, "allow_unverified_data": False}
    for augment in ("none", "basic", "cutout"):
        schema.model_validate({"augment": augment})
    with pytest.raises(ValueError, match="augment"):
        schema.model_validate({"augment": "autoaugment"})


def test_the_settings_decide_what_is_trained_on(raw: Path) -> None:
    train, _ = FashionMNIST(allow_unverified_data=True).load()
    batch = train.inputs[:20], train.targets[:20]
    plain, moved, cut = (
        FashionMNIST(augment=augment).training_batch(*batch, np.random.RandomState(0))[0] for augment in LEVELS
    )
    assert torch.equal(plain, FashionMNIST().model_inputs(batch[0]))
    assert not torch.equal(moved, plain)
    assert not torch.equal(cut, moved)
    _, mixed = FashionMNIST(mixup=1.0).training_batch(*batch, np.random.RandomState(0))
    assert mixed.shape == (20, 10)


# ---- damaged files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (NAMES[0], lambda raw: b"", "it does not begin as an IDX file of bytes with 3 axes does"),
        (NAMES[0], lambda raw: raw[:9], "it has 9 bytes, where its header says"),
        (NAMES[0], lambda raw: raw[:-1], "it has 47055 bytes, where its header says 47056"),
        (NAMES[0], lambda raw: raw + b"\0", "it has 47057 bytes, where its header says 47056"),
        (
            NAMES[0],
            lambda raw: raw[:2] + b"\x0d" + raw[3:],
            "it does not begin as an IDX file of bytes with 3 axes does",
        ),
        (
            NAMES[0],
            lambda raw: raw[:8] + raw[12:16] + b"\0\0\0\x07" + raw[16 : 16 + 60 * 28 * 7],
            "its images are not of 28x28",
        ),
        (NAMES[1], lambda raw: raw[:3] + b"\3" + raw[4:], "it does not begin as an IDX file of bytes with 1 axes does"),
        (NAMES[1], lambda raw: raw[:7] + b"\x3b" + raw[8:-1], "it has 59 labels for 60 images"),
        (NAMES[1], lambda raw: raw[:-1] + b"\x0a", "it has the label 10; the last one is 9"),
    ],
)
def test_a_damaged_file_is_told(raw: Path, name: str, change: Callable[[bytes], bytes], message: str) -> None:
    (raw / name).write_bytes(change(unpacked(raw / name)))
    with pytest.raises(BenchError, match=f"^{raw / name} is damaged: {message}.*; move it away, and `bench prepare`"):
        FashionMNIST(allow_unverified_data=True).load()


def test_files_without_an_image_are_told(raw: Path) -> None:
    (raw / NAMES[0]).write_bytes(unpacked(raw / NAMES[0])[:4] + b"\0\0\0\0" + unpacked(raw / NAMES[0])[8:16])
    (raw / NAMES[1]).write_bytes(unpacked(raw / NAMES[1])[:4] + b"\0\0\0\0")
    with pytest.raises(BenchError, match="it has 0 labels for 0 images"):
        FashionMNIST(allow_unverified_data=True).load()


# ---- the real files ------------------------------------------------------------------------------------------


def test_the_real_data_is_verified_and_as_described(real_data: Callable[[Dataset], None]) -> None:
    real_data(FashionMNIST.dataset)
    task = FashionMNIST()
    assert task.verified()
    train, test = task.load()
    assert train.inputs.shape == (60_000, 28, 28, 1)
    assert test.inputs.shape == (10_000, 28, 28, 1)
    assert torch.bincount(train.targets).tolist() == [6000] * 10
    assert torch.bincount(test.targets).tolist() == [1000] * 10
    pixels = train.inputs.double() / 255
    assert (pixels.mean().item(),) == pytest.approx(task.mean, abs=6e-9)
    assert (pixels.std(correction=0).item(),) == pytest.approx(task.std, abs=6e-9)


def test_the_real_data_is_what_torchvision_reads(real_data: Callable[[Dataset], None], tmp_path: Path) -> None:
    real_data(FashionMNIST.dataset)
    from torchvision import datasets

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for path, name in zip(FashionMNIST.dataset.paths(), NAMES, strict=True):
        content = path.read_bytes()
        (raw / name).write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
    for split, train in zip(FashionMNIST().load(), (True, False), strict=True):
        theirs = datasets.FashionMNIST(tmp_path, train=train, download=False)
        assert torch.equal(split.inputs[..., 0], theirs.data)
        assert torch.equal(split.targets, theirs.targets)


def test_training_validation_and_test_images_are_apart(real_data: Callable[[Dataset], None]) -> None:
    real_data(FashionMNIST.dataset)
    data = prepare_data(FashionMNIST(), DataSettings(validation=0.1), seed=0)
    images = [image.tobytes() for split in (data.train, data.val, data.test) for image in split.inputs.numpy()]
    assert len({hashlib.sha256(image).digest() for image in images}) == 70_000
