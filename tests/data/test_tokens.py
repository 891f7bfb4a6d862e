"""Texts as numbers, and what is kept of them on disk."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from bench.core.errors import BenchError
from bench.data import tokens as text
from bench.data.tokens import Texts, Tokens, encode, fingerprint

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "film", "dog", "##s"]
PAD, UNK, CLS, SEP, MASK, A, GOOD, FILM, DOG, S = range(len(VOCABULARY))

SINGLE = Texts(["a good film", "Dogs", "a a a a a a a a"])
PAIRS = Texts(["a good film", "dog"], ["dogs", "a a a a a a a a"])


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder's folder of tokens."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "tokens"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small BERT's tokenizer and configuration."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", model_max_length=32, do_lower_case=True)
    write(folder / "config.json", model_type="bert", vocab_size=len(VOCABULARY), max_position_embeddings=64)
    return folder


def write(path: Path, **content: Any) -> None:
    path.write_text(json.dumps(content))


def change(folder: Path, name: str, **content: Any) -> Path:
    """The folder, with a file in it changed; `...` takes a key out."""
    changed = {**json.loads((folder / name).read_text()), **content}
    write(folder / name, **{key: value for key, value in changed.items() if value is not ...})
    return folder


def same(one: Tokens, other: Tokens) -> bool:
    return torch.equal(one.ids, other.ids) and np.array_equal(one.lengths, other.lengths) and one.limit == other.limit


# ---- tokens --------------------------------------------------------------------------------------------------


def test_each_text_is_its_tokens_and_then_nothing(folder: Path) -> None:
    tokens = encode(SINGLE, folder, 6)
    assert tokens.ids[:, 0].tolist() == [
        [CLS, A, GOOD, FILM, SEP, -1],
        [CLS, DOG, S, SEP, -1, -1],
        [CLS, A, A, A, A, SEP],
    ]
    assert not tokens.ids[:, 1].any()
    assert (tokens.ids.dtype, tokens.lengths.dtype) == (torch.int32, np.int32)


def test_lengths_are_those_before_cutting(folder: Path) -> None:
    tokens = encode(SINGLE, folder, 6)
    assert tokens.lengths.tolist() == [5, 4, 10]
    assert (tokens.lengths > tokens.limit).sum() == 1


def test_a_pair_is_two_segments_and_loses_tokens_of_the_longer_text_first(folder: Path) -> None:
    tokens = encode(PAIRS, folder, 9)
    assert tokens.ids.tolist() == [
        [[CLS, A, GOOD, FILM, SEP, DOG, S, SEP, -1], [0, 0, 0, 0, 0, 1, 1, 1, 0]],
        [[CLS, DOG, SEP, A, A, A, A, A, SEP], [0, 0, 0, 1, 1, 1, 1, 1, 1]],
    ]
    assert tokens.lengths.tolist() == [8, 12]


def test_segments_are_asked_for_where_a_tokenizer_keeps_them_to_itself(folder: Path) -> None:
    """As those of ALBERT, XLNet and others do, whose models have segments."""
    expected = encode(PAIRS, folder, 9)
    change(folder, "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    assert expected.ids[0, 1].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0]
    assert same(encode(PAIRS, folder, 9), expected)


@pytest.mark.parametrize("texts", [SINGLE, PAIRS], ids=["single", "pairs"])
def test_tokens_are_no_others_for_being_made_in_chunks(
    folder: Path, texts: Texts, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = encode(texts, folder, 9)
    for path in kept.iterdir():
        path.unlink()
    monkeypatch.setattr(text, "CHUNK", 1)
    assert same(encode(texts, folder, 9), at_once)


def test_no_texts_are_no_tokens(folder: Path) -> None:
    assert [encode(Texts([]), folder, 9).ids.shape for _ in range(2)] == [(0, 2, 0)] * 2


def test_what_the_file_of_a_tokenizer_says_of_cutting_and_padding_does_not_count(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert encode(SINGLE, folder, 12).lengths.tolist() == [5, 4, 10]


def test_a_tokenizer_that_is_a_list_of_words_will_do(folder: Path) -> None:
    expected = encode(PAIRS, folder, 9)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    assert same(encode(PAIRS, folder, 9), expected)


def test_nothing_is_printed_of_long_texts(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").addHandler(caplog.handler)
    encode(Texts(["a " * 100]), folder, 64)
    logging.getLogger("transformers").removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# ---- how long a text can be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "tokenizer", "config", "limit"),
    [
        (16, {}, {}, 16),
        (100, {}, {}, 32),
        (100, {"model_max_length": 1e30}, {}, 64),
        (100, {"model_max_length": None, "max_len": 1e30}, {"max_position_embeddings": -1}, 100),
        (100, {"model_max_length": 1e30}, {"model_type": "roberta", "pad_token_id": 1}, 62),
        (100, {"model_max_length": 1e30}, {"model_type": "mpnet", "pad_token_id": None}, 62),
        (100, {"model_max_length": 40}, {"model_type": "roberta", "pad_token_id": 1}, 40),
        (100, {"model_max_length": ..., "max_len": 7}, {}, 7),  # the name that old files have for it
    ],
)
def test_a_text_is_cut_to_what_is_asked_and_tokenizer_and_model_allow(
    folder: Path, asked: int, tokenizer: dict[str, Any], config: dict[str, Any], limit: int
) -> None:
    change(folder, "tokenizer_config.json", **tokenizer)
    change(folder, "config.json", **config)
    tokens = encode(Texts(["a " * 200, "a"]), folder, asked)
    assert (tokens.limit, tokens.ids.shape[-1]) == (limit, limit)
    assert tokens.lengths.tolist() == [202, 3]


@pytest.mark.parametrize(("texts", "added"), [(SINGLE, 2), (PAIRS, 3)], ids=["single", "pairs"])
def test_a_text_must_have_room_for_a_token_of_its_own(folder: Path, texts: Texts, added: int) -> None:
    assert encode(texts, folder, added + 1).ids.shape[-1] == added + 1
    with pytest.raises(BenchError, match=rf"max_length = {added} leaves no room for text: .* adds {added} tokens"):
        encode(texts, folder, added)


# ---- what is kept --------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders whose tokenizer was needed."""
    folders: list[Path] = []
    load = text._load

    def note(folder: Path) -> Any:
        folders.append(folder)
        return load(folder)

    monkeypatch.setattr(text, "_load", note)
    return folders


