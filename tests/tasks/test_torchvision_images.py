"""Data sets of torchvision in the layouts that it unpacks: read as torchvision reads them, checked, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat

from bench.core import registry
from bench.core.errors import BenchError, NotPrepared
from bench.data.torchvision_sets import SETS
from bench.tasks.torchvision_images import TorchvisionImages
from tests.conftest import write_eurosat, write_svhn

RANDOM = np.random.RandomState(0)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(RANDOM.randint(256, size=(height, width, 3)).astype(np.uint8))


def write_stl10(root: Path) -> None:
    """20 images to train on and 10 to test, without the unlabelled ones."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("test", 10)):
        RANDOM.randint(256, size=(count, 3, 96, 96)).astype(np.uint8).tofile(folder / f"{part}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{part}_y.bin")


def write_flowers(root: Path) -> None:
    """612 images of many sizes: of each of 102 classes two to train on, one to validate on, three to test."""
    folder = root / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for number in range(1, 613):
        noise(10 + number % 5, 12).save(folder / "jpg" / f"image_{number:05d}.jpg")
    numbers = np.arange(1, 613)
    savemat(folder / "imagelabels.mat", {"labels": (numbers - 1) % 102 + 1})
    savemat(folder / "setid.mat", {"trnid": numbers[:204], "valid": numbers[204:306], "tstid": numbers[306:]})


def write_food(root: Path) -> None:
    """Of each of 101 classes three images to train on and one to test."""
    folder = root / "food-101"
    (folder / "meta").mkdir(parents=True)
    names = [f"dish_{number:03}" for number in range(101)]
    for name in names:
        (folder / "images" / name).mkdir(parents=True)
        for number in range(4):
            noise(9, 8 + number).save(folder / "images" / name / f"{number}.jpg")
    for split, numbers in (("train", range(3)), ("test", range(3, 4))):
        listed = {name: [f"{name}/{number}" for number in numbers] for name in names}
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))


WRITERS: dict[str, Callable[[Path], None]] = {
    "svhn": lambda root: write_svhn(root, {"train": 40, "test": 20}, RANDOM),
    "eurosat": lambda root: write_eurosat(root, 5, RANDOM),
    "stl10": write_stl10,
    "flowers102": write_flowers,
    "food101": write_food,
}
SIZES = {"svhn": (40, 20), "eurosat": (40, 10), "stl10": (20, 10), "flowers102": (306, 306), "food101": (303, 101)}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    (tmp_path / "torchvision").mkdir()
    return tmp_path / "torchvision"


def task(member: str, **settings: Any) -> TorchvisionImages:
    made = registry.tasks[f"torchvision/{member}"].build(**{"allow_unverified_data": True, **settings})
    assert isinstance(made, TorchvisionImages)
    return made


@pytest.mark.parametrize("member", SETS)
def test_every_layout_is_read_at_a_size(root: Path, member: str) -> None:
    WRITERS[member](root)
    made = task(member, size=8)
    train, test = made.load()
    assert (len(train), len(test)) == SIZES[member]
    assert {split.inputs.shape[1:] for split in (train, test)} == {(8, 8, 3)}
    assert set(train.targets.tolist()) == set(range(made.num_outputs)) == set(test.targets.tolist())
    seen = made.model_inputs(train.inputs).double()
    assert seen.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert made.train_examples() == len(train)
    assert not made.verified()


def test_svhn_is_what_its_files_hold(root: Path) -> None:
    images = RANDOM.randint(256, size=(32, 32, 3, 20)).astype(np.uint8)
    labels = np.arange(1, 21)[:, None] % 10
    for part in ("train", "test"):
        savemat(root / f"{part}_32x32.mat", {"X": images, "y": np.where(labels, labels, 10)})  # the digit 0 is 10 there
    train, _ = task("svhn").load()
    assert np.array_equal(train.inputs.numpy(), images.transpose(3, 0, 1, 2))
    assert train.targets.tolist() == [n % 10 for n in range(1, 21)]


@pytest.mark.parametrize("member", ["stl10", "eurosat"])
def test_images_without_a_size_are_those_that_torchvision_reads(root: Path, member: str) -> None:
    WRITERS[member](root)
    train, test = task(member).load()
    if member == "stl10":
        assert train.inputs.shape == (20, 96, 96, 3)
        raw = np.fromfile(root / "stl10_binary" / "train_X.bin", np.uint8).reshape(20, 3, 96, 96)
        assert np.array_equal(train.inputs.numpy(), raw.transpose(0, 3, 2, 1)), "columns come first in the file"
        return
    theirs = torchvision.datasets.EuroSAT(root)
    expected = sorted((label, np.array(image).tobytes()) for image, label in theirs)
    both = torch.cat([train.inputs, test.inputs]), torch.cat([train.targets, test.targets])
    assert sorted((int(label), image.numpy().tobytes()) for image, label in zip(*both, strict=True)) == expected


def test_flowers_train_on_the_official_validation_images_too(root: Path) -> None:
    write_flowers(root)
    train, test = task("flowers102", size=8).load()
    assert torch.bincount(train.targets).tolist() == [3] * 102
    assert torch.bincount(test.targets).tolist() == [3] * 102


