"""Data sets of Hugging Face's `datasets`: saved to disk, as Parquet files, or of the hub."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from bench.core.errors import BenchError, NotPrepared, nearest
from bench.core.registry import register_task
from bench.data import image_files, pixel_cache, user_tables
from bench.data.datasets import FileSignature, signature
from bench.data.download import tell
from bench.data.hub import HubDataset
from bench.data.splits import Indices, Split
from bench.data.user_columns import Columns, rows, sources, texts
from bench.data.user_files import TestShare, class_names, hold_out, numbered, shares
from bench.tasks.images import Augment, MixupAlpha
from bench.tasks.scores import ClassWeights, ReportName, ScoreName
from bench.tasks.user_images import MaybeImages

Signatures = tuple[tuple[str, tuple[FileSignature, ...]], ...]
"""Of each split its name and its files."""


@register_task("hf_dataset")
class HFDataset(MaybeImages):
    """A Hugging Face data set: images or texts with a class, from `save_to_disk`, Parquet files or the hub.

    With `image` its examples are images, kept and treated as `image_folder` does it; with `text` they are texts, or
    pairs of texts, for the models that read text. Classes are those of a ClassLabel, in its order, or the different
    values of any other column: numbers by size, others by name. Rows without a label (a ClassLabel's -1 among them),
    image or text are left out. How many, and how many rows each class has, is said at the start of a launch.

    Args:
        path: what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote, a folder of .parquet files, or one such
            file; relative to the experiment file. Not it but what is in it is part of a run's identity.
        hub: instead of `path`, a data set of the hub: owner/name. `bench prepare` downloads it.
        config: of a data set of the hub, the configuration (subset).
        revision: of a data set of the hub, a commit, tag or branch. None: the newest when it is downloaded.
        image: column with the images.
        text: column with the texts.
        text_pair: column with the second texts, where examples are pairs.
        label: column with the classes.
        train_split: the split to train and validate on. None: "train", or the only one.
        test_split: the test set. None: "test" where there is one, else a share of the training split.
        test: share of each class that is the test set, the same in every run, where there is no split for it.
        size: side in pixels: images are scaled until their shorter side fits, and their middle is cut out. None: they
            all have one size already.
        channels: 3 for colour (default), 1 for grey; images are converted.
        max_length: tokens that a text, or a pair of texts, is cut to; default 128.
        augment: of images: "none", "basic" (default), "cutout" or "autoaugment", see `bench.tasks.images`.
        mixup: alpha of mixup's Beta distribution, for images; 0 for no mixup.
        metric: what choices and comparisons are made by: "accuracy", "balanced_accuracy", "macro_f1", "auroc" or
            "average_precision". Default: accuracy.
        report: further scores, of the same names, in records.csv.
        class_weights: "balanced": in the loss every class weighs the same, however many examples it has.

    Raises:
        BenchError: files, splits or columns are not as they should be, named in the message.
    """

    _absent: NotPrepared | None = None

    def __init__(
        self,
        *,
        path: str | None = None,
        hub: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        image: str | None = None,
        text: str | None = None,
        text_pair: str | None = None,
        label: str = "label",
        train_split: str | None = None,
        test_split: str | None = None,
        test: TestShare = 0.2,
        size: Annotated[int, Field(ge=4)] | None = None,
        channels: Literal[1, 3] | None = None,
        max_length: Annotated[int, Field(ge=8, le=512)] | None = None,
        augment: Augment | None = None,
        mixup: MixupAlpha = 0.0,
        metric: ScoreName | None = None,
        report: list[ReportName] = [],  # noqa: B006 - never changed
        class_weights: ClassWeights = "none",
    ) -> None:
        _check_source(path, hub, config, revision)
        _check_inputs(image, text, text_pair, {"size": size, "channels": channels}, {"max_length": max_length})
        self.path, self.hub = path, None if hub is None else HubDataset(hub, config, revision)
        self.where = path or f"{hub} of the hub"
        self.title = Path(path).stem if path else str(hub).rpartition("/")[2]
        self.text, self.max_length = text is not None, max_length or 128
        self.columns = Columns(label, image, text, text_pair)
        self.wanted = _Wanted(train_split, test_split, test)
        self.size, self.channels = size, channels or 3
        self._augment, self._mixup, self._weights_of = augment, mixup, class_weights
        if self.hub is not None:
            self.hub.check_names()
        self.choose(metric, report, where=self.where)
        try:
            self._look()
        except NotPrepared as error:
            # Plans for `bench prepare` need no data; whoever asks for what only the data tell gets this error.
            self._absent = error

    def __getattr__(self, name: str) -> Any:
        # Called only for what is not there: what `_look` sets.
        if self._absent is not None and not name.startswith("__"):
            raise self._absent
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @classmethod
    def is_text(cls, params: Mapping[str, Any]) -> bool:
        """Return whether a task with these settings gives texts."""
        return params.get("text") is not None

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """Return the files with the rows of all splits."""
        return [file for files in user_tables.splits(path).values() for file in files]

    def fetch(self) -> None:
        """Bring a data set of the hub here, read all of it once, and print which rows it has."""
        if self.hub is not None:
            self.hub.fetch()
            self._absent = None
            self._look()
        self.load()
        told = shares(self.class_names, training=self._examples.train.targets, test=self._examples.test.targets)
        tell(f"{self.where}: {' '.join(filter(None, [told, self.note]))}")

    def load(self) -> tuple[Split, Split]:
        """Return the training and the test set: inputs (N, H, W, C) uint8 or `Texts`, targets (N,) int64.

        All runs of a process share the tensors: do not write to them.
        """
        if self._absent is not None:
            raise self._absent
        train, test = (torch.from_numpy(part.targets) for part in (self._examples.train, self._examples.test))
        if self.text:
            inputs = _texts(self._signatures, self.columns, self.wanted, self.where)
            return Split(inputs[0], train), Split(inputs[1], test)
        settings = self._signatures, self.columns, self.wanted, self.where
        pixels = _pixels(*settings, self.input_shape, self.size is not None)
        # Known from here on: `model_inputs` is called only after `load`.
        self.mean, self.std = image_files.statistics(pixels[: len(train)])
        return Split(pixels[: len(train)], train), Split(pixels[len(train) :], test)

    def train_examples(self) -> int:
        return len(self._examples.train.targets)

    def _look(self) -> None:
        """Read what the model and the plan need to know: classes, sizes, and the shape of the first image."""
        splits = self.hub.splits() if self.hub else user_tables.splits(Path(str(self.path)))
        self._signatures: Signatures = tuple(
            (name, tuple(file if isinstance(file, tuple) else signature(file) for file in files))
            for name, files in splits.items()
        )
        self._examples = _examples(self._signatures, self.columns, self.wanted, self.where)
        self.class_names, self.note = self._examples.names, self._examples.note
        self.num_outputs = len(self.class_names)
        if self.text:
            self.input_shape = ()
        else:
            first = (self.size, self.size) if self.size else image_files.size(self._first())
            self.input_shape = (self.channels, *first)
        self.weigh(self._weights_of, torch.from_numpy(self._examples.train.targets))
        self.augment_as(self._augment, self._mixup, images=not self.text, where=self.where, are="texts")

    def _first(self) -> image_files.Source:
        part = self._examples.train
        return sources(dict(self._signatures)[part.split], self.columns, part.split, part.rows[:1])[0]


def _check_source(path: str | None, hub: str | None, config: str | None, revision: str | None) -> None:
    if (path is None) == (hub is None):
        raise BenchError(
            f"hf_dataset: {'neither' if path is None else 'both'} task.path and task.hub; give a folder or a file as "
            "path, or the name of a data set of the hub (owner/name) as hub"
        )
    for key, value in (("config", config), ("revision", revision)):
        if value is not None and hub is None:
            raise BenchError(f"{path}: task.{key} is for task.hub; as path name the folder of the one that you want")


def _check_inputs(
    image: str | None, text: str | None, pair: str | None, of_images: dict[str, Any], of_texts: dict[str, Any]
) -> None:
    if (image is None) == (text is None):
        raise BenchError(
            f"hf_dataset: {'neither' if image is None else 'both'} task.image and task.text; name the column with the "
            "images as image, or that with the texts as text"
        )
    kind, odd = ("texts", of_images) if image is None else ("images", {**of_texts, "text_pair": pair})
    for key, value in odd.items():
        if value is not None:
            raise BenchError(f"hf_dataset: task.{key} is not for {kind}; leave it out")


@dataclass(frozen=True)
class _Wanted:
    """The splits that are asked for.

    Attributes:
        share: of the training split that is the test set, where there is no split for it.
    """

    train: str | None
    test: str | None
    share: float


@dataclass(frozen=True)
class _Part:
    """A training or test set: of which split it is, which rows of the split, and their class numbers."""

    split: str
    rows: Indices
    targets: Indices


@dataclass(frozen=True)
class _Examples:
    names: list[str]
    train: _Part
    test: _Part
    note: str


@functools.lru_cache(maxsize=8)
def _examples(signatures: Signatures, columns: Columns, wanted: _Wanted, where: str) -> _Examples:
    """Return which rows are training and test examples, and of which classes."""
    splits = dict(signatures)
    train_name, test_name = _chosen(list(splits), wanted, where)
    train = rows(splits[train_name], columns, train_name)
    test = rows(splits[test_name], columns, test_name) if test_name else None
    column = f'{where}, split "{train_name}", column "{columns.label}"'
    present = {*train.labels}
    # A ClassLabel says the order. Those of its classes that no training row has could not be learned.
    names = [name for name in train.order if name in present] or class_names(train.labels, len(train.labels), column)
    if len(names) < 2:
        raise BenchError(f'{column} has one class only, "{names[0]}"')
    remarks = [train.remark, test.remark if test else "", _unused(splits, train_name, test_name)]
    if lacking := [name for name in train.order if name not in present]:
        remarks.append(f"No training row is of these classes: {', '.join(lacking[:10])}{' ...' * (len(lacking) > 10)}.")
    numbers = numbered(train.labels, names, column)
    if test is None:
        learned, held = hold_out(numbers, wanted.share, where, names)
        parts = tuple(_Part(train_name, train.rows[part], numbers[part]) for part in (learned, held))
    else:
        of_test = numbered(test.labels, names, f'{where}, split "{test_name}"')
        parts = (_Part(train_name, train.rows, numbers), _Part(str(test_name), test.rows, of_test))
    return _Examples(names, parts[0], parts[1], " ".join(filter(None, remarks)))


def _chosen(names: list[str], wanted: _Wanted, where: str) -> tuple[str, str | None]:
    """Return the names of the training and of the test split, None where a test set is held out."""
    for key, name in (("train_split", wanted.train), ("test_split", wanted.test)):
        if name is not None and name not in names:
            raise BenchError(f'{where}: task.{key}: there is no split "{name}"; {nearest(name, names)}')
    train = wanted.train or ("train" if "train" in names else names[0] if len(names) == 1 else None)
    if train is None:
        raise BenchError(f"{where} has the splits {', '.join(names)}; name the one to train on: task.train_split")
    test = wanted.test or ("test" if "test" in names and train != "test" else None)
    if train == test:
        raise BenchError(f'{where}: task.train_split and task.test_split are both "{train}"; take two splits')
    return train, test


def _unused(splits: Mapping[str, Any], train: str, test: str | None) -> str:
    unused = ", ".join(f'"{name}"' for name in splits if name not in (train, test))
    held = "" if test else f'The test set is a part of the split "{train}".'
    return " ".join(filter(None, [held, f"Not used: {unused}." if unused else ""]))


@functools.lru_cache(maxsize=2)
def _pixels(
    signatures: Signatures, columns: Columns, wanted: _Wanted, where: str, shape: tuple[int, int, int], fit: bool
) -> torch.Tensor:
    chosen = _examples(signatures, columns, wanted, where)
    splits = dict(signatures)
    of = [sources(splits[part.split], columns, part.split, part.rows) for part in (chosen.train, chosen.test)]
    every, train = [*of[0], *of[1]], len(of[0])
    source = (signatures, columns, wanted, fit)
    return pixel_cache.kept(len(every), shape, source, lambda: image_files.read(every, train, shape, fit=fit))


@functools.lru_cache(maxsize=2)
def _texts(signatures: Signatures, columns: Columns, wanted: _Wanted, where: str) -> tuple[Any, Any]:
    chosen = _examples(signatures, columns, wanted, where)
    splits = dict(signatures)
    train, test = (texts(splits[part.split], columns, part.rows) for part in (chosen.train, chosen.test))
    return train, test
