"""Texts as a task gives them, and the numbers that a model's tokenizer makes of them.

Tokenising takes longer than all else before a run, so what comes out of it is kept in `<data folder>/tokens/` and read
from there as long as texts, tokenizer and libraries are the same. Reading it needs no tokenizer and starts no thread.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bench.core.data_folder import data_folder
from bench.core.errors import BenchError
from bench.store.run_folder import StorageError, write_atomic

# transformers takes a second to import, and cached tokens are read without it.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
"""Version of cached tokens; raise it when tokens cached by older code must not be used any more."""

CHUNK = 2048
"""Texts tokenised at a time: Python's lists of integers take ten times the memory of the final arrays."""

NO_LIMIT = 1_000_000
"""Lengths from here on mean no limit: transformers writes 1e30 for a tokenizer without one."""

VOCABULARIES = ("tokenizer.json", "vocab*", "*.model")
"""A tokenizer has at least one of these files; without one, transformers would make an empty tokenizer."""

TOKENIZER_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", *VOCABULARIES[1:])

POSITIONS_AFTER_PADDING = (
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm", "mpnet"),
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
)
"""Architectures that number positions from pad_token_id + 1: of RoBERTa's 514 positions a text can have 512."""


@dataclass(frozen=True)
class Texts:
    """Examples that are a text each, or a pair of texts.

    Attributes:
        first: the text, or the first of the pair.
        second: the second of the pair, for every example; None where there are no pairs.
    """

    first: Sequence[str]
    second: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, indices: Tensor) -> Texts:
        chosen = indices.tolist()
        second = None if self.second is None else [self.second[index] for index in chosen]
        return Texts([self.first[index] for index in chosen], second)


@dataclass(frozen=True)
class Tokens:
    """Texts as a model sees them.

    Attributes:
        ids: (N, 2, W) int32. Row 0 are token ids, -1 where the text is over; row 1 segment ids (1 in the second text
            of a pair), 0 where the text is over and where the tokenizer does not tell texts of a pair apart. W is the
            longest, after cutting.
        lengths: (N,) int32, tokens of each text before it was cut, those that the tokenizer adds included.
        limit: what texts were cut to, in tokens.
    """

    ids: Tensor
    lengths: np.ndarray[Any, Any]
    limit: int


@dataclass(frozen=True)
class TokenRun:
    """All texts' tokens in one row, one text after the other, as they are kept on disk.

    Attributes:
        ids: (T,) int32.
        segments: (T,) uint8.
        lengths: (N,) int32, before cutting.
    """

    ids: np.ndarray[Any, Any]
    segments: np.ndarray[Any, Any]
    lengths: np.ndarray[Any, Any]


def encode(texts: Texts, tokenizer: Path, max_length: int) -> Tokens:
    """Tokenise texts, or read their cached tokens.

    Pairs that are too long lose tokens from the longer of the two first ("longest_first" of transformers). Where a
    tokenizer puts nothing between the texts of a pair (GPT-2's), its end-of-text token is put there, as Radford et al.
    2018 do.

    Args:
        tokenizer: a folder with a tokenizer's files and, of its model, config.json.
        max_length: tokens of a text, or of a pair, that are kept; fewer where tokenizer or model allow no more.

    Raises:
        BenchError: there is no tokenizer in the folder, it is damaged or not the model's, max_length is too small, or a
            text has no tokens.
    """
    limit = longest(max_length, tokenizer)
    run = token_run(texts, tokenizer, limit)
    return Tokens(_padded(run, limit), run.lengths, limit)


def token_run(texts: Texts, tokenizer: Path, limit: int) -> TokenRun:
    """Tokenise texts, cut to `limit` tokens each, or read their cached tokens; see `encode` for what is raised."""
    path = data_folder() / "tokens" / f"{_key(texts, tokenizer, limit)}.safetensors"
    run = _read(path, len(texts), limit)
    if run is None:
        run = _tokenise(texts, tokenizer, limit)
        # Checked before the tokens are cached, so that tokens of a wrong tokenizer are never kept.
        _check_vocabulary(run, tokenizer, of_model(tokenizer))
        if len(run.lengths) and not run.lengths.all():
            raise BenchError(
                f"text {int(run.lengths.argmin()) + 1} of {len(run.lengths)} has no tokens, and the tokenizer in "
                f"{tokenizer} adds none of its own; leave that example out, or take another checkpoint"
            )
        with suppress(StorageError):  # nothing is lost but time
            write_atomic(path, _packed(run))
    return run


