"""Images of a user's own: which class and which set they are in, what is made of them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.core.errors import BenchError
from bench.core.spec import DataSettings
from bench.tasks.base import prepare_data
from bench.tasks.image_folder import ImageFolder


@pytest.fixture
def folder(data_folder: Path) -> Path:
    """cat/, dog/ and owl/, 20 images of 12x12 each."""
    return data_folder / "images"


def task(folder: Path, **settings: Any) -> ImageFolder:
    return ImageFolder(path=str(folder), **settings)


def test_classes_are_the_folders_by_name_and_pixels_those_of_the_files(folder: Path) -> None:
    images = task(folder)
    train, test = images.load()
    assert images.class_names == ["cat", "dog", "owl"]
    assert (images.num_outputs, images.input_shape, images.train_examples()) == (3, (3, 12, 12), 48)
    assert (len(train), len(test)) == (48, 12)
    assert test.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for split, items in ((train, images.train), (test, images.test)):
        for pixels, target, (path, number) in zip(split.inputs, split.targets, items, strict=True):
            assert target == number == images.class_names.index(path.parent.name)
            assert np.array_equal(pixels.numpy(), np.array(Image.open(path)))


def test_the_test_set_is_the_same_wherever_the_folder_is(folder: Path) -> None:
    before = [path.relative_to(folder) for path, _ in task(folder).test]
    moved = folder.rename(folder.with_name("elsewhere"))
    assert [path.relative_to(moved) for path, _ in task(moved).test] == before


def test_a_share_of_each_class_is_held_out_and_never_all_of_it(folder: Path) -> None:
    for path in sorted((folder / "owl").iterdir())[3:]:
        path.unlink()
    for share, counts in ((0.01, [1, 1, 1]), (0.5, [10, 10, 1]), (0.99, [18, 18, 1])):
        targets = task(folder, test=share).load()[1].targets
        assert torch.bincount(targets).tolist() == counts


def test_train_and_test_folders_are_taken_as_they_are(folder: Path) -> None:
    for part, names in (("train", ("cat", "dog")), ("test", ("cat", "dog"))):
        (folder / part).mkdir()
        for name in names:
            source = folder / ("owl" if part == "test" else name)
            (folder / part / name).mkdir()
            for path in sorted(source.iterdir())[:4]:
                (folder / part / name / path.name).write_bytes(path.read_bytes())
    for name in ("cat", "dog", "owl"):
        (folder / name).rename(folder.with_name(name))
    images = task(folder)
    assert {path.parts[-3] for path, _ in images.train} == {"train"}
    assert {path.parts[-3] for path, _ in images.test} == {"test"}
    assert [len(split) for split in images.load()] == [8, 8]


def test_mean_and_deviation_are_those_of_the_training_images(folder: Path) -> None:
    images = task(folder)
    train, _ = images.load()
    seen = images.model_inputs(train.inputs).double()
    assert seen.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert seen.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_images_are_brought_to_a_size_and_to_grey(folder: Path) -> None:
    Image.new("RGBA", (40, 20), (255, 0, 0, 128)).save(folder / "cat" / "wide.png")
    images = task(folder, size=8, channels=1)
    train, test = images.load()
    assert images.input_shape == (1, 8, 8)
    assert {split.inputs.shape[1:] for split in (train, test)} == {(8, 8, 1)}
    place = [path.name for path, _ in images.train].index("wide.png")
    assert train.inputs[place].unique().tolist() == [76]  # red as grey: 0.299 of 255


DEPTHS: dict[str, tuple[str, Any, float]] = {  # ending, type and largest number
    "16-bit PNG": ("png", "<u2", 65535),
    "12 of 16 bits": ("png", "<u2", 4095),
    "16-bit TIFF, big-endian": ("tif", ">u2", 65535),
    "16-bit PGM": ("pgm", "<u2", 65535),
    "32-bit TIFF": ("tif", "<i4", 10**6),
    "floating numbers": ("tif", "<f4", 1.0),
    "floating numbers from -3": ("tif", "<f4", -3.0),
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_more_than_8_bits_keep_their_contrast(tmp_path: Path, depth: str, channels: int) -> None:
    """Pillow's own conversion makes them white or black."""
    ending, dtype, largest = DEPTHS[depth]
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    for name, brightest in (("dark", 0.5), ("light", 1.0)):
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.fromarray((ramp * brightest * largest).astype(dtype)).save(tmp_path / name / f"{number}.{ending}")
    images = task(tmp_path, channels=channels)
    train, _ = images.load()
    expected = {0: np.rint(127.5 * ramp), 1: np.rint(255 * ramp)}
    for pixels, target in zip(train.inputs.numpy(), train.targets.tolist(), strict=True):
        seen = 255 - pixels if largest < 0 else pixels
        assert pixels.shape == (8, 8, channels)
        assert np.abs(seen.astype(int) - expected[target][..., None]).max() <= 1
    assert task(tmp_path, channels=channels, size=4).load()[0].inputs.float().std() > 30


