"""The tokenizer of a run's model, as a task with texts needs it."""

from __future__ import annotations

from bench.core.registry import models
from bench.core.spec import RunSpec
from bench.data import packing, tokens
from bench.tasks.base import Encode, Task


def encoder(spec: RunSpec, task: Task) -> Encode | None:
    """Return the model's tokenizer as a function of texts; None for a task without texts."""
    tokenizer = models[spec.model.name].tokenizer
    if not task.text or tokenizer is None:
        return None
    folder, block = tokenizer(spec.model.params), task.block
    if block is not None:
        return lambda texts: packing.documents(texts, folder, block)
    return lambda texts: tokens.encode(texts, folder, task.max_length)
