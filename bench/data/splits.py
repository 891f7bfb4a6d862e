"""The split of the training examples into validation and training sets, and the order of the training set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.core.seeding import numpy_stream
from bench.core.spec import DataSettings

Phase = Literal["tune", "refit"] | None
Indices = np.ndarray[Any, np.dtype[np.int64]]

VALIDATION_SEED = 20210507
"""Seed of the permutation that selects the validation examples, in all runs but those of tuning."""

SAMPLE_SEED = 20261128
"""Seed of the permutation that decides which training examples are evaluated in the course of training, in all runs."""

QUANTILES = 10
"""Number of strata for a number to predict: bins of equal counts, in the order of the numbers."""

FEWEST_PER_QUANTILE = 10
"""Examples per bin; fewer examples have fewer bins."""


@dataclass(frozen=True)
class Split:
    """Examples, as tensors that live on the device.

    Attributes:
        inputs: (N, ...), raw; the task makes them what the model sees, a batch at a time. Of tasks of text: `Texts`,
            until the model's tokenizer has made them (N, 2, W) token and segment ids, -1 where a text is over.
        targets: (N,) class numbers, (N,) floats for regression, (N, labels) floats of 0 and 1 where an example may have
            several labels; or any that a task's own losses take.
        noisy: (N,) bool, True where the label was replaced; None where none was.
        lengths: (N,) tokens of each text before it was cut to W, on the host; None where all inputs are of one size.
    """

    inputs: Any
    targets: Tensor
    noisy: Tensor | None = None
    lengths: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, indices: Tensor) -> Split:
        noisy = None if self.noisy is None else self.noisy[indices]
        # The lengths stay on the host, where batches are planned.
        lengths = None if self.lengths is None else self.lengths[indices.cpu().numpy()]
        return Split(self.inputs[indices], self.targets[indices], noisy, lengths)

    def to(self, device: torch.device) -> Split:
        noisy = None if self.noisy is None else self.noisy.to(device)
        return Split(self.inputs.to(device), self.targets.to(device), noisy, self.lengths)

    @property
    def cut(self) -> int:
        """Return how many texts were too long."""
        return 0 if self.lengths is None else int((self.lengths > self.inputs.shape[-1]).sum())


def strata(targets: Tensor) -> Indices:
    """Return the stratum of each example, shape (N,): its class or, of a number to predict, its quantile bin.

    Of several labels (N, labels), 0 or 1, it is the rarest that the example has. Other targets of more than one axis
    are one stratum.
    """
    if targets.ndim == 2 and targets.is_floating_point() and ((targets == 0) | (targets == 1)).all():
        return rarest_label(targets.numpy())
    if targets.ndim != 1:
        return np.zeros(len(targets), np.int64)
    return quantile_bins(targets.numpy()) if targets.is_floating_point() else targets.numpy().astype(np.int64)


def rarest_label(labels: np.ndarray[Any, Any]) -> Indices:
    """Return, of labels (N, labels) that are 0 or 1, the number of the rarest that each example has; 0 for none.

    Numbers start at 1. Shared out by it, a rare label has its share everywhere; common ones nearly have it, as they are
    many (a single step of the iterative stratification of Sechidis et al. 2011).
    """
    rarity = np.where(labels > 0, labels.sum(axis=0), np.inf)
    return np.where(labels.any(axis=1), rarity.argmin(axis=1) + 1, 0)


def quantile_bins(numbers: np.ndarray[Any, Any]) -> Indices:
    """Return the bin of each number, shape (N,): tenths of the sorted numbers; fewer bins below 100 numbers."""
    bins = min(QUANTILES, max(1, len(numbers) // FEWEST_PER_QUANTILE))
    bin_of = np.empty(len(numbers), np.int64)
    # A number's rank, scaled to the bins. The stable sort puts equal numbers in the same order on every machine.
    bin_of[np.argsort(numbers, kind="stable")] = np.arange(len(numbers)) * bins // max(1, len(numbers))
    return bin_of


def stratified_order(stratum: Indices, random: np.random.RandomState) -> tuple[Indices, np.ndarray[Any, Any]]:
    """Return a random order in which every stretch of examples has each stratum in proportion, and first members.

    The members of a stratum, shuffled, stand at equal distances, from a start of its own that is drawn, so that the
    first m examples have within one or two of m times its share of them (systematic sampling; Cochran, Sampling
    Techniques, 1977, chapter 8). A single stratum is in the order of `random.permutation`.

    Args:
        stratum: (N,) whole numbers.

    Returns:
        (N,) indices, and (N,) bool: whether the example at this place is the first of its stratum.
    """
    # 1. The examples are shuffled. `number` is the stratum of each, in the shuffled order.
    shuffled = random.permutation(len(stratum))
    _, number, counts = np.unique(stratum[shuffled], return_inverse=True, return_counts=True)
    # 2. `rank` counts the members of a stratum, from 0, in the shuffled order.
    together = np.argsort(number, kind="stable")
    rank = np.empty(len(stratum), np.int64)
    rank[together] = np.arange(len(stratum)) - np.repeat(np.cumsum(counts) - counts, counts)
    # 3. Member k of a stratum of n goes to (k + start) / n of the whole, with one drawn start per stratum.
    start = random.random_sample(len(counts))
    places = np.argsort((rank + start[number]) / counts[number], kind="stable")
    return shuffled[places], rank[places] == 0


def split_sizes(examples: int, settings: DataSettings) -> tuple[int, int]:
    """Return (training, validation) examples out of a training set of `examples`.

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
    if settings.train_share is not None:
        # A share of what validation leaves, and at least one example.
        return max(1, round(settings.train_share * (examples - validation))), validation
    return settings.train_size or examples - validation, validation


