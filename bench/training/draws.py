"""The random numbers of augmentation, drawn for many steps ahead and moved to the device together.

A step that draws by itself has its numbers copied to the device by the host, array by array, which takes longer than a
small network's kernels. Here the same numbers come from the same stream in the same order, for some batches at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from bench.core.seeding import StreamState, state_of
from bench.data.augment import on_device
from bench.data.batching import Batch
from bench.tasks.base import Task

AHEAD = 32
"""Batches that are drawn for together. Not a whole epoch's: a GPU has steps to do while the next few are drawn, and
would wait for all. Memory: of CIFAR's images at batch 128, 2 MB for "basic" and 4.5 MB for "autoaugment"."""

Drawn = tuple[Any, ...] | np.random.RandomState
"""What `Task.draw` has drawn for a batch; for a task that draws in `training_batch` itself, the stream to draw from."""


class Draws:
    """The numbers of augmentation for each of some batches in turn.

    Args:
        batches: those to come in an epoch.
        stream: the epoch's stream of augmentation, where it is before the first of them.
    """

    def __init__(
        self, task: Task, batches: Sequence[Batch], stream: np.random.RandomState, device: torch.device
    ) -> None:
        self._task, self._batches, self._stream, self._device = task, batches, stream, device
        # An override, of a class or of one object, draws by itself.
        self._ahead = getattr(task.training_batch, "__func__", None) is Task.training_batch
        self._start = 0, stream.get_state(legacy=False)

    def __iter__(self) -> Iterator[Drawn]:
        if not self._ahead:
            for _ in self._batches:
                yield self._stream
            return
        for start in range(0, len(self._batches), AHEAD):
            self._start = start, self._stream.get_state(legacy=False)
            some = self._batches[start : start + AHEAD]
            drawn = [self._task.draw(len(batch.examples), self._stream) for batch in some]
            yield from on_device(drawn, self._device)

    def state_after(self, count: int) -> StreamState:
        """Return the state of the stream after the first `count` batches, the last ones that were taken from here."""
        if not self._ahead:
            return state_of(self._stream)
        start, state = self._start
        stream = np.random.RandomState()
        stream.set_state(state)
        for batch in self._batches[start:count]:  # drawn once more: a checkpoint is rare, and a state per step is not
            self._task.draw(len(batch.examples), stream)
        return state_of(stream)
