"""Text of a user's own: which documents are in which set, perplexity, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import BenchError
from bench.core.spec import DataSettings
from bench.data.packing import documents
from bench.models.decoders import BYTES
from bench.tasks.base import Data, prepare_data
from bench.tasks.text_lm import TextLM

LETTERS = "abcdefghijklmnopqrst"


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty documents of 30 letters, each of one letter of its own."""
    for letter in LETTERS:
        (tmp_path / "texts" / letter).mkdir(parents=True)
        (tmp_path / "texts" / letter / "one.txt").write_text(30 * letter)
    return tmp_path / "texts"


def prepared(task: TextLM, seed: int = 0, phase: Any = None, **settings: Any) -> Data:
    data = DataSettings(**({"validation": 0.2} | settings))
    return prepare_data(task, data, seed, lambda texts: documents(texts, BYTES, task.block), phase)


def letters(data: Data) -> dict[str, set[str]]:
    return {
        name: {chr(token) for token in (*split.inputs.flatten(), *split.targets.flatten()) if token != 256}
        for name, split in data.splits().items()
    }


# ---- splits --------------------------------------------------------------------------------------------------


def test_no_document_is_in_two_sets_and_none_is_lost(folder: Path) -> None:
    data = prepared(TextLM(path=str(folder), block=10))
    seen = letters(data)
    assert set.union(*seen.values()) == {*LETTERS}
    assert [len(seen[name]) for name in ("train", "val", "test")] == [14, 4, 2]  # which makes 20: none is in two
    for name, split in data.splits().items():
        tokens = 31 * len(seen[name])  # the beginning of each document is one
        assert split.inputs.shape == ((tokens - 1) // 10, 1, 10), name
        assert split.lengths is not None
        assert split.lengths.tolist() == [10] * len(split)


def test_the_test_set_is_the_same_in_every_run_and_validation_changes_in_tuning(folder: Path) -> None:
    task = TextLM(path=str(folder), block=10)
    runs = [letters(prepared(task, seed)) for seed in (0, 1)]
    assert runs[0] == runs[1]
    tuned = [letters(prepared(task, seed, "tune")) for seed in (0, 1)]
    assert tuned[0]["val"] != tuned[1]["val"]
    assert [{*seen} for seen in tuned] == [{"train", "val"}] * 2
    for seen in tuned:
        assert not (seen["train"] | seen["val"]) & runs[0]["test"]
    refit = letters(prepared(task, 0, "refit"))
    assert refit == {"train": runs[0]["train"] | runs[0]["val"], "test": runs[0]["test"]}


def test_a_smaller_training_set_has_fewer_documents(folder: Path) -> None:
    task = TextLM(path=str(folder), block=10)
    assert len(letters(prepared(task, train_size=5))["train"]) == 5
    assert prepared(task, train_size=5).fingerprint == prepared(task).fingerprint


def test_a_file_is_cut_into_contiguous_parts_of_whole_lines(tmp_path: Path) -> None:
    text = "".join(f"line {number:03}\n" for number in range(100)) + "the last has no end"
    (tmp_path / "book").write_text(text)
    train, test = TextLM(path=str(tmp_path / "book"), parts=10, test=0.2).load()
    parts = [*train.inputs.first, *test.inputs.first]
    assert (len(train), len(test)) == (8, 2)
    assert "".join(sorted(parts)) == text  # lines are numbered, and "t" comes last
    assert all(part.endswith("\n") for part in sorted(parts)[:-1])
    assert {len(part) // 9 for part in parts} <= {9, 10, 11}


def test_lines_and_the_mark_of_byte_order_are_read_as_they_are(tmp_path: Path) -> None:
    for number, raw in enumerate((b"\xef\xbb\xbfa\r\nb", b"c\rd\n", b"e\xc2\x85f")):
        (tmp_path / f"{number}.md").write_bytes(raw)
    train, test = TextLM(path=str(tmp_path)).load()
    assert sorted([*train.inputs.first, *test.inputs.first]) == ["a\r\nb", "c\rd\n", "e\x85f"]


def test_the_number_of_blocks_is_about_that_of_the_plan(folder: Path) -> None:
    task = TextLM(path=str(folder), block=10)
    assert task.train_examples() == 18
    assert task.blocks_of(14) == 42 <= len(prepared(task).train) == 43


# ---- perplexity ----------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_tokens_and_perplexity_its_exponential() -> None:
    task = TextLM(path="unread")
    outputs = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2, 3], [4, 4, 0, 0], [2, 3, 1, 0]])
    by_hand = [
        [-math.log(math.exp(row[token]) / sum(map(math.exp, row))) for row, token in zip(block, told, strict=True)]
        for block, told in zip(outputs.tolist(), targets.tolist(), strict=True)
    ]
    means = [sum(block) / 4 for block in by_hand]
    kept = task.kept(outputs, targets)
    assert kept.flatten().tolist() == pytest.approx([loss for block in by_hand for loss in block], rel=1e-5)
    for one in (outputs, kept):
        assert task.losses(one, targets).tolist() == pytest.approx(means, rel=1e-5)
        assert task.score(one, targets) == pytest.approx(math.exp(sum(means) / 3), rel=1e-5)


def test_knowing_nothing_is_a_perplexity_of_the_vocabulary_and_a_very_bad_model_one_of_infinity() -> None:
    task = TextLM(path="unread")
    targets = torch.zeros(2, 3).long()
    assert task.score(torch.zeros(2, 3, 257), targets) == pytest.approx(257)
    assert task.score(torch.full((2, 3), 1e4), targets) == math.inf
    assert not task.metric.higher_is_better


# ---- bad input -----------------------------------------------------------------------------------------------


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(BenchError) as caught:
        prepared(TextLM(path=str(path), **settings))
    return str(caught.value)


def test_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    assert refused(tmp_path / "no") == f"{tmp_path / 'no'} is neither a text file nor a folder of such files"
    (tmp_path / "image.png").write_bytes(b"png")
    assert refused(tmp_path).startswith(f"{tmp_path} has no text files in it (.md, ")


def test_an_empty_file_is_told(folder: Path) -> None:
    (folder / "b" / "one.txt").write_text(" \n")
    assert refused(folder) == f"{folder / 'b' / 'one.txt'} is empty; move it away"


def test_a_file_in_another_encoding_is_told_with_its_line(folder: Path) -> None:
    (folder / "b" / "one.txt").write_bytes("one\ntwo é\n".encode("latin-1"))
    assert refused(folder).startswith(f"{folder / 'b' / 'one.txt'}, line 2: byte 0xe9 is not UTF-8; ")


def test_too_few_documents_and_too_few_lines_are_told(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    path.write_text("one line\nand another\n")
    assert "has 1 documents; at least 3 are needed" in refused(path)
    assert "task.parts = 20" in refused(path)
    assert refused(path, parts=3).startswith(f"{path}: its 2 lines make 2 parts, fewer than task.parts = 3")


@pytest.mark.parametrize(
    ("block", "name", "tokens"), [(70, "test", "2 of the documents, 62 tokens"), (500, "train", "14")]
)
def test_a_set_without_a_whole_block_is_told(folder: Path, block: int, name: str, tokens: str) -> None:
    said = refused(folder, block=block)
    assert said.startswith(f"the {name} set has {tokens}")
    assert f"task.block = {block}" in said


def test_labels_cannot_be_replaced(folder: Path) -> None:
    with pytest.raises(BenchError, match="needs a task with classes"):
        prepared(TextLM(path=str(folder), block=10), label_noise=0.2)
