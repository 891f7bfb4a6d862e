"""Text encoders (BERT and kin) of transformers with a classification head: pretrained, or from scratch."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.data.tokens import first_line, quiet_transformers
from bench.models.lora import LoraOptions, add_adapters
from bench.models.padding import Padding
from bench.models.pretrained import CONFIG, INDEX, Checkpoint, weight_files
from bench.models.pretrained import minilm as minilm_folder
from bench.models.vit import Rate
from bench.tasks.base import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

AtLeastOne = Annotated[int, Field(ge=1)]

DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"),  # BERT, RoBERTa, ELECTRA
    *("dropout", "attention_dropout", "seq_classif_dropout"),  # DistilBERT
    *("classifier_dropout_prob", "pooler_dropout", "cls_dropout"),  # ALBERT, DeBERTa
    *("embedding_dropout", "mlp_dropout"),  # ModernBERT
    *("embd_pdrop", "resid_pdrop", "attn_pdrop"),  # GPT-2
)
"""Architectures' names for their rates of dropout."""

RELATIVE_SEGMENTS = ("funnel", "xlnet")
"""Architectures that see whether two tokens are of one segment, and need no type_vocab_size for that."""

STARTED_BY_PADDING = ("mt5", "t5", "umt5")
"""Architectures whose decoder starts with the token of padding, which not every config.json of theirs says."""

COMMON = (
    *("bert", "roberta", "distilbert", "electra", "albert", "deberta", "deberta-v2", "modernbert", "mpnet"),
    *("xlnet", "squeezebert", "funnel", "big_bird", "xlm-roberta", "camembert", "convbert", "nystromformer"),
    *("roformer", "rembert", "ernie", "t5", "gpt2", "llama", "qwen3"),
)
"""Architectures that the tests train: tests/models/test_architectures.py."""

MINILM_NOTE = (
    "minilm starts from all-MiniLM-L6-v2 (22.7 M parameters), which was fine-tuned for sentence embeddings on over a "
    "billion sentence pairs, among them SNLI, and MultiNLI, Quora duplicates, SQuAD 2.0 and captions of Flickr30k, "
    "from whose sources GLUE's MNLI, QQP, QNLI and a part of STS-B come too: its results are not those of a plain "
    "pretrained language model."
)
"""From README.md and data_config.json in the package's folder `model`."""


class Encoder(nn.Module):
    """A classifier of transformers that takes what `bench.data.tokens` makes of texts.

    Args:
        net: of AutoModelForSequenceClassification.
    """

    def __init__(self, net: PreTrainedModel) -> None:
        super().__init__()
        self.net = net
        self.layout = Padding(net.config, net)
        self.padding: int = net.config.pad_token_id
        # RoBERTa takes segments but knows one kind only, so that a 1 would have no embedding.
        takes_segments = "token_type_ids" in inspect.signature(net.forward).parameters
        has_several = getattr(net.config, "type_vocab_size", 0) > 1 or net.config.model_type in RELATIVE_SEGMENTS
        self.has_segments = takes_segments and has_several

    def forward(self, tokens_B2W: Tensor) -> Tensor:
        """Return logits (B, num_outputs) for token ids (row 0; -1 is padding) and segment ids (row 1)."""
        ids_BW, segments_BW, is_there_BW = self.layout(tokens_B2W)
        # Padding needs its own id although attention leaves it out: RoBERTa counts positions by that id.
        inputs = {"input_ids": ids_BW.where(is_there_BW, self.padding), "attention_mask": is_there_BW.long()}
        if self.has_segments:
            inputs["token_type_ids"] = segments_BW
        logits_BK: Tensor = self.net(**inputs, return_dict=True).logits
        return logits_BK


def fetch_encoder(params: dict[str, Any]) -> None:
    Checkpoint(params["checkpoint"], weights=not params["from_scratch"]).fetch()


def tokenizer(params: dict[str, Any]) -> Path:
    return Checkpoint(params["checkpoint"], weights=not params["from_scratch"]).locate()  # the folder the net is from