@pytest.mark.parametrize("texts", [SINGLE, PAIRS], ids=["single", "pairs"])
def test_texts_are_tokenised_once(folder: Path, texts: Texts, loaded: list[Path]) -> None:
    assert same(encode(texts, folder, 9), encode(texts, folder, 9))
    assert len(loaded) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda folder: encode(Texts([*SINGLE.first[:2], "a a a a a a a film"]), folder, 9),
        lambda folder: encode(SINGLE, folder, 8),
        lambda folder: encode(SINGLE, change(folder, "tokenizer_config.json", do_lower_case=False), 9),
        lambda folder: encode(SINGLE, change(folder, "config.json", type_vocab_size=1), 9),
    ],
    ids=["texts", "limit", "tokenizer", "config"],
)
def test_other_texts_or_tokenizers_or_limits_are_tokenised_anew(
    folder: Path, loaded: list[Path], other: Callable[[Path], Tokens]
) -> None:
    encode(SINGLE, folder, 9)
    other(folder)
    assert len(loaded) == 2


def test_tokens_of_two_limits_are_kept_side_by_side(folder: Path, loaded: list[Path]) -> None:
    for limit in (9, 8, 9, 8):
        encode(SINGLE, folder, limit)
    assert len(loaded) == 2


def test_a_limit_that_another_gives_is_the_same(folder: Path, loaded: list[Path]) -> None:
    assert same(encode(SINGLE, folder, 32), encode(SINGLE, folder, 1000))
    assert len(loaded) == 1


def test_a_tokenizer_is_known_by_its_content_not_its_place(folder: Path, loaded: list[Path]) -> None:
    encode(SINGLE, folder, 9)
    encode(SINGLE, folder.rename(folder.with_name("moved")), 9)
    assert len(loaded) == 1


def test_another_version_of_the_library_tokenises_anew(
    folder: Path, loaded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(SINGLE, folder, 9)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99")
    encode(SINGLE, folder, 9)
    assert len(loaded) == 2


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def one_bit_off(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.array([CLS, A, GOOD], np.int32).tobytes())] ^= 1
    path.write_bytes(raw)


def of_something_else(path: Path) -> None:
    save_file({"weights": np.zeros(3, np.float32)}, path)


def other_shape(path: Path) -> None:
    arrays = load_file(path)
    save_file({**arrays, "lengths": arrays["lengths"][:-1]}, path)


@pytest.mark.parametrize(
    "damage", [cut_short, one_bit_off, of_something_else, other_shape, lambda path: path.write_bytes(b"")]
)
def test_a_damaged_file_is_made_anew(
    folder: Path, kept: Path, loaded: list[Path], damage: Callable[[Path], object]
) -> None:
    whole = encode(SINGLE, folder, 9)
    [path] = kept.iterdir()
    content = path.read_bytes()
    damage(path)
    assert path.read_bytes() != content
    assert same(encode(SINGLE, folder, 9), whole)
    assert len(loaded) == 2
    assert path.read_bytes() == content


