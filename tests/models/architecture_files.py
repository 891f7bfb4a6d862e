"""Checkpoints of every architecture in `encoders.COMMON`: tiny, of random weights, with tokenizers of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bench.data.tokens import quiet_transformers

from .encoder_files import SENTENCES

WORDS = sorted(set(" ".join(SENTENCES).split()))
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
XLNET = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")


def word_pieces(made: Any, special: tuple[str, ...] = BERT) -> Any:
    return made(vocab={word: number for number, word in enumerate((*special, *WORDS))})


def unigrams(made: Any, special: tuple[str, ...], **settings: Any) -> Any:
    words = [(f"▁{word}", -2.0) for word in WORDS]
    letters = [(letter, -6.0) for letter in ("▁", *sorted(set("".join(WORDS))))]
    return made(vocab=[*((token, 0.0) for token in special), *words, *letters], **settings)


def byte_pairs(made: Any, special: tuple[str, ...]) -> Any:
    tokenizer, alphabet = Tokenizer(models.BPE()), pre_tokenizers.ByteLevel.alphabet()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return made(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


SIZES = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
}
DISENTANGLED = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
DECODER = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}

Architecture = tuple[Callable[[], Any], type, dict[str, Any]]  # its tokenizer, its configuration's class, its sizes
ARCHITECTURES: dict[str, Architecture] = {
    "bert": (lambda: word_pieces(hf.BertTokenizer), hf.BertConfig, SIZES),
    "roberta": (lambda: byte_pairs(hf.RobertaTokenizer, ROBERTA), hf.RobertaConfig, {**SIZES, "type_vocab_size": 1}),
    "distilbert": (
        lambda: word_pieces(hf.DistilBertTokenizer),
        hf.DistilBertConfig,
        {"n_layers": 2, "n_heads": 4, "dim": 32, "hidden_dim": 64, "initializer_range": 0.5},
    ),
    "electra": (lambda: word_pieces(hf.BertTokenizer), hf.ElectraConfig, {**SIZES, "embedding_size": 16}),
    "albert": (
        lambda: unigrams(hf.AlbertTokenizer, ("<pad>", *BERT[1:])),
        hf.AlbertConfig,
        {**SIZES, "embedding_size": 16},
    ),
    "deberta": (lambda: byte_pairs(hf.DebertaTokenizer, BERT), hf.DebertaConfig, DISENTANGLED),
    "deberta-v2": (
        lambda: unigrams(hf.DebertaV2Tokenizer, BERT),
        hf.DebertaV2Config,
        {**DISENTANGLED, "position_buckets": 16, "conv_kernel_size": 3, "conv_act": "gelu"},
    ),
    "modernbert": (
        lambda: word_pieces(hf.BertTokenizer),
        hf.ModernBertConfig,
        {**SIZES, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "local_attention": 4},
    ),
    "mpnet": (
        lambda: word_pieces(hf.MPNetTokenizer, ("<s>", "<pad>", "</s>", "[UNK]", "<mask>")),
        hf.MPNetConfig,
        SIZES,
    ),
    "xlnet": (
        lambda: unigrams(hf.XLNetTokenizer, XLNET),
        hf.XLNetConfig,
        {"n_layer": 2, "n_head": 4, "d_model": 32, "d_inner": 64, "initializer_range": 0.5},
    ),
    "squeezebert": (lambda: word_pieces(hf.BertTokenizer), hf.SqueezeBertConfig, {**SIZES, "embedding_size": 32}),
    "funnel": (
        lambda: word_pieces(hf.FunnelTokenizer, ("<pad>", "<unk>", "<cls>", "<sep>", "<mask>", "<s>", "</s>")),
        hf.FunnelConfig,
        {
            "block_sizes": [1, 1, 1],
            "num_decoder_layers": 1,
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 64,
            "initializer_range": 0.5,
        },
    ),
    "big_bird": (
        lambda: unigrams(hf.BigBirdTokenizer, ("<pad>", "<unk>", "<s>", "</s>", *BERT[2:])),
        hf.BigBirdConfig,
        {**SIZES, "sep_token_id": 5},
    ),
    "xlm-roberta": (
        lambda: unigrams(hf.XLMRobertaTokenizer, ROBERTA),
        hf.XLMRobertaConfig,
        {**SIZES, "type_vocab_size": 1},
    ),
    "camembert": (
        lambda: unigrams(hf.CamembertTokenizer, ROBERTA),
        hf.CamembertConfig,
        {**SIZES, "type_vocab_size": 1},
    ),
    "convbert": (lambda: word_pieces(hf.ConvBertTokenizer), hf.ConvBertConfig, {**SIZES, "embedding_size": 32}),
    "nystromformer": (
        lambda: unigrams(hf.AlbertTokenizer, ("<pad>", *BERT[1:])),
        hf.NystromformerConfig,
        SIZES,
    ),
    # RoFormer's own tokenizer cuts Chinese into words with the package rjieba.
    "roformer": (lambda: word_pieces(hf.BertTokenizer), hf.RoFormerConfig, {**SIZES, "embedding_size": 32}),
    "rembert": (
        lambda: unigrams(hf.RemBertTokenizer, BERT, pad_token="[PAD]", unk_token="[UNK]"),
        hf.RemBertConfig,
        {**SIZES, "input_embedding_size": 16, "bos_token_id": 2, "eos_token_id": 3},
    ),
    "ernie": (lambda: word_pieces(hf.BertTokenizer), hf.ErnieConfig, SIZES),
    "t5": (
        lambda: unigrams(hf.T5Tokenizer, ("<pad>", "</s>", "<unk>"), extra_ids=0),
        hf.T5Config,
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "gpt2": (
        lambda: byte_pairs(hf.GPT2Tokenizer, ("<|endoftext|>",)),
        hf.GPT2Config,
        {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "initializer_range": 0.5, **DECODER},
    ),
    "llama": (
        lambda: byte_pairs(hf.LlamaTokenizer, ("<unk>", "<s>", "</s>")),
        hf.LlamaConfig,
        {**SIZES, **DECODER, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "qwen3": (
        lambda: byte_pairs(hf.Qwen2Tokenizer, ("<|endoftext|>",)),
        hf.Qwen3Config,
        {**SIZES, **DECODER, "head_dim": 8, "num_key_value_heads": 2},
    ),
    "xmod": (
        lambda: unigrams(hf.XLMRobertaTokenizer, ROBERTA),
        hf.XmodConfig,
        {**SIZES, "type_vocab_size": 1, "languages": ["en_XX", "de_DE"]},
    ),
    "fnet": (lambda: word_pieces(hf.BertTokenizer), hf.FNetConfig, SIZES),
}


def write_architecture(folder: Path, kind: str, *, head: bool = False) -> Path:
    """A checkpoint as transformers saves it: the net without a head, or with the head of another task."""
    make_tokenizer, make_config, sizes = ARCHITECTURES[kind]
    with quiet_transformers():
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(folder)
        padding = {"pad_token_id": tokenizer.pad_token_id} if "pad_token_id" not in sizes else {}
        config = make_config(vocab_size=len(tokenizer), num_labels=5, **padding, **sizes)
        torch.manual_seed(0)
        net = hf.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        (net if head else net.base_model).save_pretrained(folder)
    return folder
