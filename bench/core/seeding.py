"""Named random streams, all derived from a run's one seed number.

Each use of randomness draws from its own stream, so that one optimizer's extra draws (a second dropout mask, say) can
never shift another's batch order: with the same seed every optimizer sees the same initial weights, batches,
augmentation and label noise, and their differences are paired.

    init      initial weights              order     batch order of an epoch
    noise     which labels are replaced    augment   augmentation of an epoch
    dropout   masks inside the model       direction   what a method such as SAM draws by itself
    landscape  where `bench measure` looks, around final weights
    split     which examples are held out for validation in tuning
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Literal

import numpy as np

StreamState = dict[str, Any]
Source = Literal["all", "init", "order", "augment", "dropout", "noise"]
"""Which random streams follow a run's seed: all of them, or one alone (see `RunSpec.seed_for`)."""

Stream = Literal["init", "order", "augment", "dropout", "noise", "direction", "landscape", "split"]


def derive(seed: int, stream: Stream, epoch: int = 0) -> int:
    """Return a 63-bit seed for one stream; per-epoch streams can be replayed after a restart without saved state."""
    # A hash, so that neighbouring seeds and epochs give unrelated streams. Another text here would change every run.
    digest = hashlib.sha256(f"{seed}/{stream}/{epoch}".encode()).digest()
    # 63 bits, which every generator takes, also where it reads a signed number.
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_stream(seed: int, stream: Stream, epoch: int = 0) -> np.random.RandomState:
    """Return a random generator on the host.

    RandomState is used because its numbers are promised to stay the same in every numpy.
    """
    number = derive(seed, stream, epoch)
    # As two words: a seed of RandomState is made of numbers of 32 bits.
    return np.random.RandomState([number & 0xFFFFFFFF, number >> 32])


def seed_global(number: int) -> None:
    """Seed the global generators of torch, numpy and Python, from which models draw weights and what they drop."""
    import torch

    torch.manual_seed(number)
    np.random.seed([number & 0xFFFFFFFF, number >> 32])
    random.seed(number)


def state_of(stream: np.random.RandomState) -> StreamState:
    """Return the state of a stream, as plain values, for a run that is stopped inside an epoch."""
    state: Any = stream.get_state(legacy=False)
    # A list for the array: a checkpoint holds tensors and plain values only.
    return {**state, "state": {"key": state["state"]["key"].tolist(), "pos": state["state"]["pos"]}}


def continued(stream: np.random.RandomState, state: StreamState | None) -> np.random.RandomState:
    """Return the stream, continued from its saved state; None leaves it at its beginning."""
    if state is not None:
        key = np.array(state["state"]["key"], np.uint32)
        stream.set_state({**state, "state": {"key": key, "pos": state["state"]["pos"]}})
    return stream
