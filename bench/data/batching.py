"""Batches of examples: in a seeded order and, where lengths differ, of about equal lengths.

Texts are padded to the longest of their batch, so batches of equal lengths are batches with little padding. Which
batches an epoch has is decided on the host, where the lengths are: nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.data.splits import Split

POOL = 32
"""Batches whose examples are sorted by length together; more would pad less and mix less."""

MULTIPLE = 8
"""Widths are rounded up to a multiple of this: fewer shapes, and fast ones for tensor cores."""


@dataclass(frozen=True)
class Batch:
    """Some examples of a split.

    Attributes:
        examples: (B,) their numbers, on the split's device.
        width: what the last axis of their inputs is cut to; None leaves it as it is.
        tokens: in all of them together, without padding; 0 where they are no texts.
    """

    examples: Tensor
    width: int | None = None
    tokens: int = 0

    def of(self, split: Split) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of these examples."""
        inputs = split.inputs if self.width is None else split.inputs[..., : self.width]
        return inputs[self.examples], split.targets[self.examples]


def epoch(split: Split, random: np.random.RandomState, batch_size: int) -> list[Batch]:
    """Return the batches of one epoch, in order, without the examples that are left over after the last whole batch.

    Where examples differ in length, those of 32 batches at a time are sorted by length; then all batches are shuffled.
    """
    # A split that is smaller than a batch is one batch, of all there is.
    count = max(1, len(split) // batch_size)
    order = random.permutation(len(split))[: count * batch_size]
    if split.lengths is not None:
        lengths = split.lengths[order]
        pool = np.arange(len(order)) // (POOL * batch_size)
        # lexsort goes by its last key first: pools stay in their order, and are sorted by length within.
        order = order[np.lexsort((lengths, pool))].reshape(count, -1)[random.permutation(count)].reshape(-1)
    return list(_batches(split, order, batch_size))


def in_order(split: Split, batch_size: int) -> list[Batch]:
    """Return batches of all examples in their order; the last batch may be smaller."""
    return list(_batches(split, np.arange(len(split)), batch_size))


def by_length(split: Split, batch_size: int) -> list[Batch]:
    """Return batches of all examples, the shortest first; examples of one length stay in their order."""
    order = np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
    return list(_batches(split, order, batch_size))


def _batches(split: Split, order: np.ndarray, batch_size: int) -> Iterator[Batch]:
    numbers = torch.from_numpy(order).to(split.targets.device)  # one transfer for all batches
    for start in range(0, len(order), batch_size):
        chosen = slice(start, start + batch_size)
        if split.lengths is None:
            yield Batch(numbers[chosen])
            continue
        # A batch is at most as wide as the stored tokens, which are cut to W.
        widest = split.inputs.shape[-1]
        lengths = np.minimum(split.lengths[order[chosen]], widest)
        yield Batch(numbers[chosen], min(-(-int(lengths.max()) // MULTIPLE) * MULTIPLE, widest), int(lengths.sum()))
