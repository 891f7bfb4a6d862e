"""Decoded images on disk: used as long as nothing has changed, made anew otherwise, never a reason to fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.data import pixel_cache
from bench.data.pixel_cache import kept
from bench.tasks.image_folder import ImageFolder, _read

SHAPE = (3, 4, 5)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(pixel_cache, "MANY", 10)
    return tmp_path / "data"


class Decoder:
    """Counts how often it is asked."""

    def __init__(self, count: int = 12) -> None:
        self.asked = 0
        self.pixels = torch.randint(256, (count, 4, 5, 3), generator=torch.Generator().manual_seed(0)).byte()

    def __call__(self) -> torch.Tensor:
        self.asked += 1
        return self.pixels


def test_images_are_decoded_once_and_read_back_as_they_were(root: Path) -> None:
    decode = Decoder()
    for _ in range(3):
        assert torch.equal(kept(12, SHAPE, "a", decode), decode.pixels)
    assert decode.asked == 1
    assert [path.suffix for path in (root / "pixels").iterdir()] == [".npy"]


def test_what_is_read_may_be_written_to_and_the_file_stays(root: Path) -> None:
    decode = Decoder()
    kept(12, SHAPE, "a", decode)
    kept(12, SHAPE, "a", decode)[:] = 0
    assert torch.equal(kept(12, SHAPE, "a", decode), decode.pixels)


def test_other_sources_shapes_and_versions_are_decoded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Decoder()
    kept(12, SHAPE, "a", decode)
    kept(12, SHAPE, "b", decode)
    kept(12, (3, 5, 4), "a", decode)
    monkeypatch.setattr(pixel_cache, "FORMAT", 0)
    kept(12, SHAPE, "a", decode)
    assert decode.asked == 4


def test_few_images_are_not_kept(root: Path) -> None:
    kept(9, SHAPE, "a", Decoder(9))
    assert not (root / "pixels").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 50, None])
def test_a_damaged_file_is_made_anew(root: Path, content: bytes | None) -> None:
    decode = Decoder()
    kept(12, SHAPE, "a", decode)
    (path,) = (root / "pixels").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] if content is None else content)
    assert torch.equal(kept(12, SHAPE, "a", decode), decode.pixels)
    assert decode.asked == 2
    assert path.read_bytes() == whole


def test_a_data_folder_that_cannot_be_written_is_no_reason_to_fail(root: Path) -> None:
    root.mkdir()
    (root / "pixels").write_text("a file in the way")
    assert torch.equal(kept(12, SHAPE, "a", decode := Decoder()), decode.pixels)


def test_an_image_of_a_folder_that_changes_is_read_again(data_folder: Path) -> None:
    folder = data_folder / "images"
    before = ImageFolder(path=str(folder)).load()[0].inputs
    _read.cache_clear()  # as a new process
    assert torch.equal(ImageFolder(path=str(folder)).load()[0].inputs, before)
    assert len(list((data_folder / "pixels").iterdir())) == 1
    images = ImageFolder(path=str(folder))
    images.train[0][0].write_bytes(images.train[1][0].read_bytes() + b"longer")
    changed = ImageFolder(path=str(folder)).load()[0].inputs
    assert torch.equal(changed[0], before[1])
