"""Image data sets that torchvision downloads and reads: where they are, whether they are the official ones.

They lie as torchvision lays them out, in `<data folder>/torchvision` or in the data folder itself. torchvision compares
downloads with checksums; here the same checksums are compared again before files are read, and images that were
unpacked are counted, of which torchvision only asks whether their folder exists.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.core.data_folder import ANOTHER_FOLDER
from bench.core.errors import BenchError, NotPrepared
from bench.data.datasets import FileSignature, data_folder, locked, signature
from bench.data.download import writing

Parts = tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes:
        name: of the task's member.
        reader: torchvision's class.
        title: what tables call it.
        classes: number of classes.
        side: of all its images, in pixels; None where they have many sizes.
        files: md5 of each file by name, as torchvision has it.
        folder: where its unpacked images are; "" where `files` hold them.
        images: in that folder.
        train, test: arguments of the reader for each part of the training and of the test set; no `test`: a share of
            the training set is held out.
        examples: of the training set as published, before a test set is held out.
    """

    name: str
    reader: str
    title: str
    classes: int
    side: int | None
    files: Mapping[str, str]
    train: Parts
    test: Parts
    examples: int
    folder: str = ""
    images: int = 0

    @property
    def home(self) -> Path:
        """Return the folder that torchvision is given: the first that has the data, else the one to download to."""
        root = data_folder()
        return next((place for place in (root / "torchvision", root) if self._is_in(place)), root / "torchvision")

    def is_there(self) -> bool:
        """Return whether the data are on this machine, without checking their content."""
        return self._is_in(self.home)

    def verified(self) -> bool:
        """Return whether the data are the official ones, by torchvision's checksums and the number of images."""
        return not self._faults()

    def check(self, *, allow_unverified: bool) -> None:
        """Raise BenchError if the data are missing, or are not the official ones and not allowed to be others."""
        if not self.is_there():
            raise self.absent("`bench prepare` downloads it.")
        if not allow_unverified and (faults := self._faults()):
            raise BenchError(
                f"{self.home} does not hold the official {self.title}:\n  " + "\n  ".join(faults) + "\n"
                "Move it away, and `bench prepare` downloads the official one; or accept it in the experiment's "
                f'[task]:\n  task = {{name = "torchvision/{self.name}", allow_unverified_data = true}}\n'
                "Records and tables then say that the data is not verified."
            )

    def fetch(self, *, allow_unverified: bool = False) -> None:
        """Ensure that the data are present, by torchvision's own download, and correct.

        Raises:
            BenchError: they cannot be downloaded, are not the official ones, or the disk refuses.
        """
        if not self.is_there():
            with locked(data_folder() / f".torchvision-{self.name}.lock"):
                if not self.is_there():  # another process may have been at it
                    self._download()
        self.check(allow_unverified=allow_unverified)

    def read(self) -> tuple[list[tuple[Any, int]], list[tuple[Any, int]]]:
        """Return the training and the test set: of each example an image or the path of its file, and its class.

        Raises:
            BenchError: the files cannot be read.
        """
        try:
            train, test = ([item for part in parts for item in self._items(part)] for parts in (self.train, self.test))
        except Exception as error:  # of torchvision and scipy; whichever it is, the files are not what they should be
            raise BenchError(f"{self.title} in {self.home} cannot be read: {error}; move it away, and `bench prepare` "
                             "downloads it again") from error  # fmt: skip
        return train, test

    def signatures(self) -> tuple[FileSignature, ...]:
        """Return the signatures of all files that are read, but for single images."""
        there = [self.home / name for name in self.files]
        folder = [self.home / self.folder] if self.folder else []
        return tuple(signature(path) for path in [*there, *folder] if path.exists())

    def absent(self, reason: str) -> NotPrepared:
        """Return the error that says what is missing, and what to put where."""
        wanted = [*self._needed, *([f"{self.folder}/"] if self.folder else [])]
        lines = "\n".join(f"  {data_folder() / 'torchvision' / name}" for name in wanted)
        return NotPrepared(
            f"{self.title} is not in {data_folder()}: {reason}\n"
            f"To get it in another way, put there what torchvision.datasets.{self.reader} downloads\n{lines}\n"
            f"or name {ANOTHER_FOLDER}."
        )

    @property
    def _needed(self) -> list[str]:
        return [name for name in self.files if not _is_archive(name)]

    def _is_in(self, place: Path) -> bool:
        files = all((place / name).is_file() for name in self._needed)
        return files and (not self.folder or (place / self.folder).is_dir())

    def _faults(self) -> list[str]:
        """Return one line for each thing that is not the official one."""
        if not self.is_there():
            raise self.absent("`bench prepare` downloads it.")
        faults = []
        for name, official in self.files.items():
            path = self.home / name
            if not path.is_file():
                faults.append(f"{name}, by whose checksum its images are known, is not there")
            elif (md5 := _md5(signature(path))) != official:
                faults.append(f"{name}: md5 is {md5}, that of the official file {official}")
        if self.folder:
            count = sum(1 for path in (self.home / self.folder).rglob("*.jpg") if path.is_file())
            if count != self.images:
                faults.append(f"{self.folder}/ has {count:,} images, the official one {self.images:,}")
        return faults

    def _download(self) -> None:
        import torchvision.datasets

        home = self.home
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
        try:
            for part in (*self.train, *self.test):
                getattr(torchvision.datasets, self.reader)(home, download=True, **part)
        except Exception as error:  # of torchvision, urllib and the unpackers; whichever it is, there is no data
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise self.absent(f"it could not be downloaded ({reason}).") from error

    def _items(self, part: Mapping[str, Any]) -> list[tuple[Any, int]]:
        return [(item, int(label)) for item, label in _reader(self.reader)(self.home, **part)]