def test_the_scale_of_deep_images_is_that_of_the_training_images(tmp_path: Path) -> None:
    for part, brightest in (("train", 1000), ("test", 3000)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(3):
                pixels = np.array([[0, 500, 750, brightest]] * 4, np.uint16)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    train, test = task(tmp_path, channels=1).load()
    assert train.inputs[0, 0, :, 0].tolist() == [0, 128, 191, 255]
    assert test.inputs[0, 0, :, 0].tolist() == [0, 128, 191, 255], "and what lies beyond is clipped"


def drawn(root: Path, save: Callable[[NDArray[np.uint8], Path], None]) -> ImageFolder:
    """Images of a square somewhere on nothing, each saved from a mask of 0 and 255."""
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for number in range(4):
            mask = np.zeros((8, 8), np.uint8)
            mask[number : number + 4, :4] = 255
            save(mask, root / name / f"{number}.png")
    return task(root)


def black(mask: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(np.dstack([0 * mask, 0 * mask, 0 * mask, mask])).save(path)


def white(mask: NDArray[np.uint8], path: Path) -> None:
    Image.fromarray(np.dstack([0 * mask + 255, mask])).save(path)


def palette(mask: NDArray[np.uint8], path: Path) -> None:
    image = Image.fromarray(mask // 255).convert("P")
    image.putpalette([0, 0, 0] * 256)
    image.save(path, transparency=0)


@pytest.mark.parametrize(("save", "colour"), [(black, 0), (white, 255), (palette, 0)])
def test_shapes_on_a_transparent_ground_are_seen(
    tmp_path: Path, save: Callable[[NDArray[np.uint8], Path], None], colour: int
) -> None:
    """Without its alpha channel every one of these images is of a single colour."""
    images = drawn(tmp_path, save)
    train, _ = images.load()
    for pixels, (path, _) in zip(train.inputs, images.train, strict=True):
        number = int(path.stem)
        assert set(pixels[number : number + 4, :4].unique().tolist()) == {colour}
        assert set(pixels[:, 4:].unique().tolist()) == {128}


@pytest.mark.parametrize("largest", [255, 4095, 65535])
def test_16_bits_per_colour_of_which_few_are_used_are_told(tmp_path: Path, largest: int) -> None:
    """Pillow keeps the upper 8 bits, of a camera's 12 these are 4."""

    def save(mask: NDArray[np.uint8], path: Path) -> None:
        numbers = np.repeat(mask[..., None] / 255 * largest, 3, axis=2).astype(">u2")
        path.with_suffix(".ppm").write_bytes(b"P6 8 8 65535\n" + numbers.tobytes())

    images = drawn(tmp_path, save)
    if largest == 65535:
        assert images.load()[0].inputs.max() == 255
    else:
        with pytest.raises(BenchError, match=r"0\.ppm has 16 bits per colour, of which only the upper 8 can be read"):
            images.load()


def test_a_photograph_taken_upright_is_upright(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for name in ("cat", "dog", "owl"):
        for number in range(3):
            Image.new("RGB", (20, 10)).save(folder / name / f"{number}.jpg", exif=exif)
    assert task(folder).input_shape == (3, 20, 10)
    assert task(folder).load()[0].inputs.shape == (6, 20, 10, 3)


def test_files_that_are_no_images_and_hidden_ones_are_left_alone(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "cat" / ".hidden.png").write_bytes(b"x")
    (folder / ".thumbnails").mkdir()
    assert task(folder).train_examples() == 48
    assert len(ImageFolder.files(folder)) == 60


def test_every_image_is_in_the_fingerprint_of_the_data(folder: Path) -> None:
    def fingerprint() -> str:
        return prepare_data(task(folder), DataSettings(), 0).fingerprint

    before = fingerprint()
    Image.new("RGB", (12, 12)).save(folder / "owl" / "3.png")
    assert fingerprint() != before


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="nowhere is not a folder"):
        task(tmp_path / "nowhere")
    with pytest.raises(BenchError, match="nowhere is not a folder"):
        ImageFolder.files(tmp_path / "nowhere")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(BenchError, match="has 1 folder of images; a folder for each of at least two classes"):
        task(tmp_path)


def test_a_class_without_images(folder: Path) -> None:
    (folder / "emu").mkdir()
    with pytest.raises(BenchError, match="emu has no images in it"):
        task(folder)


def test_a_class_too_small_to_be_shared_out(folder: Path) -> None:
    for path in sorted((folder / "owl").iterdir())[2:]:
        path.unlink()
    with pytest.raises(BenchError, match='images: 2 of class "owl"; at least 3 are needed'):
        task(folder)


def test_a_validation_folder_is_not_silently_a_class(folder: Path) -> None:
    for name in ("train", "val", "test"):
        (folder / name).mkdir()
    with pytest.raises(BenchError, match=r"held out of train/ \(data.validation\)"):
        task(folder)


def test_train_and_test_of_different_classes(folder: Path, tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/c"):
        (tmp_path / "own" / name).mkdir(parents=True)
    with pytest.raises(BenchError, match="different classes: b, c in only one of them"):
        task(tmp_path / "own")


def test_an_image_that_cannot_be_read_is_named_before_any_run(folder: Path) -> None:
    broken = folder / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(BenchError, match=r"dog/3\.png cannot be read as an image"):
        task(folder).fetch()


def test_images_of_different_sizes_ask_for_one(folder: Path) -> None:
    Image.new("RGB", (13, 12)).save(folder / "owl" / "9.png")
    with pytest.raises(BenchError, match=r"owl/9\.png has 13x12 pixels, others 12x12; .* task.size = 32"):
        task(folder).load()
    assert task(folder, size=12).load()[0].inputs.shape == (48, 12, 12, 3)


@pytest.mark.parametrize("name", ["cat/0.png", "dog/3.png", "owl/9.png"])
def test_images_of_different_depths_are_not_mixed(folder: Path, name: str) -> None:
    Image.fromarray(np.full((12, 12), 4000, np.uint16)).save(folder / name)
    with pytest.raises(BenchError, match=rf"{name} has more than 8 bits a pixel and .*png has 8, so one of them"):
        task(folder).load()


def test_a_pixel_that_is_no_number_is_told(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.fromarray(np.full((4, 4), np.nan if name == "dog" else 1, np.float32)).save(
                tmp_path / name / f"{number}.tif"
            )
    with pytest.raises(BenchError, match=r"dog/\d.tif has pixels that are not finite"):
        task(tmp_path).fetch()


def test_autoaugment_needs_colour(folder: Path) -> None:
    with pytest.raises(BenchError, match="needs images in colour"):
        task(folder, channels=1, augment="autoaugment")