def test_eurosat_has_the_same_test_set_every_time(root: Path) -> None:
    write_eurosat(root, 10, RANDOM)
    tests = [task("eurosat", test=0.3).load()[1] for _ in range(2)]
    assert torch.equal(tests[0].inputs, tests[1].inputs)
    assert torch.bincount(tests[0].targets).tolist() == [3] * 10


def test_scores_weights_and_shares(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_svhn(root, {"train": 40, "test": 20}, RANDOM)
    made = task("svhn", metric="macro_f1", class_weights="balanced", augment="autoaugment")
    assert "every class weighing the same" in made.loss_name, "known before any data are read"
    train, _ = made.load()
    made.fetch()
    assert 'SVHN: training: 40 examples, 4 of "0" (10.0 %)' in " ".join(capsys.readouterr().err.split())
    assert made.losses(torch.zeros(40, 10), train.targets).tolist() == pytest.approx([np.log(10)] * 40)
    assert made.training_batch(train.inputs, train.targets, np.random.RandomState(0))[0].shape == (40, 3, 32, 32)


# ---- the official data -------------------------------------------------------------------------------------------


def test_checksums_are_those_of_torchvision() -> None:
    there = torchvision.datasets
    stl10 = [*there.STL10.train_list[:2], *there.STL10.test_list]
    assert {
        "svhn": {file: md5 for split in ("train", "test") for _, file, md5 in [there.SVHN.split_list[split]]},
        "stl10": {f"stl10_binary/{file}": md5 for file, md5 in stl10},
        "flowers102": {f"flowers-102/{file}": md5 for file, md5 in there.Flowers102._file_dict.values()},
        "food101": {"food-101.tar.gz": there.Food101._MD5},
    } == {name: one.files for name, one in SETS.items() if name != "eurosat"}
    (md5,) = SETS["eurosat"].files.values()
    assert md5 in there.EuroSAT.download.__code__.co_consts


@pytest.mark.parametrize("member", SETS)
def test_other_data_are_refused_unless_they_are_allowed(root: Path, member: str) -> None:
    WRITERS[member](root)
    made = task(member, size=8, allow_unverified_data=False)
    with pytest.raises(BenchError) as said:
        made.load()
    text = str(said.value)
    assert text.startswith(f"{root} does not hold the official {made.title}:\n")
    assert f'task = {{name = "torchvision/{member}", allow_unverified_data = true}}' in text
    one = SETS[member]
    if one.folder:
        assert f"the official one {one.images:,}" in text
        assert "by whose checksum its images are known, is not there" in text
    else:
        assert text.count(": md5 is ") == len(one.files)


@pytest.mark.parametrize("member", SETS)
def test_data_that_are_not_here_say_what_to_do(root: Path, member: str) -> None:
    made = task(member, size=8)
    with pytest.raises(NotPrepared) as said:
        made.load()
    text = str(said.value)
    assert "`bench prepare` downloads it" in text
    assert f"torchvision.datasets.{SETS[member].reader} downloads" in text
    assert str(root / SETS[member].folder) in text
    if SETS[member].test:
        assert made.train_examples() == SETS[member].examples, "plans need no data"


@pytest.mark.parametrize("member", ["svhn", "food101"])
def test_a_fetch_has_torchvision_download_and_a_failure_is_told(
    root: Path, member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        asked.append(type(self).__name__)
        raise OSError("no route to host\nat all")

    reader = getattr(torchvision.datasets, SETS[member].reader)
    monkeypatch.setattr(reader, "download" if member == "svhn" else "_download", refuse)
    with pytest.raises(NotPrepared, match=r"could not be downloaded \(no route to host\)\."):
        task(member, size=8).fetch()
    assert asked == [SETS[member].reader]

    def bring(self: Any, *_: Any, **__: Any) -> None:
        if not SETS[member].is_there():
            WRITERS[member](Path(self.root))

    monkeypatch.setattr(reader, "download" if member == "svhn" else "_download", bring)
    if member == "svhn":
        monkeypatch.setattr(reader, "_check_integrity", lambda self: True)
    made = task(member, size=8)
    made.fetch()
    assert len(made.load()[0]) == SIZES[member][0]


def test_data_in_the_data_folder_itself_are_found(root: Path) -> None:
    write_svhn(root.parent, {"train": 40, "test": 20}, RANDOM)
    assert len(task("svhn").load()[0]) == 40


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "settings", "message"),
    [
        ("food101", {}, r"its images have many sizes; set one for all: task\.size = 64"),
        ("svhn", {"test": 0.3}, r"torchvision/svhn has a test set of its own; leave task\.test out"),
        ("svhn", {"metric": "r2"}, '"r2" is no score of classes'),
    ],
)
def test_settings_that_do_not_fit(member: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        task(member, **settings)


def test_names_that_are_none_offer_the_nearest() -> None:
    with pytest.raises(BenchError, match=r'unknown task "torchvision/svnh"; did you mean "torchvision/svhn"'):
        registry.tasks["torchvision/svnh"]


def test_damaged_files_are_named(root: Path) -> None:
    for part in ("train", "test"):
        (root / f"{part}_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(BenchError, match=f"SVHN in {root} cannot be read"):
        task("svhn").load()
    write_eurosat(root, 5, RANDOM)
    broken = sorted((root / "eurosat").rglob("*.jpg"))[3]
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(BenchError, match=rf"{broken.name} cannot be read as an image"):
        task("eurosat").fetch()