def test_where_nothing_can_be_written_nothing_is_kept(folder: Path, kept: Path, loaded: list[Path]) -> None:
    kept.parent.mkdir()
    kept.write_text("a file where the folder should be")
    assert same(encode(SINGLE, folder, 9), encode(SINGLE, folder, 9))
    assert len(loaded) == 2


# ---- processes -----------------------------------------------------------------------------------------------

WORK = """
import os, sys
from pathlib import Path
from bench.data.tokens import Texts, encode
before = len(os.listdir("/proc/self/task"))
tokens = encode(Texts(["a good film"] * 500), Path(sys.argv[1]), 9)
threads = len(os.listdir("/proc/self/task")) - before
print(tokens.ids.sum().item(), sorted({"tokenizers", "transformers"} & sys.modules.keys()), threads)
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"} | environment
    command, pipe = [sys.executable, "-c", WORK, str(folder)], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=variables)


def answer(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=1200)
    assert (process.returncode, errors) == (0, "")
    return out.strip()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
SUM = 500 * (CLS + A + GOOD + FILM + SEP)


@needs_proc
def test_what_is_kept_is_read_without_a_tokenizer_and_its_threads(folder: Path) -> None:
    encode(Texts(["a good film"] * 500), folder, 9)
    assert answer(start(folder)) == f"{SUM} [] 0"


@needs_proc
def test_the_environment_says_whether_there_are_threads(folder: Path) -> None:
    """A worker says no."""
    assert answer(start(folder, TOKENIZERS_PARALLELISM="false")) == f"{SUM} ['tokenizers', 'transformers'] 0"


@needs_proc
def test_two_processes_may_make_the_same_at_once(folder: Path, kept: Path) -> None:
    both = [start(folder) for _ in range(2)]
    assert [answer(process).split()[0] for process in both] == [f"{SUM}"] * 2
    assert [path.suffix for path in kept.iterdir()] == [".safetensors"]


# ---- no tokenizer --------------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_told(folder: Path) -> None:
    """transformers would take it, and know no word."""
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BenchError, match=f"no tokenizer in {folder}: it needs tokenizer.json"):
        encode(SINGLE, folder, 9)


@pytest.mark.parametrize("content", ['{"model": ', '{"model": {"type": "Unheard"}}', "[]"])
def test_a_damaged_tokenizer_is_told(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(BenchError, match=f"the tokenizer in {folder} cannot be loaded: .*download its files again"):
        encode(SINGLE, folder, 9)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ['{"vocab_size": ', "[]", b"\xff\xfe"])
def test_a_damaged_configuration_is_told(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BenchError, match=f"{folder / name} "):
        encode(SINGLE, folder, 9)


def test_the_tokenizer_of_another_model_is_told(folder: Path, kept: Path) -> None:
    change(folder, "config.json", vocab_size=FILM)
    with pytest.raises(BenchError, match=f"it gives token {FILM}, and by config.json the model has {FILM} tokens"):
        encode(Texts(["a good film"]), folder, 9)
    assert not kept.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Theirs: pass\n")
    change(
        folder,
        "tokenizer_config.json",
        tokenizer_class="Theirs",
        auto_map={"AutoTokenizer": ["theirs.Theirs", "theirs.Theirs"]},
    )
    change(folder, "config.json", model_type="theirs")
    with pytest.raises(BenchError, match=f"the tokenizer in {folder} cannot be loaded"):
        encode(SINGLE, folder, 9)
    assert not (tmp_path / "executed").exists()


# ---- fingerprint ---------------------------------------------------------------------------------------------


def test_no_two_lists_of_texts_have_the_same_fingerprint() -> None:
    texts = [
        Texts([]),
        Texts([""]),
        Texts(["", ""]),
        Texts(["ab", "c"]),
        Texts(["a", "bc"]),
        Texts(["abc"]),
        Texts(["c", "ab"]),
        Texts(["a", "b"], ["", ""]),
        Texts(["a", "b"]),
        Texts(["a"], ["b"]),
        Texts(["b"], ["a"]),
        Texts([], []),
        Texts(["\0" * 8], ["\0" * 16]),
        Texts(["\x10" + "\0" * 7, ""], ["", ""]),
        Texts(["é"]),
        Texts(["e\N{COMBINING ACUTE ACCENT}"]),
    ]
    assert len({fingerprint(each) for each in texts}) == len(texts)
    assert fingerprint(Texts(("a", "b"))) == fingerprint(Texts(["a", "b"]))
