"""Documents packed to blocks of one length, for models that predict the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import BenchError
from bench.data import tokens
from bench.data.tokens import Texts

UNCUT = int(np.iinfo(np.int32).max)
"""Limit on a document's tokens: none, since lengths are counted in int32."""


@dataclass(frozen=True)
class Documents:
    """Tokens of whole documents.

    Attributes:
        tokens: (L,) int32 per document, of its own L. Its first token marks a beginning, where the tokenizer has one.
    """

    tokens: Sequence[np.ndarray[Any, Any]]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, indices: Tensor) -> Documents:
        return Documents([self.tokens[index] for index in indices.tolist()])


def documents(texts: Texts, tokenizer: Path, block: int) -> Documents:
    """Tokenise documents whole, or read their cached tokens.

    Each begins with the token that the tokenizer puts there or, where it puts none (GPT-2's), with the model's
    bos_token_id, else its eos_token_id: the first word of a document is then predicted from no word of another's.

    Raises:
        BenchError: the model reads fewer than `block` tokens at a time, or as `bench.data.tokens.encode` has it.
    """
    most = tokens.longest(block, tokenizer)
    if most < block:
        raise BenchError(
            f"task.block = {block}, but the model of {tokenizer} reads {most} tokens; take task.block = {most}"
        )
    run = tokens.token_run(texts, tokenizer, UNCUT)
    config = tokens.of_model(tokenizer)
    first = next((config[key] for key in ("bos_token_id", "eos_token_id") if isinstance(config.get(key), int)), None)
    parts = np.split(run.ids, np.cumsum(run.lengths)[:-1]) if len(texts) else []
    return Documents([part if first in (None, part[0]) else np.insert(part, 0, first) for part in parts])


def pack(parts: Documents, block: int) -> tuple[Tensor, Tensor]:
    """Cut a row of documents, one after the other, into blocks of one length.

    The target of a token is the token after it, so that every token of the row but the first is predicted once, from
    those before it in its block. What fills no block at the end is left out.

    Args:
        block: W, tokens per block.

    Returns:
        Inputs (N, 1, W) int32 and targets (N, W) int64.
    """
    row = np.concatenate([np.empty(0, np.int32), *parts.tokens])
    count = max(0, len(row) - 1) // block
    inputs, targets = (row[start : start + count * block].reshape(count, block) for start in (0, 1))
    return torch.from_numpy(inputs[:, None].copy()), torch.from_numpy(targets.astype(np.int64))
