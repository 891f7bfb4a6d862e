"""Models of the next token: what they give and load, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bench.core import registry
from bench.core.errors import BenchError
from bench.models.decoders import BYTES, Decoder

from .encoder_files import Sentences, change_config, write
from .helpers import build

ARCHITECTURES = ("gpt2", "llama")


class Blocks(Sentences):
    """A stand-in task of blocks of eight tokens."""

    block = 8


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))


def decoder(name: str = "byte_decoder", seed: int = 0, **params: Any) -> Decoder:
    sizes = {"layers": 1, "hidden": 16} if name == "byte_decoder" else {}
    model = build(name, Blocks(), seed, **(sizes | params))
    assert isinstance(model, Decoder)
    return model


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randint(257, (3, 1, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def write_checkpoint(folder: Path, kind: str) -> torch.nn.Module:
    """A checkpoint with the tokenizer of bytes; its net."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids: dict[str, Any] = {"max_position_embeddings": 16, "vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
    torch.manual_seed(7)
    net: Any
    if kind == "gpt2":
        net = GPT2LMHeadModel(GPT2Config(**sizes, **ids))
    else:
        net = LlamaForCausalLM(LlamaConfig(**sizes, **ids, intermediate_size=32))
    net.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BYTES / name).read_bytes())
    return net  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_gives_logits_per_token_and_no_token_sees_a_later_one(architecture: str) -> None:
    model = decoder(architecture=architecture).eval()
    inputs = tokens()
    logits = model(inputs)
    assert logits.shape == (3, 8, 257)
    for place in range(1, 8):
        other = inputs.clone()
        other[:, 0, place] = (other[:, 0, place] + 1) % 257
        apart = (model(other) - logits).abs().amax(dim=(0, 2))
        assert apart[:place].max() < 1e-5
        assert apart[place] > 1e-4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_learns_and_a_seed_decides_them(architecture: str) -> None:
    model, again, other = (decoder(seed=seed, architecture=architecture) for seed in (0, 0, 1))
    model(tokens()).logsumexp(2).mean().backward()
    for (name, weight), same, another in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert weight.grad is not None, name
        assert torch.equal(weight, same)
        if weight.ndim > 1:
            assert not torch.equal(weight, another)


def test_the_default_size_is_that_of_its_docstring() -> None:
    task = Blocks()
    task.block = 128
    assert round(sum(weight.numel() for weight in build("byte_decoder", task).parameters()), -3) == 125_000


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_checkpoint_in_a_folder_is_loaded_whole(tmp_path: Path, kind: str) -> None:
    net = write_checkpoint(tmp_path / kind, kind).eval()
    model = decoder("decoder", checkpoint=str(tmp_path / kind)).eval()
    inputs = tokens()
    assert torch.equal(model(inputs), net(input_ids=inputs[:, 0].long()).logits)
    drawn = decoder("decoder", checkpoint=str(tmp_path / kind), from_scratch=True).eval()
    assert not torch.allclose(drawn(inputs), model(inputs), atol=1e-3)
    assert registry.models["decoder"].tokenizer is not None


def test_dropout_is_the_checkpoint_s_or_the_one_asked_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "gpt2", "gpt2")

    def rates(**params: Any) -> set[float]:
        modules = decoder("decoder", checkpoint=str(tmp_path / "gpt2"), **params).modules()
        return {module.p for module in modules if isinstance(module, torch.nn.Dropout)}

    assert rates() == {0.1}
    assert rates(dropout=0.0) == {0.0}
    assert rates(dropout=0.3) == {0.3}


# ---- bad input -----------------------------------------------------------------------------------------------


def test_weights_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "gpt2", "gpt2")
    change_config(tmp_path / "gpt2", vocab_size=300)
    with pytest.raises(BenchError, match=r"does not hold the weights .* has shape \(257, 16\), not \(300, 16\)"):
        decoder("decoder", checkpoint=str(tmp_path / "gpt2"))


def test_a_model_that_sees_what_it_is_to_predict_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "bert", "bert")
    assert BertConfig().is_decoder is False
    with pytest.raises(BenchError, match='"bert" sees the token that it is to predict; take one that looks back only'):
        decoder("decoder", checkpoint=str(tmp_path / "bert"), from_scratch=True)


def test_a_model_that_predicts_no_token_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "distilbert", "distilbert")
    with pytest.raises(BenchError, match=r'"distilbert" .* predicts no next token; take gpt2, llama'):
        decoder("decoder", checkpoint=str(tmp_path / "distilbert"))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(BenchError, match=r"model.hidden = 16 is not a multiple of 2 \* model.heads = 6"):
        decoder(heads=3)


def test_models_of_whole_texts_and_of_tokens_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="predicts the next token, for the task text_lm; take the model encoder"):
        build("byte_decoder", Sentences())
    with pytest.raises(BenchError, match="the task predicts each token: take the model decoder"):
        build("encoder", Blocks(), checkpoint=str(write(tmp_path / "bert", "bert")))
