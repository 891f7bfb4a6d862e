"""Checkpoints of text encoders as the hub has them, but tiny: two layers of 32, random weights, a few words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, DistilBertConfig, ElectraConfig, RobertaConfig

from bench.data.splits import Split
from bench.data.tokens import Texts, encode, quiet_transformers
from bench.models.encoders import Encoder
from bench.tasks.base import Task

from .helpers import build, of_type

SENTENCES = (
    "a very good film about a dog",
    "not a good film",
    "the dog was not very good at all , though it was about the best dog that there was",
    "the film",
)
KINDS = ("bert", "roberta", "distilbert", "electra")


class Sentences(Task):
    """A stand-in task of text."""

    text = True
    input_shape = ()

    def __init__(self, num_outputs: int = 2) -> None:
        self.num_outputs = num_outputs

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("the stand-in has no data")


def write(folder: Path, kind: str, seed: int = 0, **config: Any) -> Path:
    """A checkpoint of one of KINDS: the net without a head, as after pretraining."""
    folder.mkdir(parents=True, exist_ok=True)
    size = write_byte_pairs(folder) if kind == "roberta" else write_word_pieces(folder)
    torch.manual_seed(seed)
    made = configuration(kind, size, **config)
    with quiet_transformers():
        AutoModel.from_config(made).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


def configuration(kind: str, vocab_size: int, **config: Any) -> Any:
    """Weights are large, so that such a small net tells texts apart."""
    config = {"vocab_size": vocab_size, "max_position_embeddings": 64, "initializer_range": 0.5, **config}
    if kind == "distilbert":
        return DistilBertConfig(n_layers=2, n_heads=4, dim=32, hidden_dim=64, **config)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
    if kind == "roberta":
        return RobertaConfig(**{"type_vocab_size": 1, **sizes, **config})
    if kind == "electra":
        return ElectraConfig(**{"embedding_size": 16, **sizes, **config})
    assert kind == "bert"
    return BertConfig(**{**sizes, **config})


def write_word_pieces(folder: Path) -> int:
    """A tokenizer as BERT's; the size of its vocabulary."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(" ".join(SENTENCES).split()))]
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(words)


def write_byte_pairs(folder: Path) -> int:
    """A tokenizer as RoBERTa's; the size of its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 62}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return tokenizer.get_vocab_size()


def tokens(folder: Path, texts: Texts | None = None) -> Tensor:
    """(N, 2, W) of some texts, those above if none are given."""
    return encode(texts or Texts(SENTENCES), folder, 64).ids


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def replace_weights(folder: Path, changed: dict[str, Tensor]) -> None:
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---- nets ----------------------------------------------------------------------------------------------------


def made(folder: Path, seed: int = 0, task: Sentences | None = None, **params: Any) -> Encoder:
    model = build("encoder", task or Sentences(3), seed, checkpoint=str(folder), **params)
    assert isinstance(model, Encoder)
    return model


def body(model: Encoder) -> dict[str, Tensor]:
    """Weights without the head's."""
    return {str(key): tensor for key, tensor in model.net.base_model.state_dict().items()}


def head(model: Encoder) -> dict[str, Tensor]:
    prefix = f"{model.net.base_model_prefix}."
    return {key: tensor for key, tensor in model.net.state_dict().items() if not key.startswith(prefix)}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def rates(model: Encoder) -> set[float]:
    return {module.p for module in of_type(model, nn.Dropout)}
