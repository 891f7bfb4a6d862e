"""Checkpoints of tiny encoders, no hub; and one thread: where the machine is busy, two wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from .encoder_files import KINDS, write


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder and an empty hub cache; and no network, however the hub's library is called."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "data"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def folder(tmp_path: Path, kind: str) -> Path:
    """A checkpoint of each kind in turn."""
    return write(tmp_path / kind, kind)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write(tmp_path / "bert", "bert")
