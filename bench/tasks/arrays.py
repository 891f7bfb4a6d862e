"""Arrays of your own: a .npz file, or a folder of .npy files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError, shown
from bench.core.registry import register_task
from bench.data import array_files, image_files
from bench.data.array_files import Array
from bench.data.datasets import FileSignature, signature
from bench.data.download import tell
from bench.data.splits import Split, quantile_bins
from bench.data.user_files import TestShare, class_names, hold_out, label_text, numbered, shares
from bench.tasks.images import Augment, MixupAlpha
from bench.tasks.scores import ClassWeights, ReportName, ScoreName
from bench.tasks.user_images import MaybeImages


@register_task("arrays")
class Arrays(MaybeImages):
    """Arrays of your own, x_train, y_train, x_test and y_test, in a .npz file or a folder of .npy files.

    x are images, (N, H, W) or (N, H, W, C), or features (N, D), of whole or floating numbers. Bytes (uint8) are kept as
    they are; images of other numbers are scaled, not rounded, so that 0 to 255 is from the darkest pixel of the
    training images to their lightest. Features are standardised with the training examples' mean and deviation. y are
    classes (whole numbers or words) or, with `regression`, numbers, which are standardised as well. Without x_test and
    y_test a test set is held out. How many examples each class has is said at the start of a launch.

    Args:
        path: the file or the folder, relative to the experiment file. Not it but what is in it is part of a run's
            identity.
        regression: y are numbers to predict; loss is the squared error, score R2.
        test: share of each class (of numbers, of each tenth) that is the test set, the same in every run; not used
            where there are x_test and y_test.
        augment: of images: "none", "basic" (default), "cutout" or, for bytes in colour, "autoaugment", see
            `bench.tasks.images`.
        mixup: alpha of mixup's Beta distribution, for images of classes; 0 for no mixup.
        metric: what choices and comparisons are made by: "accuracy", "balanced_accuracy", "macro_f1", "auroc" or
            "average_precision"; of numbers "r2", "mae" or "rmse". Default: accuracy, of numbers R2.
        report: further scores, of the same names, in records.csv.
        class_weights: "balanced": in the loss every class weighs the same, however many examples it has.

    Raises:
        BenchError: an array is not as it should be, named in the message with its shape, dtype or value.
    """

    def __init__(
        self,
        *,
        path: str,
        regression: bool = False,
        test: TestShare = 0.2,
        augment: Augment | None = None,
        mixup: MixupAlpha = 0.0,
        metric: ScoreName | None = None,
        report: list[ReportName] = [],  # noqa: B006 - never changed
        class_weights: ClassWeights = "none",
    ) -> None:
        self.path, self.regression, self.title = path, regression, Path(path).stem
        self.choose(metric, report, where=path, regression=regression)
        # Read here, not in `load`: only the arrays tell how many inputs and outputs the model needs.
        self._read = read = _read(tuple(map(signature, self.files(Path(path)))), Path(path), regression, test)
        self.class_names, self.unit = read.names, read.unit
        self.input_shape, self.mean, self.std = read.shape, read.mean, read.std
        self.num_outputs = 1 if regression else len(read.names)
        self.augment_as(augment, mixup, images=len(read.shape) == 3, where=path, are="features")
        if self.augment == "autoaugment" and read.train.inputs.dtype != torch.uint8:
            raise BenchError(f'{path}: task.augment = "autoaugment" works on bytes; save the images as uint8')
        if not regression:
            self.weigh(class_weights, read.train.targets)
            return
        if class_weights != "none" or mixup:
            key = "mixup" if mixup else "class_weights"
            raise BenchError(f"{path}: task.{key} is for classes, and task.regression = true predicts numbers")
        self.loss_name = "squared error (of the standardised target)"

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """Return the .npz file itself, or the .npy files of the arrays."""
        return array_files.files(path)

    def fetch(self) -> None:
        """Print how many examples each class has."""
        if not self.regression:
            told = {"training": self._read.train.targets.numpy(), "test": self._read.test.targets.numpy()}
            tell(f"{self.path}: {shares(self.class_names, **told)}")

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set.

        Inputs are (N, H, W, C), uint8 or float32 from 0 to 255, or (N, D) float32; targets are (N,) int64, or float32
        for regression. All runs of a process share the tensors: do not write to them.
        """
        return self._read.train, self._read.test

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2 if self.regression else super().losses(outputs, targets)


@dataclass(frozen=True)
class _Read:
    """The content of the files, ready for a model.

    Attributes:
        shape: of an example as the model sees it.
        mean, std: of each channel, in pixels of 0..1; () for features.
        names: of the classes; [] for regression.
        unit: of numbers to predict: their deviation.
    """

    train: Split
    test: Split
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: list[str]
    unit: float