def longest(wanted: int, tokenizer: Path) -> int:
    """Return `wanted`, or fewer tokens where tokenizer or model allow no more in one text."""
    return _limit(wanted, _json(tokenizer / "tokenizer_config.json"), of_model(tokenizer))


def of_model(tokenizer: Path) -> dict[str, Any]:
    """Return config.json of the model that a tokenizer belongs to; {} if the folder has none."""
    return _json(tokenizer / "config.json")


def fingerprint(texts: Texts) -> bytes:
    """Return the sha256 over texts and their order; an empty text differs from a missing one."""
    digest = hashlib.sha256()
    for column in (texts.first,) if texts.second is None else (texts.first, texts.second):
        # JSON can hold half of a surrogate pair, which plain UTF-8 refuses.
        raw = [text.encode(errors="surrogatepass") for text in column]
        digest.update(f"{len(raw)} texts".encode())
        # The lengths are hashed too: ("ab", "c") and ("a", "bc") are the same letters in a row.
        digest.update(np.array([len(text) for text in raw], dtype="<i8").tobytes())
        digest.update(b"".join(raw))
    return digest.digest()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars, reports and warnings off the terminal; afterwards all is as it was."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def first_line(error: BaseException) -> str:
    """Return the first line of an error, joined with the next line if the first is only a heading."""
    heading, _, details = f"{error}".strip().partition("\n")
    line = " ".join([heading, details.strip().partition("\n")[0]]) if heading.endswith(":") else heading
    return (line if len(line) <= 300 else f"{line[:300]} ...") or type(error).__name__


# ---- what the folder says ------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, or {} if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} cannot be read: {error}; replace it with an intact copy") from error
    if not isinstance(content, dict):
        raise BenchError(f"{path} is damaged: it holds no table; replace it with an intact copy")
    return content


def _limit(max_length: int, settings: dict[str, Any], config: dict[str, Any]) -> int:
    positions = config.get("max_position_embeddings", config.get("n_positions"))  # GPT-2 has the other name for it
    if isinstance(positions, int) and config.get("model_type") in POSITIONS_AFTER_PADDING:
        # Without an entry in config.json the token of padding is 1, as in RoBERTa.
        padding = config.get("pad_token_id")
        positions -= (1 if padding is None else padding) + 1
    # max_len is the name in files of early versions of transformers.
    allowed = (settings.get("model_max_length", settings.get("max_len")), positions)
    sane = (int(most) for most in allowed if isinstance(most, int | float) and 0 < most < NO_LIMIT)
    return min((max_length, *sane))


def _key(texts: Texts, folder: Path, limit: int) -> str:
    """Return a hash of everything that determines the tokens: texts, limit, tokenizer and versions of libraries."""
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers", "transformers")}
    files = {path for pattern in ("config.json", *TOKENIZER_FILES) for path in folder.glob(pattern) if path.is_file()}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    parts = {"format": FORMAT, "texts": fingerprint(texts).hex(), "limit": limit, "files": hashes, **versions}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# ---- tokenising ----------------------------------------------------------------------------------------------


def _tokenise(texts: Texts, folder: Path, limit: int) -> TokenRun:
    tokenizer = _load(folder)
    if texts.second is not None:
        _separate_pairs(tokenizer, folder)
    added = tokenizer.num_special_tokens_to_add(pair=texts.second is not None)
    if limit <= added:
        raise BenchError(f"max_length = {limit} leaves no room for text: the tokenizer of {folder} adds {added} tokens")
    # An empty part first: there may be no texts, and numpy cannot concatenate an empty list.
    parts = [TokenRun(np.empty(0, np.int32), np.empty(0, np.uint8), np.empty(0, np.int32))]
    parts += [_chunk(texts, start, tokenizer, limit) for start in range(0, len(texts), CHUNK)]
    return TokenRun(*(np.concatenate([vars(part)[name] for part in parts]) for name in ("ids", "segments", "lengths")))


