"""Images of your own, in a folder for each class."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field

from bench.core.errors import BenchError, counted
from bench.core.registry import register_task
from bench.data import image_files, pixel_cache
from bench.data.datasets import FileSignature, signature
from bench.data.splits import Split
from bench.data.user_files import TestShare, hold_out
from bench.tasks.images import Augment, ImageTask, MixupAlpha
from bench.tasks.scores import ClassWeights, ReportName, Scored, ScoreName

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

Item = tuple[Path, int]  # an image and its class


@register_task("image_folder")
class ImageFolder(Scored, ImageTask):
    """Images of your own: <path>/<class>/<image>, or <path>/train/<class>/<image> and <path>/test/<class>/<image>.

    They are kept in memory, as bytes of one size. Classes are numbered in the order of their names. Mean and deviation
    are those of the training images. Files that are no images by their ending are left alone. Images of more than 8
    bits per pixel (16-bit grey, whole or floating numbers) become bytes by one scale: from the darkest pixel of the
    training images to their lightest. Transparent parts become mid-grey.

    Args:
        path: the folder, relative to the experiment file. Not it but what is in it is part of a run's identity.
        size: side in pixels: images are scaled until their shorter side fits, and their middle is cut out. None: they
            all have one size already.
        channels: 3 for colour, 1 for grey; images are converted.
        test: share of each class that is the test set, the same in every run; not used where there is a folder test/.
        augment: "none", "basic" (mirrored, moved by up to 4 pixels), "cutout" or "autoaugment", see
            `bench.tasks.images`. Mirroring is not for letters and digits: take "none" there.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        metric: what choices and comparisons are made by: "accuracy", "balanced_accuracy", "macro_f1", "auroc" or
            "average_precision". Default: accuracy.
        report: further scores, of the same names, in records.csv.
        class_weights: "balanced": in the loss every class weighs the same, however many images it has.

    Raises:
        BenchError: a folder or an image is not as it should be, named in the message; or a score is not of classes.
    """

    def __init__(
        self,
        *,
        path: str,
        size: Annotated[int, Field(ge=4)] | None = None,
        channels: Literal[1, 3] = 3,
        test: TestShare = 0.2,
        augment: Augment = "basic",
        mixup: MixupAlpha = 0.0,
        metric: ScoreName | None = None,
        report: list[ReportName] = [],  # noqa: B006 - never changed
        class_weights: ClassWeights = "none",
    ) -> None:
        self.root, self.size, self.channels = Path(path), size, channels
        self.title = self.root.name
        self.class_names, self.train, self.test = _listed(self.root, test)
        self.num_outputs = len(self.class_names)
        # Without a size the first training image has it; reading refuses images of another one.
        height, width = (size, size) if size else image_files.size(self.train[0][0])
        self.input_shape = (channels, height, width)
        self.choose(metric, report, where=path)
        self.weigh(class_weights, torch.tensor([number for _, number in self.train]))
        # Called last, because it looks at the number of channels.
        super().__init__(augment=augment, mixup=mixup)

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """Return the images below a folder, sorted by name."""
        if not path.is_dir():
            raise BenchError(f"{path} is not a folder")
        # Sorted, because a file system lists files in any order, and the split depends on theirs.
        return sorted(file for file in path.rglob("*") if _is_image(file))

    def fetch(self) -> None:
        """Read all images once, so that an unreadable one is reported before any run starts."""
        self.load()

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set: inputs (N, H, W, C) uint8, targets (N,) int64.

        All runs of a process share the tensors: do not write to them.
        """
        items = [*self.train, *self.test]
        count = len(self.train)
        # The signatures are a part of the cache's key, so that a changed image is read again.
        pixels = _read(tuple(signature(path) for path, _ in items), count, self.input_shape, self.size is not None)
        targets = torch.tensor([number for _, number in items])
        # Known from here on: `model_inputs` is called only after `load`.
        self.mean, self.std = image_files.statistics(pixels[:count])
        return Split(pixels[:count], targets[:count]), Split(pixels[count:], targets[count:])

    def train_examples(self) -> int:
        return len(self.train)


def _is_image(path: Path) -> bool:
    # Hidden files are left out: macOS puts ._photo.jpg, which is no image, beside photo.jpg.
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _folders(root: Path) -> list[str]:
    return sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _listed(root: Path, share: float) -> tuple[list[str], list[Item], list[Item]]:
    """Return class names, training images and test images."""
    if not root.is_dir():
        raise BenchError(f"{root} is not a folder")
    folders = _folders(root)
    # Folders of these names are taken for the split, never for classes.
    if "test" in folders or "train" in folders:
        if folders != ["test", "train"]:
            raise BenchError(
                f"{root} has the folders {', '.join(folders)}; if one is train/ or test/, both are needed and no "
                "other: the validation set is held out of train/ (data.validation)"
            )
        names = _folders(root / "train")
        if names != _folders(root / "test"):
            odd = sorted({*names} ^ {*_folders(root / "test")})
            raise BenchError(f"{root}: train/ and test/ have different classes: {', '.join(odd)} in only one of them")
        return names, _items(root / "train", names), _items(root / "test", names)
    items = _items(root, folders)
    train, test = hold_out(np.array([number for _, number in items]), share, str(root), folders)
    return folders, [items[index] for index in train], [items[index] for index in test]


def _items(root: Path, names: list[str]) -> list[Item]:
    if len(names) < 2:
        raise BenchError(
            f"{root} has {counted(len(names), 'folder')} of images; a folder for each of at least two classes is needed"
        )
    of_classes = [[(path, number) for path in ImageFolder.files(root / name)] for number, name in enumerate(names)]
    for name, items in zip(names, of_classes, strict=True):
        if not items:
            raise BenchError(f"{root / name} has no images in it ({', '.join(ENDINGS)})")
    return [item for items in of_classes for item in items]


@functools.lru_cache(maxsize=2)
def _read(signatures: tuple[FileSignature, ...], train: int, shape: tuple[int, int, int], fit: bool) -> torch.Tensor:
    paths = [path for path, _, _ in signatures]
    return pixel_cache.kept(
        len(paths), shape, (signatures, train, fit), lambda: image_files.read(paths, train, shape, fit=fit)
    )
