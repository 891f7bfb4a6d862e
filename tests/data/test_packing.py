"""Documents as a model of the next token gets them: every token once, in blocks of one length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.data import tokens
from bench.data.packing import Documents, documents, pack
from bench.data.tokens import Texts
from bench.models.decoders import BYTES


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))


def numbered(*lengths: int) -> Documents:
    """Documents whose tokens are 0, 1, 2, ... from the first to the last."""
    return Documents(np.split(np.arange(sum(lengths), dtype=np.int32), np.cumsum(lengths)[:-1]))


@pytest.mark.parametrize(("lengths", "blocks"), [((3, 1, 9), 3), ((13,), 3), ((12,), 2), ((4,), 0), ((5,), 1)])
def test_every_token_is_once_an_input_and_once_a_target_in_blocks_of_one_length(
    lengths: tuple[int, ...], blocks: int
) -> None:
    inputs, targets = pack(numbered(*lengths), 4)
    assert (inputs.shape, targets.shape) == ((blocks, 1, 4), (blocks, 4))
    assert (inputs.dtype, targets.dtype) == (torch.int32, torch.int64)
    assert inputs.flatten().tolist() == list(range(4 * blocks))
    assert targets.flatten().tolist() == list(range(1, 4 * blocks + 1))


def test_nothing_makes_no_blocks() -> None:
    assert pack(Documents([]), 4)[0].shape == (0, 1, 4)


def test_chosen_documents_are_packed_alone_in_the_order_of_the_choice() -> None:
    inputs, targets = pack(numbered(3, 2, 4)[torch.tensor([2, 0])], 3)
    assert inputs.flatten().tolist() == [5, 6, 7, 8, 0, 1]
    assert targets.flatten().tolist() == [6, 7, 8, 0, 1, 2]


def test_the_tokens_of_bytes_are_the_bytes_and_each_document_has_a_beginning() -> None:
    texts = ["".join(map(chr, range(0x800))), "a\r\n  b\t", "語 𝄞 \U0010ffff"]
    made = documents(Texts(texts), BYTES, 8)
    assert [part.tolist() for part in made.tokens] == [[256, *text.encode()] for text in texts]


def test_documents_are_longer_than_any_text_and_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts(["long " * 3000, "short"])
    (first, _) = documents(texts, BYTES, 8).tokens
    assert len(first) == 1 + 15_000
    monkeypatch.setattr(tokens, "_tokenise", None)
    assert np.array_equal(documents(texts, BYTES, 8).tokens[0], first)


def config(folder: Path, **changes: int) -> Path:
    shutil.copytree(BYTES, folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def test_a_block_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    folder = config(tmp_path / "short", max_position_embeddings=16)
    assert len(documents(Texts(["abc"]), folder, 16)) == 1
    with pytest.raises(BenchError, match=r"task.block = 17, but the model of .* reads 16 tokens; take task.block = 16"):
        documents(Texts(["abc"]), folder, 17)


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    folder = config(tmp_path / "small", vocab_size=100)
    with pytest.raises(BenchError, match=r"not its model's: it gives token 122, and .* the model has 100 tokens"):
        documents(Texts(["abcz"]), folder, 8)
