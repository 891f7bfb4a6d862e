"""Batches of an epoch: seeded, each example at most once, and of about one length where lengths differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.core.seeding import numpy_stream
from bench.data import batching
from bench.data.splits import Split

WIDTH = 64


def texts(count: int, seed: int = 0) -> Split:
    """`count` texts of 1 to 80 tokens, cut to 64: example n has the token n wherever it has one."""
    lengths = np.random.RandomState(seed).randint(1, 81, size=count)
    ids = np.full((count, 2, WIDTH), -1)
    for number, length in enumerate(lengths):
        ids[number, :, :length] = number
    return Split(torch.from_numpy(ids), torch.arange(count), lengths=lengths)


def plain(count: int) -> Split:
    return Split(torch.arange(count * 2).view(count, 2), torch.arange(count))


def orders(split: Split, seed: int, epoch: int, size: int = 8) -> list[list[int]]:
    return [b.examples.tolist() for b in batching.epoch(split, numpy_stream(seed, "order", epoch), size)]


@pytest.mark.parametrize("make", [texts, plain])
def test_an_epoch_is_full_batches_of_different_examples(make) -> None:
    batches = orders(make(1003), seed=0, epoch=0)
    assert [len(batch) for batch in batches] == [8] * 125
    assert len({number for batch in batches for number in batch}) == 1000


@pytest.mark.parametrize("make", [texts, plain])
def test_the_order_belongs_to_the_seed_and_the_epoch(make) -> None:
    split = make(400)
    assert orders(split, 1, 5) == orders(split, 1, 5)
    assert orders(split, 1, 5) != orders(split, 1, 6)
    assert orders(split, 1, 5) != orders(split, 2, 5)


@pytest.mark.parametrize("make", [texts, plain])
def test_a_set_smaller_than_a_batch_is_one_batch(make) -> None:
    assert [sorted(batch) for batch in orders(make(5), 0, 0)] == [[0, 1, 2, 3, 4]]


def test_examples_of_one_size_come_in_the_order_of_the_permutation() -> None:
    """As they did before there were texts: every earlier run's bits hang on it."""
    expected = numpy_stream(3, "order", 2).permutation(100)[:96].reshape(-1, 8)
    assert orders(plain(100), 3, 2) == expected.tolist()


def test_a_batch_of_texts_is_cut_to_its_longest_and_loses_no_token() -> None:
    split = texts(500)
    for batch in batching.epoch(split, np.random.RandomState(0), 8):
        inputs, targets = batch.of(split)
        whole = split.inputs[batch.examples]
        assert inputs.shape == (8, 2, batch.width)
        assert torch.equal(targets, split.targets[batch.examples])
        assert (whole[..., batch.width :] == -1).all()
        longest = int((whole[:, 0] >= 0).sum(dim=1).max())
        assert batch.width is not None
        assert longest <= batch.width < longest + batching.MULTIPLE
        assert batch.tokens == int((whole[:, 0] >= 0).sum())


def test_bucketing_leaves_little_of_the_padding_and_still_mixes() -> None:
    split = texts(64 * batching.POOL)
    assert split.lengths is not None

    def padding(batches: list[batching.Batch]) -> int:
        return sum(len(b.examples) * b.width - b.tokens for b in batches if b.width is not None)

    bucketed = batching.epoch(split, np.random.RandomState(0), 16)
    shuffled = list(batching._batches(split, np.random.RandomState(0).permutation(len(split)), 16))
    assert padding(bucketed) < 0.25 * padding(shuffled)
    widths = [batch.width for batch in bucketed]
    assert sorted(widths) not in (widths, widths[::-1])  # type: ignore[type-var]
    other = batching.epoch(split, np.random.RandomState(1), 16)
    first = {frozenset(batch.examples.tolist()) for batch in bucketed}
    assert not first & {frozenset(batch.examples.tolist()) for batch in other}


def test_all_examples_by_length_for_evaluation() -> None:
    split = texts(203)
    assert split.lengths is not None
    batches = batching.by_length(split, 50)
    order = torch.cat([batch.examples for batch in batches])
    assert sorted(order.tolist()) == list(range(203))
    assert (np.diff(split.lengths[order.numpy()]) >= 0).all()
    assert [len(batch.examples) for batch in batches] == [50, 50, 50, 50, 3]
    assert torch.cat([batch.examples for batch in batching.by_length(plain(7), 3)]).tolist() == list(range(7))
