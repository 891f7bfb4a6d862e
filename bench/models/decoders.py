"""Decoders (GPT-2, Llama and kin) of transformers that predict the next token: pretrained, or from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.models.encoders import (
    AtLeastOne,
    drawn,
    fetch_encoder,
    load_weights,
    read_configuration,
    set_dropout,
    tokenizer,
)
from bench.models.lora import LoraOptions, add_adapters
from bench.models.pretrained import CONFIG, Checkpoint
from bench.models.vit import Rate
from bench.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BYTES = Path(__file__).with_name("bytes")
"""A tokenizer whose token n is byte n of UTF-8, and 256 the beginning of a document."""


class Decoder(nn.Module):
    """A language model of transformers that takes blocks as `bench.data.packing` makes them.

    Args:
        net: of AutoModelForCausalLM.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens_B1W: Tensor) -> Tensor:
        """Return logits (B, W, vocabulary) of the token after each of these, given those up to it."""
        logits_BWV: Tensor = self.net(input_ids=tokens_B1W[:, 0].long(), use_cache=False, return_dict=True).logits
        return logits_BWV


@register_model("decoder", fetch=fetch_encoder, tokenizer=tokenizer)
def decoder(
    task: Task,
    *,
    checkpoint: str = "gpt2",
    from_scratch: bool = False,
    dropout: Rate | None = None,
    **lora: Unpack[LoraOptions],
) -> nn.Module:
    """Any language model of the Hugging Face hub, or in a folder.

    Args:
        checkpoint: a name on the hub (gpt2, HuggingFaceTB/SmolLM2-135M), or a folder.
        from_scratch: take the architecture and the tokenizer alone, and draw all weights.
        dropout: all rates that the architecture has; the checkpoint's if left out.
        lora: adapters are trained alone; see `bench.models.lora.LoraOptions`.

    Raises:
        BenchError: the checkpoint is not there, damaged, of no architecture that predicts the next token, or of one
            that sees the token it is to predict.
    """
    _check_predicts_tokens(task)
    folder = Checkpoint(checkpoint, weights=not from_scratch).locate()
    config = read_configuration(folder)
    set_dropout(config, dropout, folder / CONFIG)
    return build(config, folder, pretrained=not from_scratch, lora=lora)


@register_model("byte_decoder", title="byte decoder", tokenizer=lambda params: BYTES)
def byte_decoder(
    task: Task,
    *,
    architecture: Literal["gpt2", "llama"] = "gpt2",
    layers: AtLeastOne = 2,
    hidden: AtLeastOne = 64,
    heads: AtLeastOne = 2,
    dropout: Rate = 0.0,
    **lora: Unpack[LoraOptions],
) -> nn.Module:
    """Build a small decoder that reads bytes, from scratch and without a download (125 thousand parameters).

    Args:
        layers, hidden, heads: depth, width (the dense layers within are four times as wide) and attention heads.
        dropout: all rates that the architecture has.
        lora: adapters beside the weights as they were drawn; for tests.
    """
    from transformers import AutoConfig

    _check_predicts_tokens(task)
    if hidden % (2 * heads):  # Llama turns pairs of an attention head's numbers
        raise BenchError(f"model.hidden = {hidden} is not a multiple of 2 * model.heads = {2 * heads}")
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    inner = {"intermediate_size": 4 * hidden} if architecture == "llama" else {}  # GPT-2's is that by itself
    known = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "max_position_embeddings": task.block}
    config: PreTrainedConfig = AutoConfig.for_model(architecture, **sizes, **inner, **known)
    set_dropout(config, dropout, BYTES / CONFIG)
    return build(config, BYTES, pretrained=False, lora=lora)


def build(config: PreTrainedConfig, folder: Path, *, pretrained: bool, lora: LoraOptions) -> Decoder:
    """Return a decoder with weights drawn from torch's default generator, or the pretrained ones.

    Raises:
        BenchError: transformers cannot build it, the weights do not fit, or it sees the token it is to predict.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BenchError(
            f'"{config.model_type}" ({folder / CONFIG}) predicts no next token; take gpt2, llama, qwen3, ...'
        )
    net = drawn(AutoModelForCausalLM, config, folder)
    if pretrained:
        load_weights(net, net, folder)
    add_adapters(net, head_learns=False, **lora)
    model = Decoder(net)
    _check_causal(model, config.model_type)
    return model


@torch.no_grad()
def _check_causal(model: Decoder, kind: str) -> None:
    """Raise BenchError if a token changes the logits before it: BERT's attention looks ahead, and would copy."""
    was_training = model.training
    tokens_21W = torch.zeros(2, 1, 4, dtype=torch.int32)
    tokens_21W[1, 0, -1] = 1
    one, other = model.eval()(tokens_21W)[:, :-1]
    model.train(was_training)
    if not torch.allclose(one, other, rtol=1e-4, atol=1e-5):
        raise BenchError(
            f'"{kind}" sees the token that it is to predict; take one that looks back only (gpt2, llama, ...)'
        )


def _check_predicts_tokens(task: Task) -> None:
    if task.block is None:
        raise BenchError("this model predicts the next token, for the task text_lm; take the model encoder")
