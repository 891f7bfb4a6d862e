"""Published image data sets that torchvision downloads and reads: SVHN, STL-10, Flowers-102, Food-101, EuroSAT."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from bench.core.errors import BenchError
from bench.core.registry import register_task
from bench.data import image_files, pixel_cache
from bench.data.datasets import FileSignature, signature
from bench.data.download import tell
from bench.data.splits import Split
from bench.data.torchvision_sets import SETS
from bench.data.user_files import TestShare, hold_out, shares
from bench.tasks.images import Augment, ImageTask, MixupAlpha
from bench.tasks.scores import WEIGHED, ClassWeights, ReportName, Scored, ScoreName

Item = tuple[Any, int]  # an image, or the path of its file, and its class


@register_task("torchvision/", members=lambda: SETS)
class TorchvisionImages(Scored, ImageTask):
    """An image data set of torchvision: svhn, stl10, flowers102, food101 or eurosat, at any size.

    They are kept in memory, in colour, as bytes of one size. Mean and deviation are those of the training images. Of
    Flowers-102 the official training and validation images together are the training set. EuroSAT has no official test
    set: a share of each class is held out. `bench prepare` downloads what torchvision would (from 100 MB for EuroSAT
    to 5 GB for Food-101).

    Args:
        member: which data set.
        size: side in pixels: images are scaled until their shorter side fits, and their middle is cut out. None: as
            they are, for SVHN (32), EuroSAT (64) and STL-10 (96); the others' images have many sizes.
        test: of EuroSAT the share of each class that is the test set, the same in every run.
        augment: "none", "basic" (mirrored, moved by up to 4 pixels), "cutout" or "autoaugment", see
            `bench.tasks.images`. Mirroring is not for digits: take "none" for SVHN.
        mixup: alpha of mixup's Beta distribution; 0 for no mixup.
        metric: what choices and comparisons are made by: "accuracy", "balanced_accuracy", "macro_f1", "auroc" or
            "average_precision". Default: accuracy.
        report: further scores, of the same names, in records.csv.
        class_weights: "balanced": in the loss every class weighs the same, however many images it has.
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.

    Raises:
        BenchError: there is no size for images of many sizes, or a score is not of classes.
    """

    def __init__(
        self,
        member: str,
        *,
        size: Annotated[int, Field(ge=4)] | None = None,
        test: TestShare | None = None,
        augment: Augment = "basic",
        mixup: MixupAlpha = 0.0,
        metric: ScoreName | None = None,
        report: list[ReportName] = [],  # noqa: B006 - never changed
        class_weights: ClassWeights = "none",
        allow_unverified_data: bool = False,
    ) -> None:
        self.set, self.allow_unverified_data = SETS[member], allow_unverified_data
        name = f"torchvision/{member}"
        side = size or self.set.side
        if side is None:
            raise BenchError(f"{name}: its images have many sizes; set one for all: task.size = 64, or 96, 224, ...")
        if test is not None and self.set.test:
            raise BenchError(f"{name} has a test set of its own; leave task.test out")
        self.test_share = test or 0.2
        self.title, self.num_outputs, self.input_shape = self.set.title, self.set.classes, (3, side, side)
        self.choose(metric, report, where=name)
        self.class_weights = class_weights
        # Known before the data are; the weights themselves are set by `load`.
        if class_weights == "balanced":
            self.loss_name = WEIGHED
        super().__init__(augment=augment, mixup=mixup)

    def fetch(self) -> None:
        """Bring the data here, read all images once, and print how many each class has."""
        self.set.fetch(allow_unverified=self.allow_unverified_data)
        train, test = (split.targets.numpy() for split in self.load())
        names = [str(number) for number in range(self.num_outputs)]
        tell(f"{self.title}: {shares(names, training=train, test=test)}")

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set: inputs (N, H, W, C) uint8, targets (N,) int64.

        All runs of a process share the tensors: do not write to them.

        Raises:
            BenchError: files are missing, damaged, or not the official ones and not allowed to be others.
        """
        self.set.check(allow_unverified=self.allow_unverified_data)
        train, test = self._examples()
        # Known from here on: `model_inputs` is called only after `load`.
        self.mean, self.std = image_files.statistics(train.inputs)
        self.weigh(self.class_weights, train.targets)
        return train, test

    def train_examples(self) -> int:
        if self.set.test and (not self.set.is_there() or self.verified()):
            return self.set.examples  # what it is or, once it is fetched, will be
        return len(self.load()[0])

    def verified(self) -> bool:
        return self.set.verified()

    def _examples(self) -> tuple[Split, Split]:
        return _read(self.set.name, self.set.signatures(), self.input_shape[1], self.test_share)


@functools.lru_cache(maxsize=2)
def _read(name: str, signatures: tuple[FileSignature, ...], side: int, share: float) -> tuple[Split, Split]:
    """Return the training and the test set; the signatures are the cache's key, so that other files are read again."""
    train, test = SETS[name].read()
    if not test:
        classes = np.array([label for _, label in train])
        names = [str(number) for number in range(SETS[name].classes)]
        train, test = ([train[index] for index in part] for part in hold_out(classes, share, name, names))
    pixels = _pixels([item for item, _ in (*train, *test)], len(train), side)
    targets = torch.tensor([label for _, label in (*train, *test)])
    count = len(train)
    return Split(pixels[:count], targets[:count]), Split(pixels[count:], targets[count:])


def _pixels(items: list[Any], train: int, side: int) -> torch.Tensor:
    """Return images, or the images in files, as (N, H, W, 3) uint8."""
    if isinstance(items[0], Path):
        shape = (3, side, side)
        source = (tuple(map(signature, items)), train)
        return pixel_cache.kept(len(items), shape, source, lambda: image_files.read(items, train, shape, fit=True))
    pixels = torch.empty((len(items), side, side, 3), dtype=torch.uint8)
    for number, image in enumerate(items):
        pixels[number] = torch.from_numpy(np.array(image_files.fitted(image, side, side)))
    return pixels
