"""What holds for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.optim.base import weight_swap as moving
from tests.distributed.ranks import in_two_processes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tensors are too small to share, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def both_ways_of_moving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Biases in place and matrices elsewhere, as in nets that are not tiny."""
    monkeypatch.setattr(moving, "LARGE", 20)


@pytest.fixture(scope="session")
def in_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found in all cases of `in_two.py`, each by its name."""
    return in_two_processes("tests.optim.in_two", tmp_path_factory.mktemp("in_two"))