def _load(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder, from the folder's files alone.

    Raises:
        BenchError: the folder has no tokenizer, or transformers cannot build it.
    """
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise BenchError(f"no tokenizer in {folder}: it needs tokenizer.json, or vocab.txt and the like")
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            # Nothing is downloaded here, and no code that comes with a checkpoint is executed.
            return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each format has its own
        what = f"the tokenizer in {folder} cannot be loaded: {first_line(error)}"
        remedy = "" if isinstance(error, ImportError) else "; download its files again"
        raise BenchError(f"{what}{remedy}") from error


def _separate_pairs(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Put the end-of-text token between the texts of a pair if the tokenizer puts nothing there.

    Raises:
        BenchError: the tokenizer puts nothing there, and it cannot be made to.
    """
    alone, paired = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True))
    if paired > alone:
        return
    backend = getattr(tokenizer, "backend_tokenizer", None)
    # A new post-processor would no longer add what the old one adds to single texts (`alone`).
    if alone or backend is None or tokenizer.eos_token is None:
        raise BenchError(
            f"the tokenizer in {folder} puts nothing between the two texts of a pair; take a checkpoint "
            "that reads pairs"
        )
    from tokenizers.processors import TemplateProcessing

    end = str(tokenizer.eos_token)
    backend.post_processor = TemplateProcessing(
        single="$A", pair=f"$A:0 {end}:0 $B:1", special_tokens=[(end, tokenizer.eos_token_id)]
    )


def _chunk(texts: Texts, start: int, tokenizer: PreTrainedTokenizerBase, limit: int) -> TokenRun:
    """Return the tokens of a chunk of texts: tokenized uncut to count them, then again truncated if too long."""
    first = texts.first[start : start + CHUNK]
    second = None if texts.second is None else texts.second[start : start + CHUNK]
    whole = _call(tokenizer, first, second)
    ids, segments = whole["input_ids"], whole["token_type_ids"]
    lengths = np.fromiter(map(len, ids), np.int32, len(ids))
    long = np.flatnonzero(lengths > limit).tolist()
    if long:
        seconds = None if second is None else [second[index] for index in long]
        cut = _call(tokenizer, [first[index] for index in long], seconds, truncation="longest_first", max_length=limit)
        for number, index in enumerate(long):
            ids[index] = cut["input_ids"][number]
            segments[index] = cut["token_type_ids"][number]
    # Texts are cut to `limit` or stay as they are, so the number of tokens is known beforehand.
    kept = int(np.minimum(lengths, limit).sum())
    return TokenRun(
        np.fromiter(chain.from_iterable(ids), np.int32, kept),
        np.fromiter(chain.from_iterable(segments), np.uint8, kept),
        lengths,
    )


def _call(tokenizer: PreTrainedTokenizerBase, first: Sequence[str], second: Sequence[str] | None, **cut: Any) -> Any:
    pairs = () if second is None else (list(second),)
    # Segments are asked for: ALBERT's, XLNet's and other tokenizers have them and, unasked, keep them to themselves.
    asked = {"return_token_type_ids": True, "return_attention_mask": False}
    return tokenizer(list(first), *pairs, **cut, **asked, padding=False, verbose=False)


def _check_vocabulary(run: TokenRun, folder: Path, config: dict[str, Any]) -> None:
    """Raise an error for an id without an embedding, which would end a run on a GPU with a useless message."""
    known, highest = config.get("vocab_size"), int(run.ids.max(initial=0))
    if known and highest >= known:
        raise BenchError(
            f"the tokenizer in {folder} is not its model's: it gives token {highest}, and by config.json the model has "
            f"{known} tokens; get all files from one checkpoint"
        )


def _padded(run: TokenRun, limit: int) -> Tensor:
    """Return (N, 2, W) from one row."""
    kept = np.minimum(run.lengths, limit)
    width = int(kept.max(initial=0))
    is_there = np.arange(width) < kept[:, None]
    padded = np.zeros((len(kept), 2, width), np.int32)
    # Segment ids are padded with 0, but 0 is a valid token id: -1 says that the text is over.
    padded[:, 0] = -1
    # Places are filled row by row, which is the order of the texts in `run`.
    padded[:, 0][is_there] = run.ids
    padded[:, 1][is_there] = run.segments
    return torch.from_numpy(padded)


# ---- on disk -------------------------------------------------------------------------------------------------


def _packed(run: TokenRun) -> bytes:
    from safetensors.numpy import save

    return save({**vars(run), "sha256": _checksum(run)})


def _read(path: Path, count: int, limit: int) -> TokenRun | None:
    """Return the cached tokens; None if there are none, or the cache is damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(path.read_bytes())
        checksum = arrays.pop("sha256")
        run = TokenRun(**arrays)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    # A hash, because damage on the disk would otherwise go into results unseen.
    whole = np.array_equal(checksum, _checksum(run)) and len(run.lengths) == count
    return run if whole and len(run.ids) == np.minimum(run.lengths, limit).sum() else None


def _checksum(run: TokenRun) -> np.ndarray[Any, Any]:
    digest = hashlib.sha256()
    for array in vars(run).values():
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return np.frombuffer(digest.digest(), np.uint8)