@functools.lru_cache(maxsize=2)
def _read(files: tuple[FileSignature, ...], path: Path, regression: bool, share: float) -> _Read:
    arrays = array_files.read(path)
    images = array_files.check_inputs(arrays, path)
    # 1. Which examples are the test set, and what is predicted.
    kinds = ("train", "test") if "x_test" in arrays else ("train",)
    given = [array_files.targets(arrays, f"y_{kind}", path) for kind in kinds]
    x = [arrays[f"x_{kind}"] for kind in kinds]
    names, y = ([], _numbers(given, path)) if regression else _classes(given, path)
    if len(kinds) == 1:
        classes = quantile_bins(y[0]) if regression else y[0]
        parts = hold_out(classes, share, str(path), names or ["y_train"] * (int(classes.max()) + 1))
        x, y = [x[0][part] for part in parts], [y[0][part] for part in parts]
    # 2. The inputs, scaled by the training examples: nothing of the test examples goes into them.
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    if images:
        x = _as_images(x)
        mean, std = _statistics(x[0])
        shape: tuple[int, ...] = (x[0].shape[3], *x[0].shape[1:3])
    else:
        x = _standardised(x)
        shape = x[0].shape[1:]
    # 3. Numbers to predict as well.
    unit = float(y[0].std()) or 1.0 if regression else 1.0
    if regression:
        y = [((part - y[0].mean()) / unit).astype(np.float32) for part in y]
    train, test = (Split(torch.from_numpy(a), torch.from_numpy(b)) for a, b in zip(x, y, strict=True))
    return _Read(train, test, shape, mean, std, names, unit)


def _classes(given: list[Array], path: Path) -> tuple[list[str], list[Array]]:
    """Return the names of the classes, and the class numbers of each set."""
    labels = [_labels(array, f"y_{kind}", path) for kind, array in zip(("train", "test"), given, strict=False)]
    names = class_names(labels[0], len(labels[0]), f"{path}: y_train")
    where = [f"{path}: {name}" for name in ("y_train", "y_test")]
    return names, [numbered(part, names, place) for part, place in zip(labels, where, strict=False)]


def _labels(array: Array, name: str, path: Path) -> list[str]:
    labels = []
    for number, value in enumerate(array.tolist()):
        try:
            label = label_text(value)
        except ValueError:
            raise BenchError(
                f"{path}: {name}[{number}] = {shown(value)} is no class; classes are whole numbers or words, and for "
                "numbers to predict set task.regression = true"
            ) from None
        if label is None or (label.startswith("-") and not isinstance(value, str)):
            raise BenchError(
                f"{path}: {name}[{number}] = {shown(value)} is no class: classes are numbers from 0, or words; leave "
                "examples without a label out"
            )
        labels.append(label)
    return labels


def _numbers(given: list[Array], path: Path) -> list[Array]:
    for array, name in zip(given, ("y_train", "y_test"), strict=False):
        if array.dtype.kind not in "uif" or not np.isfinite(array).all():
            why = "has NaN or infinity in it" if array.dtype.kind == "f" else f"is of dtype {array.dtype}"
            raise BenchError(f"{path}: {name} {why}; task.regression = true needs finite numbers")
    return [array.astype(np.float64) for array in given]


def _as_images(x: list[Array]) -> list[Array]:
    """Return images as (N, H, W, C), bytes or floats from 0 to 255."""
    x = [array if array.ndim == 4 else array[..., None] for array in x]
    if all(array.dtype == np.uint8 for array in x):
        return [np.ascontiguousarray(array) for array in x]
    lowest, highest = float(x[0].min()), float(x[0].max())
    return [array_files.in_bytes(array, lowest, highest) for array in x]


def _statistics(images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return each channel's mean and deviation, in pixels of 0..1."""
    if images.dtype == np.uint8:
        return image_files.statistics(torch.from_numpy(images))
    over = (0, 1, 2)
    mean, deviation = (images.mean(axis=over, dtype=np.float64), images.std(axis=over, dtype=np.float64))
    return tuple((mean / 255).tolist()), tuple(float(one) / 255 or 1.0 for one in deviation)


def _standardised(x: list[Array]) -> list[Array]:
    train = x[0].astype(np.float64)
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    # A feature of a single value has no deviation: it becomes 0.
    deviation[deviation == 0] = 1.0
    return [((array.astype(np.float64) - mean) / deviation).astype(np.float32) for array in x]
