"""Training on texts: what sorting by length saves, and what keeping tokens saves. Part of `make perf`.

The texts are random words of about the lengths of RTE's pairs: speed depends on nothing else of them.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig

from bench.core.registry import models as networks
from bench.core.registry import optimizers, register_task
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data import batching
from bench.data import tokens as text
from bench.data.batching import Batch
from bench.data.splits import Split
from bench.data.tokens import Texts
from bench.tasks.base import Task
from bench.train import synchronize
from bench.training.step import TrainingRun, set_up

EXAMPLES, WORDS, STEPS = 2_000, 1_000, 6


@register_task("perf_texts")
class PerfTexts(Task):
    """Random words; lengths are log-normal with RTE's median of 52 tokens and its long tail."""

    num_outputs, input_shape, text = 2, (), True

    def load(self) -> tuple[Split, Split]:
        random = np.random.RandomState(0)
        lengths = np.exp(random.normal(np.log(50), 0.6, EXAMPLES)).astype(int).clip(3, 250)
        texts = Texts([" ".join(f"w{word}" for word in random.randint(WORDS, size=length)) for length in lengths])
        split = Split(texts, torch.from_numpy(random.randint(2, size=EXAMPLES)))
        return split, split[torch.arange(8)]


def on(device: torch.device, compare: Callable[[str, str, dict[str, Callable[[], float]]], None]) -> None:
    """Time batches made in three ways, and tokens got in two."""
    with tempfile.TemporaryDirectory() as place:
        before = os.environ.get("BENCH_DATA")
        os.environ["BENCH_DATA"] = place
        try:
            checkpoint = write_checkpoint(Path(place) / "checkpoint")
            run = set_up(make_spec(checkpoint), device)
            train, size = run.data.train, run.batch_size
            order = np.random.RandomState(1).permutation(len(train))[: run.steps * size]
            shuffled = list(batching._batches(train, order, size))
            rivals = {
                "sorted by length": steps_of(run, run.batches(0)),
                "shuffled": steps_of(run, shuffled),
                "all padded to 128": steps_of(run, [replace(batch, width=None) for batch in shuffled]),
            }
            compare("A step, BERT of 2 layers of 128, 32 texts of 3 to 128 tokens", "sorting is fastest", rivals)
            texts, folder = PerfTexts().load()[0].inputs, Path(checkpoint)
            compare(
                f"Tokens of {EXAMPLES:,} texts",
                "kept is fastest",
                {
                    "kept on disk": timed(lambda: text.encode(texts, folder, 128)),
                    "tokenised": timed(lambda: text._tokenise(texts, folder, 128)),
                },
            )
        finally:
            os.environ.pop("BENCH_DATA")
            if before is not None:
                os.environ["BENCH_DATA"] = before


def steps_of(run: TrainingRun, batches: list[Batch]) -> Callable[[], float]:
    """Seconds a step over a sample of an epoch's batches, the same share of it for every way of making them."""
    run.model.train()
    device = run.data.train.targets.device
    some = sorted(batches, key=lambda batch: batch.tokens)[:: len(batches) // STEPS]
    augment = np.random.RandomState(0)

    def seconds() -> float:
        synchronize(device)
        started = time.perf_counter()
        for batch in some:
            run.step(batch, augment)
        synchronize(device)
        return (time.perf_counter() - started) / len(some)

    return seconds


def timed(work: Callable[[], Any]) -> Callable[[], float]:
    def seconds() -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return seconds


def make_spec(checkpoint: str) -> RunSpec:
    params = {"checkpoint": checkpoint, "from_scratch": True}
    adamw = optimizers["adamw"].schema().model_dump()
    return RunSpec(
        task=ComponentSpec(name="perf_texts"),
        model=ComponentSpec(name="encoder", params=networks["encoder"].schema.model_validate(params).model_dump()),
        optimizer=OptimizerSpec(name="adamw", params=adamw),
        data=DataSettings(validation=0.1),
        train=TrainSettings(epochs=1, batch_size=32),
        seed=0,
    )


def write_checkpoint(folder: Path) -> str:
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size: dict[str, Any] = {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    }
    BertConfig(vocab_size=len(words), max_position_embeddings=128, **size).save_pretrained(folder)
    return str(folder)