def learned_from(examples: int, settings: DataSettings, phase: Phase) -> int:
    """Return how many of a training set of `examples` a run trains on. See `split_sizes` for what is raised."""
    train, validation = split_sizes(examples, settings)
    return train + validation if phase == "refit" else train


def held_out(targets: Tensor, settings: DataSettings, seed: int, phase: Phase) -> tuple[Indices, Indices]:
    """Return the (training, validation) examples of a run, each with every class, or quantile, in its share.

    A smaller `train_size` is the beginning of a larger one. The split is the same for all seeds, but for runs of
    tuning: theirs belongs to the seed, so that what is chosen over several seeds is not chosen on one validation set.

    Args:
        targets: (N,) of the whole training set.
        phase: of the run (see `RunSpec`).

    Raises:
        BenchError: the sizes do not fit, see `split_sizes`.
    """
    train, validation = split_sizes(len(targets), settings)
    random = numpy_stream(seed, "split") if phase == "tune" else np.random.RandomState(VALIDATION_SEED)
    order, first = stratified_order(strata(targets), random)
    # A class that is held out whole could never be learned: its first example is held out last of all.
    kept = np.argsort(~first, kind="stable")[: len(order) - validation]
    # A mask keeps the drawn order, by which a smaller train_size is the beginning of a larger one.
    learned = np.zeros(len(order), bool)
    learned[kept] = True
    return order[learned][:train], order[~learned]


def sample(targets: Tensor, noisy: Tensor | None, size: int) -> Indices:
    """Return `size` of the training examples, in their order: of each class, or quantile, its share.

    Of a class the examples with replaced labels have their share, too. The draw is the same for all runs that train on
    the same examples. No class is left out that there is room for.

    Args:
        targets: (N,) of the training examples, more than `size`.
        noisy: (N,) bool, whether a label was replaced; None where none was.
    """
    stratum = strata(targets)
    if noisy is not None:
        # Every class becomes two strata: even numbers have the true label, odd ones a replaced label.
        stratum = 2 * stratum + noisy.numpy()
    order, first = stratified_order(stratum, np.random.RandomState(SAMPLE_SEED))
    # First members come before all others, so that no class is missing while there is room.
    return np.sort(order[np.argsort(~first, kind="stable")[:size]])