@register_model("encoder", fetch=fetch_encoder, tokenizer=tokenizer)
def encoder(
    task: Task,
    *,
    checkpoint: str = "bert-base-uncased",
    from_scratch: bool = False,
    dropout: Rate | None = None,
    layers: AtLeastOne | None = None,
    hidden: AtLeastOne | None = None,
    heads: AtLeastOne | None = None,
    **lora: Unpack[LoraOptions],
) -> nn.Module:
    """Any text encoder of the Hugging Face hub, or in a folder, with a new head.

    Args:
        checkpoint: a name on the hub (bert-base-uncased, google/electra-small-discriminator), or a folder.
        from_scratch: take the architecture and the tokenizer alone, and draw all weights.
        dropout: after embeddings and dense layers, in attention and before the head; the checkpoint's if left out.
        layers, hidden, heads: from scratch only: depth, width (the dense layers within are four times as wide) and
            attention heads; the checkpoint's if left out.
        lora: adapters and the head are trained alone; see `LoraOptions`.

    Raises:
        BenchError: the checkpoint is not there, damaged, or of no architecture that can classify texts.
    """
    _check_reads_text(task)
    changed = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    if not from_scratch and any(changed.values()):
        sizes = {"layers": layers, "hidden": hidden, "heads": heads}
        given = ", ".join(f"{key} = {value}" for key, value in sizes.items() if value)
        raise BenchError(
            f"{given}: the size of a pretrained encoder is fixed; leave it out, or set from_scratch = true"
        )
    folder = Checkpoint(checkpoint, weights=not from_scratch).locate()
    config = configuration(folder, task.num_outputs, dropout)
    if from_scratch:
        _reshape(config, folder, changed)
    return build(config, folder, pretrained=not from_scratch, lora=lora)


def fetch_minilm(params: dict[str, Any]) -> None:
    minilm_folder()


def tokenizer_of_minilm(params: dict[str, Any]) -> Path:
    return minilm_folder()


@register_model("minilm", title="MiniLM", fetch=fetch_minilm, tokenizer=tokenizer_of_minilm, note=MINILM_NOTE)
def minilm(task: Task, *, dropout: Rate | None = None, **lora: Unpack[LoraOptions]) -> nn.Module:
    """all-MiniLM-L6-v2 (6 layers of 384, 22.7 million parameters) with a new head; its weights come with a package.

    Args:
        dropout: after embeddings and dense layers, in attention and before the head; 0.1 if left out.
        lora: adapters and the head are trained alone; see `LoraOptions`.
    """
    _check_reads_text(task)
    folder = minilm_folder()
    return build(configuration(folder, task.num_outputs, dropout), folder, pretrained=True, lora=lora)


def configuration(folder: Path, num_outputs: int, dropout: float | None) -> PreTrainedConfig:
    """Return the architecture that config.json describes, with the task's number of outputs.

    Raises:
        BenchError: the file is damaged, the architecture cannot classify texts, or it has no such dropout.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    path = folder / CONFIG
    config = read_configuration(folder, num_labels=num_outputs)
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise BenchError(
            f'"{config.model_type}" ({path}) has no classification head in transformers; encoders that do: '
            f"{', '.join(COMMON)}, ..."
        )
    _complete(config, path)
    set_dropout(config, dropout, path)
    return config


def read_configuration(folder: Path, **changed: Any) -> PreTrainedConfig:
    """Return what config.json says, with some of its settings changed; executes no code that a folder brings."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, **changed
            )
    except Exception as error:  # transformers' checks, and those of each architecture
        raise BenchError(f"{folder / CONFIG} cannot be used: {first_line(error)}") from error
    return config


def set_dropout(config: PreTrainedConfig, dropout: float | None, path: Path) -> None:
    """Set all rates of dropout that an architecture has; None leaves them as they are.

    Raises:
        BenchError: it has none.
    """
    if dropout is None:
        return
    rates = [name for name in DROPOUTS if hasattr(config, name)]
    if not rates:
        raise BenchError(f'dropout = {dropout:g}: "{config.model_type}" ({path}) has none; leave it out')
    for name in rates:
        setattr(config, name, dropout)


def _complete(config: PreTrainedConfig, path: Path) -> None:
    """Set what config.json leaves open, or sets for generating text, as classifying texts needs it.

    Raises:
        BenchError: something is left open that only the user can know.
    """
    if getattr(config, "pad_token_id", None) is None:
        ends = getattr(config, "eos_token_id", None)
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
        if config.pad_token_id is None or config.is_encoder_decoder:
            raise BenchError(f"{path} has no pad_token_id, so texts of different lengths cannot share a batch; add it")
    if config.model_type in STARTED_BY_PADDING and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id
    if config.model_type == "xmod" and config.default_language is None:
        raise BenchError(
            f"{path} does not say which of X-MOD's languages the texts are in; add "
            f'"default_language": "{config.languages[0]}", or one of {", ".join(config.languages[1:]) or "no other"}'
        )
    if config.model_type == "big_bird":
        # transformers changes to full attention, with a warning, at the first text of fewer than 704 tokens.
        config.attention_type = "original_full"
    if getattr(config, "use_cache", False):
        config.use_cache = False  # keys and values of every layer, kept for tokens that are never generated


