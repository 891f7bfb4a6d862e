"""Text of your own, to predict token by token."""

from __future__ import annotations

import functools
from itertools import groupby
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.registry import register_task
from bench.data.datasets import FileSignature, signature
from bench.data.splits import Split
from bench.data.tokens import Texts
from bench.data.user_files import TestShare, hold_out
from bench.tasks.base import Metric, Task

ENDINGS = (".md", ".rst", ".text", ".txt")

PERPLEXITY = Metric(
    "ppl",
    "perplexity",
    "",
    1.0,
    False,
    "exp of the mean cross-entropy (nats) of each token given those before it in its block",
    lowest=1.0,
)


@register_task("text_lm")
class TextLM(Task):
    """Text of your own: predict each token from those before it; the score is perplexity, lower is better.

    A folder's files (.md, .rst, .text, .txt; those in folders below it, too), or one file of any name, in UTF-8. A file
    is a document, or several (`parts`). Documents are shared out whole to training, validation and test: a share of
    them in [data] is one of documents. Those of each set are then packed to blocks of one length, which are the
    examples that a batch holds. Perplexities of models with different tokenizers cannot be compared.

    Args:
        path: the folder or the file, relative to the experiment file. Not it but what is in it is part of a run's
            identity.
        block: tokens per block, and the longest context of a prediction.
        parts: contiguous parts that each file is cut into, at ends of lines, with about as many characters each; each
            part is a document of its own.
        test: share of the documents that is the test set, the same in every run.

    Raises:
        BenchError: a file is missing, empty or not UTF-8, or there are too few documents; the message names it.
    """

    text = True
    num_outputs = 0
    input_shape = ()
    metric = PERPLEXITY
    loss_name = "cross-entropy per token (nats)"
    block: int

    def __init__(
        self,
        *,
        path: str,
        block: Annotated[int, Field(ge=2)] = 128,
        parts: Annotated[int, Field(ge=1)] = 1,
        test: TestShare = 0.1,
    ) -> None:
        self.root, self.block, self.parts, self.test = Path(path), block, parts, test
        self.title = self.root.stem

    @classmethod
    def files(cls, path: Path) -> list[Path]:
        """Return the text files below a folder, sorted by name; of a file, the file itself."""
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise BenchError(f"{path} is neither a text file nor a folder of such files")
        # Sorted, because a file system lists files in any order, and the split depends on theirs.
        there = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())
        if not there:
            raise BenchError(f"{path} has no text files in it ({', '.join(ENDINGS)})")
        return there

    def fetch(self) -> None:
        """Read all files once, so that an unreadable one is reported before any run starts."""
        self.load()

    def load(self) -> tuple[Split, Split]:
        """Return the documents of the training and of the test set: inputs `Texts`, targets (N,) of zeros.

        The targets, next tokens, are there once a model's tokenizer has made tokens: see `bench.data.packing`.
        """
        texts = self._documents()
        if len(texts) < 3:
            raise BenchError(
                f"{self.root} has {len(texts)} documents; at least 3 are needed, to train, to validate and to test: "
                "cut each file into parts (task.parts = 20)"
            )
        parts = hold_out(np.zeros(len(texts), np.int64), self.test, str(self.root), ["document"])
        train, test = (Texts([texts[index] for index in part]) for part in parts)
        return Split(train, torch.zeros(len(train)).long()), Split(test, torch.zeros(len(test)).long())

    def train_examples(self) -> int:
        return len(self.load()[0])

    def blocks_of(self, examples: int) -> int:
        """Return about how many blocks documents make: as many as if every byte were a token."""
        size = sum(size for _, size, _ in map(signature, self.files(self.root)))
        return max(1, examples * size // len(self._documents()) // self.block)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each block, shape (N,): the mean cross-entropy of its tokens.

        Args:
            outputs: (N, W, vocabulary) logits, or (N, W), what `kept` has made of them.
            targets: (N, W) the next tokens.
        """
        return (outputs if outputs.ndim == 2 else self.kept(outputs, targets)).mean(dim=1)

    def kept(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of each token, shape (N, W): logits of a whole split would fill the memory."""
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        # In double precision; torch's exp gives inf where Python's fails.
        return self.losses(outputs, targets).double().mean().exp().item()

    def _documents(self) -> tuple[str, ...]:
        # The signatures are the cache's key, so that a changed file is read again.
        return _read(tuple(map(signature, self.files(self.root))), self.parts)


@functools.lru_cache(maxsize=2)
def _read(files: tuple[FileSignature, ...], parts: int) -> tuple[str, ...]:
    """Return the documents of all files, in the order of the files."""
    return tuple(part for path, _, _ in files for part in _cut(_text(path), parts, path))


def _text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # without the mark of byte order that some editors write first
    except OSError as error:
        raise BenchError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise BenchError(
            f"{path}, line {line}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8 "
            "(iconv -f OLD -t UTF-8), or move it away"
        ) from error
    if not text.strip():
        raise BenchError(f"{path} is empty; move it away")
    return text


def _cut(text: str, parts: int, path: Path) -> list[str]:
    """Return contiguous parts of a text with whole lines; together they are the text."""
    lines = text.splitlines(keepends=True)
    # A line belongs to the part that its first character would be in if the text were cut anywhere.
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    numbers = (starts * parts // len(text)).tolist()
    made = ["".join(line for line, _ in part) for _, part in groupby(zip(lines, numbers, strict=True), lambda x: x[1])]
    if len(made) < parts:
        raise BenchError(
            f"{path}: its {len(lines)} lines make {len(made)} parts, fewer than task.parts = {parts}; take fewer, or "
            "break long lines"
        )
    return made