def _is_archive(name: str) -> bool:
    return name.endswith((".zip", ".tgz", ".tar.gz"))


@functools.lru_cache(maxsize=64)
def _md5(file: FileSignature) -> str:
    # Of the file as it is: an archive's checksum is not that of what is in it.
    with open(file[0], "rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _reader(name: str) -> Callable[..., Any]:
    """Return torchvision's reader without its checks, which `check` has made; files of images are not opened."""
    import torchvision.datasets as there

    if name == "SVHN":
        lists = {split: [url, file, None] for split, (url, file, _) in there.SVHN.split_list.items()}
        return type("SVHN", (there.SVHN,), {"split_list": lists})
    if name == "STL10":
        # The unlabelled images, 2.6 GB, are not needed.
        lists = {
            key: [[file, None] for file, _ in getattr(there.STL10, key)[:2]] for key in ("train_list", "test_list")
        }
        return type("STL10", (there.STL10,), lists)
    if name == "Flowers102":
        files = {key: (file, None) for key, (file, _) in there.Flowers102._file_dict.items()}
        return functools.partial(type("Flowers102", (there.Flowers102,), {"_file_dict": files}), loader=Path)
    return functools.partial(getattr(there, name), loader=Path)


TRAIN, TEST = {"split": "train"}, {"split": "test"}
SETS = {
    one.name: one
    for one in (
        TorchvisionSet(
            name="svhn",
            reader="SVHN",
            title="SVHN",
            classes=10,
            side=32,
            files={
                "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
                "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
            },
            train=(TRAIN,),
            test=(TEST,),
            examples=73_257,
        ),
        TorchvisionSet(
            name="stl10",
            reader="STL10",
            title="STL-10",
            classes=10,
            side=96,
            files={
                "stl10_binary/train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
                "stl10_binary/train_y.bin": "5a34089d4802c674881badbb80307741",
                "stl10_binary/test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
                "stl10_binary/test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
            },
            train=(TRAIN,),
            test=(TEST,),
            examples=5_000,
        ),
        TorchvisionSet(
            name="flowers102",
            reader="Flowers102",
            title="Flowers-102",
            classes=102,
            side=None,
            files={
                "flowers-102/102flowers.tgz": "52808999861908f626f3c1f4e79d11fa",
                "flowers-102/imagelabels.mat": "e0620be6f572b9609742df49c70aed4d",
                "flowers-102/setid.mat": "a5357ecc9cb78c4bef273ce3793fc85c",
            },
            folder="flowers-102/jpg",
            images=8_189,
            # Its own validation images are trained on, too: validation sets are held out here as everywhere.
            train=(TRAIN, {"split": "val"}),
            test=(TEST,),
            examples=2_040,
        ),
        TorchvisionSet(
            name="food101",
            reader="Food101",
            title="Food-101",
            classes=101,
            side=None,
            files={"food-101.tar.gz": "85eeb15f3717b99a5da872d97d918f87"},
            folder="food-101/images",
            images=101_000,
            train=(TRAIN,),
            test=(TEST,),
            examples=75_750,
        ),
        TorchvisionSet(
            name="eurosat",
            reader="EuroSAT",
            title="EuroSAT",
            classes=10,
            side=64,
            files={"eurosat/EuroSAT.zip": "c8fa014336c82ac7804f0398fcb19387"},
            folder="eurosat/2750",
            images=27_000,
            train=({},),
            test=(),
            examples=27_000,
        ),
    )
}
"""The data sets by name; checksums are torchvision's."""