def build(config: PreTrainedConfig, folder: Path, *, pretrained: bool, lora: LoraOptions) -> Encoder:
    """Return an encoder with weights drawn from torch's default generator.

    Args:
        pretrained: replace all weights but the head's with the pretrained ones.
        lora: put adapters into all but the head, and train these and the head alone.

    Raises:
        BenchError: transformers cannot build the encoder, or the weights do not fit.
    """
    from transformers import AutoModelForSequenceClassification

    net = drawn(AutoModelForSequenceClassification, config, folder)
    if pretrained:
        load_weights(net, net.base_model, folder)
    add_adapters(net, **lora)
    return Encoder(net)


def drawn(kind: Any, config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Return a net of one of transformers' Auto classes, its weights drawn."""
    try:
        with quiet_transformers():
            net: PreTrainedModel = kind.from_config(config, trust_remote_code=False, dtype=torch.float32)
    except Exception as error:  # sizes that do not go together fail in a manner of their own
        raise BenchError(f'transformers cannot build "{config.model_type}" of {folder}: {first_line(error)}') from error
    return net


def _check_reads_text(task: Task) -> None:
    if not task.text:
        raise BenchError(
            f"this model reads text; the task gives examples of shape {task.input_shape}; take the model mlp"
        )
    if task.block is not None:
        raise BenchError("this model classifies whole texts; the task predicts each token: take the model decoder")


def _reshape(config: PreTrainedConfig, folder: Path, changed: dict[str, int | None]) -> None:
    """Set depth and sizes, under the configuration names that most architectures use."""
    sizes = {key: value for key, value in changed.items() if value}
    if "hidden_size" in sizes:
        # DistilBERT calls the width of its dense layers hidden_dim, BERT and most others intermediate_size.
        sizes["hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"] = 4 * sizes["hidden_size"]
    for key, value in sizes.items():
        if not hasattr(config, key):
            raise BenchError(
                f'"{config.model_type}" ({folder / CONFIG}) has no {key} to change; leave layers, hidden '
                "and heads out, or take another checkpoint"
            )
        setattr(config, key, value)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if hidden and heads and hidden % heads:
        raise BenchError(
            f"hidden = {hidden} is not a multiple of heads = {heads} (each as given, or as the checkpoint has it); "
            f"hidden = {max(1, round(hidden / heads)) * heads} is"
        )


def load_weights(net: PreTrainedModel, part: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into a part of a model: all but its head, or the whole.

    They go through a twin of the part: transformers then translates the names of older files, and a head that the file
    may have and the part has not is left there. The twin is of the class that the part has: for Funnel AutoModel would
    take another one, with a decoder.

    Raises:
        BenchError: a file is damaged or holds something else; the message names the first misfit.
    """
    file = _check_readable(folder)
    kind = cast(Any, type(part))
    try:
        with quiet_transformers():
            twin, info = kind.from_pretrained(
                str(folder),
                config=copy.deepcopy(net.config),
                use_safetensors=True,
                local_files_only=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # they are told below
                output_loading_info=True,
            )
    except Exception as error:
        raise BenchError(_misfit(file, net, first_line(error))) from error
    if info["mismatched_keys"]:
        name, there, wanted = min(info["mismatched_keys"])
        raise BenchError(_misfit(file, net, f"{name} has shape {tuple(there)}, not {tuple(wanted)}"))
    missing = sorted(key for key in info["missing_keys"] if not _is_pooler(key))
    if missing:
        raise BenchError(_misfit(file, net, f"{missing[0]} is missing ({len(missing)} in all)"))
    # strict=False, because the two may differ in the pooler; every other difference is an error below.
    left = part.load_state_dict(twin.state_dict(), strict=False)
    apart = sorted(key for key in (*left.missing_keys, *left.unexpected_keys) if not _is_pooler(key))
    if apart:
        raise BenchError(_misfit(file, net, f"{apart[0]} is unknown to it, or has no value"))


def _check_readable(folder: Path) -> Path:
    """Return the file of weights, or the index of several, after opening each file as a check."""
    from safetensors import safe_open

    files = weight_files(folder)
    for path in files:
        try:
            with safe_open(str(path), framework="pt"):  # reads the header, and compares it with the size
                pass
        except Exception as error:
            raise BenchError(f"{path} is damaged: {first_line(error)}; replace it with an intact copy") from error
    return files[0] if len(files) == 1 else folder / INDEX


def _is_pooler(key: str) -> bool:
    """Return whether a weight is between encoder and head, which some checkpoints have and some do not."""
    return "pooler." in key


def _misfit(file: Path, net: PreTrainedModel, what: str) -> str:
    return f'{file} does not hold the weights of the "{net.config.model_type}" in config.json beside it: {what}'
