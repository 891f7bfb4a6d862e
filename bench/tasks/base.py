"""What a task must give, and what the protocol then does to every task's data alike."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.errors import BenchError
from bench.seeding import numpy_stream
from bench.spec import DataSettings

VALIDATION_SEED = 20210507
"""Seed of the one permutation that decides which training examples are validation, the same for every run."""


@dataclass(frozen=True)
class Metric:
    """A task's score beside the loss.

    Attributes:
        key: column name in records.csv ("acc" makes train_acc, val_acc, test_acc, gap_acc).
        scale: factor from stored value to shown value (100 for per cent).
        definition: what it is, in words, for captions.
    """

    key: str
    name: str
    unit: str
    scale: float
    higher_is_better: bool
    definition: str


ACCURACY = Metric("acc", "accuracy", "%", 100.0, True, "share of examples whose largest logit is that of the label")


@dataclass(frozen=True)
class Split:
    """Examples, as tensors that live on the device.

    Attributes:
        inputs: (N, ...), raw; the task makes them what the model sees, a batch at a time.
        targets: (N,) class numbers, or (N,) floats for regression.
        noisy: (N,) bool, True where the label was replaced; None where none was.
    """

    inputs: Tensor
    targets: Tensor
    noisy: Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Split:
        noisy = None if self.noisy is None else self.noisy[indices]
        return Split(self.inputs[indices], self.targets[indices], noisy)

    def to(self, device: torch.device) -> Split:
        noisy = None if self.noisy is None else self.noisy.to(device)
        return Split(self.inputs.to(device), self.targets.to(device), noisy)


class Task(ABC):
    """A data set and how to score a model on it. Subclass it, give `load`, and register it under a name.

    Keyword-only arguments of `__init__` are the task's settings in an experiment file.

    Attributes:
        num_outputs: size of the model's output (classes; 1 for regression).
        input_shape: shape of one example as the model sees it.
        metric: the score beside the loss.
        memory_format: how weights and activations of images lie in memory; it is for speed alone.
    """

    num_outputs: int
    input_shape: tuple[int, ...]
    metric: Metric = ACCURACY
    memory_format: torch.memory_format = torch.contiguous_format

    def fetch(self) -> None:  # noqa: B027 - most tasks have nothing to fetch
        """See that the data is on this machine, downloading it if need be; called once, before any run starts.

        Raises:
            BenchError: it is not there and cannot be had; the message says which file to put where.
        """

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """The whole training set and the test set, on the CPU, always in the same order. Never downloads."""

    def train_examples(self) -> int:
        """Size of the training set, validation included; override it where loading is slow."""
        return len(self.load()[0])

    def verified(self) -> bool:
        """Whether the data is what its publisher gave out, by checksum or because it came inside a package."""
        return True

    def model_inputs(self, inputs: Tensor) -> Tensor:
        """What the model sees of a batch of raw inputs."""
        return inputs

    def training_batch(self, inputs: Tensor, targets: Tensor, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
        """What the model sees and is told of a raw batch in training: augmented, where the task does that.

        Args:
            random: the epoch's stream of augmentation, on the host: the same draws on every device.
        """
        return self.model_inputs(inputs), targets

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each example, shape (N,), from outputs (N, num_outputs). Default: cross-entropy in nats.

        Args:
            targets: (N,) class numbers; or, where `training_batch` mixes labels, (N, num_outputs) probabilities.
        """
        return F.cross_entropy(outputs, targets, reduction="none")

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """The metric over a whole split. Default: accuracy, a fraction."""
        return (outputs.argmax(dim=1) == targets).double().mean().item()


@dataclass(frozen=True)
class Data:
    train: Split
    val: Split
    test: Split
    fingerprint: str
    """sha256 over what the task loaded, so that two runs can be seen to have had the same data."""
    verified: bool = True
    """Whether it is what its publisher gave out (see `Task.verified`)."""

    def to(self, device: torch.device) -> Data:
        return replace(self, train=self.train.to(device), val=self.val.to(device), test=self.test.to(device))


def split_sizes(examples: int, settings: DataSettings) -> tuple[int, int]:
    """(training, validation) examples out of a training set of `examples`.

    Raises:
        BenchError: one of the two would be empty, or there are fewer than `train_size`.
    """
    validation = round(examples * settings.validation)
    if not 0 < validation < examples:
        raise BenchError(
            f"data.validation = {settings.validation:g} of {examples} training examples leaves "
            f"{examples - validation} to train on and {validation} to validate on; both must be at least 1"
        )
    if settings.train_size is not None and settings.train_size > examples - validation:
        raise BenchError(
            f"data.train_size = {settings.train_size}, but only {examples - validation} of {examples} training "
            f"examples are left beside data.validation = {settings.validation:g}"
        )
    return settings.train_size or examples - validation, validation


def prepare(task: Task, settings: DataSettings, seed: int) -> Data:
    """Load a task and apply the protocol: hold out validation, replace training labels.

    Validation is the same for all seeds; the replaced labels belong to the seed. No test example is ever in the other
    two.

    Raises:
        BenchError: the task's data does not fit the settings.
    """
    full, test = task.load()
    train_size, val_size = split_sizes(len(full), settings)
    order = torch.from_numpy(np.random.RandomState(VALIDATION_SEED).permutation(len(full)))
    train, val = full[order[:train_size]], full[order[len(order) - val_size :]]
    fingerprint = _fingerprint(full.inputs, full.targets, test.inputs, test.targets)
    train = replace_labels(train, task, settings.label_noise, seed)
    return Data(train, val, test, fingerprint, task.verified())


def replace_labels(split: Split, task: Task, share: float, seed: int) -> Split:
    """Give exactly round(share * N) examples a wrong label, uniform over the other classes (symmetric noise)."""
    check_label_noise(task, share)
    if share == 0:
        return split
    random = numpy_stream(seed, "noise")
    chosen = torch.from_numpy(random.permutation(len(split))[: round(share * len(split))])
    shift = torch.from_numpy(random.randint(1, task.num_outputs, size=len(chosen)))
    targets = split.targets.clone()
    targets[chosen] = (targets[chosen] + shift) % task.num_outputs
    noisy = torch.zeros(len(split), dtype=torch.bool)
    noisy[chosen] = True
    return Split(split.inputs, targets, noisy)


def check_label_noise(task: Task, share: float) -> None:
    """Raise BenchError where there are no classes to draw a wrong one from."""
    if share and task.num_outputs < 2:
        raise BenchError("data.label_noise needs a task with classes; this one is a regression")


def _fingerprint(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        array: np.ndarray[Any, Any] = tensor.contiguous().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
