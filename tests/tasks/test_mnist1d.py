"""MNIST-1D: the package's signals, the same in every process, and nobody's random numbers changed."""

from __future__ import annotations

import hashlib
import random
import sys

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.core.registry import models
from bench.tasks import mnist1d
from bench.tasks.mnist1d import MNIST1D


def test_it_has_4000_signals_to_train_on_and_1000_to_test_of_all_ten_digits() -> None:
    train, test = MNIST1D().load()
    assert (train.inputs.shape, test.inputs.shape) == ((4000, 40), (1000, 40))
    assert set(train.targets.tolist()) == set(test.targets.tolist()) == set(range(10))
    assert MNIST1D().train_examples() == 4000
    every = torch.cat([train.inputs, test.inputs])
    assert (float(every.mean()), float(every.std())) == pytest.approx((0, 1), abs=1e-3)


def test_the_signals_are_what_they_have_always_been() -> None:
    """If this fails, results before and after cannot be compared: another package made other data."""
    digest = hashlib.sha256()
    for split in MNIST1D().load():
        digest.update(split.inputs.mul(1000).round().to(torch.int16).numpy().tobytes())
        digest.update(split.targets.to(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == "d2a4de6c389daaee"


def test_more_test_examples_leave_the_number_for_training_as_it_is() -> None:
    train, test = MNIST1D(test_examples=2000).load()
    assert (len(train), len(test)) == (4000, 2000)
    with pytest.raises(BenchError, match="multiple of 10, got 1001"):
        MNIST1D(test_examples=1001)


def test_global_random_numbers_stay_as_they_were() -> None:
    mnist1d._generated.cache_clear()
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), float(np.random.rand())
    random.seed(5)
    np.random.seed(5)
    MNIST1D(test_examples=10).load()
    assert (random.random(), float(np.random.rand())) == expected


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    mnist1d._generated.cache_clear()
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(BenchError, match="pip install mnist1d"):
        MNIST1D(test_examples=20).load()


def test_the_papers_network_reads_signals_and_nothing_else() -> None:
    model = models["conv1d"].build(MNIST1D())
    assert model(torch.zeros(3, 40)).shape == (3, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 5210
    from bench.tasks.digits import Digits

    with pytest.raises(BenchError, match="needs signals of at least 7 numbers; the task gives examples of shape"):
        models["conv1d"].build(Digits())
