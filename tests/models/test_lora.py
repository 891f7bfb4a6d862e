"""Adapters of low rank: what they change, what SAM perturbs, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.models.encoders import Encoder
from bench.models.lora import add_adapters
from bench.optim.sam import SAM

from .encoder_files import Sentences, made, tokens, write
from .helpers import build

pytest.importorskip("peft", reason="needs the extra lora")


class Blocks(Sentences):
    """A stand-in task of blocks of eight tokens."""

    block = 8


def is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoints") / "bert", "bert")


@pytest.fixture(params=["encoder", "gpt2", "llama"])
def case(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[nn.Module, Tensor, Tensor, set[str]]:
    """A model with adapters, inputs, targets, and the names of the head that learns beside the adapters."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    if request.param == "encoder":
        model = made(checkpoint, lora_rank=2)
        return model, tokens(checkpoint), torch.arange(4) % 3, {"net.classifier.weight", "net.classifier.bias"}
    sizes = {"layers": 1, "hidden": 16, "architecture": request.param}
    inputs = torch.arange(16, dtype=torch.int32).view(2, 1, 8)
    return build("byte_decoder", Blocks(), lora_rank=2, **sizes), inputs, inputs[:, 0].long(), set()


def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(inputs).movedim(-1, 1), targets)


def test_only_adapters_and_a_new_head_learn_and_only_they_are_perturbed(case: tuple[Any, ...]) -> None:
    model, inputs, targets, head = case
    before = copies(model)
    adapters = {name for name in before if is_adapter(name)}
    assert adapters
    assert trained(model) == adapters | head
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = SAM(torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1), rho=0.5, model=model)
    perturbed: list[set[str]] = []
    for step in range(2):
        start = copies(model)

        def closure(start: dict[str, Tensor] = start) -> Tensor:
            perturbed.append(changed(model, start))
            optimizer.zero_grad()
            value = loss(model, inputs, targets)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)
        assert perturbed[2 * step] == set(), "the first pass is at the weights"
    # While B is 0 the gradient of A is 0 as well: the first ascent moves B alone.
    assert perturbed[1] == {name for name in adapters if ".lora_B." in name} | head
    assert perturbed[3] == adapters | head
    assert changed(model, before) == adapters | head


def test_a_model_with_adapters_begins_as_the_one_without(checkpoint: Path) -> None:
    inputs = tokens(checkpoint)
    plain, adapted = (made(checkpoint, lora_rank=rank).eval() for rank in (None, 4))
    assert torch.equal(plain(inputs), adapted(inputs))


def test_alpha_over_rank_scales_what_the_adapters_add(checkpoint: Path) -> None:
    inputs = tokens(checkpoint)
    added = []
    for alpha in (None, 4.0, 8.0):
        model = made(checkpoint, lora_rank=2, lora_alpha=alpha, lora_targets=["query"])
        base = model.eval()(inputs)
        layer = model.net.base_model.encoder.layer[0].attention.self.query  # type: ignore[union-attr, index]
        nn.init.constant_(layer.lora_B["default"].weight, 0.1)
        inside = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        added.append(layer(inside) - layer.base_layer(inside))
        assert not torch.equal(model(inputs), base)
    assert torch.allclose(added[0], added[1])  # alpha is 2 * rank if left out
    assert torch.allclose(added[2], 2 * added[1])


def test_adapters_go_to_the_layers_that_are_named_or_to_all_but_the_head(checkpoint: Path) -> None:
    def places(**lora: Any) -> set[str]:
        names = trained(made(checkpoint, lora_rank=1, **lora))
        return {name.partition(".lora_A")[0].rpartition(".")[2] for name in names if ".lora_A." in name}

    assert places(lora_targets=["query", "value"]) == {"query", "value"}
    assert places() == {"query", "key", "value", "dense"}
    assert not any("classifier" in name for name in trained(made(checkpoint, lora_rank=1)) if is_adapter(name))


def test_the_rank_is_the_size_of_the_adapters() -> None:

    def count(rank: int | None) -> int:
        model = build("byte_decoder", Blocks(), layers=1, hidden=16, lora_rank=rank)
        return sum(parameter.numel() for parameter in model.parameters())

    # GPT-2's four linear layers: 16 to 48, 16 to 16, 16 to 64 and 64 to 16; an adapter has a row or column per end.
    adapters = (16 + 48) + (16 + 16) + (16 + 64) + (64 + 16)
    assert count(3) - count(None) == 3 * adapters


def test_the_same_seed_gives_the_same_adapters(checkpoint: Path) -> None:
    one, again, other = (made(checkpoint, seed=seed, lora_rank=2).state_dict() for seed in (0, 0, 1))
    names = [name for name in one if ".lora_A." in name]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in names)


# ---- bad input -----------------------------------------------------------------------------------------------


def test_a_model_without_linear_layers_is_refused() -> None:
    class Config:
        model_type = "embeddings"

    class Net(nn.Module):
        config = Config()

        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
            self.classifier = nn.Linear(4, 2)

    net: PreTrainedModel = Net()  # type: ignore[assignment]
    with pytest.raises(BenchError, match='"embeddings" has no linear layers to put adapters beside; leave it out'):
        add_adapters(net, lora_rank=2)


def test_a_layer_that_is_not_there_is_told_with_those_that_are(checkpoint: Path) -> None:
    with pytest.raises(BenchError, match=r'model.lora_targets: "bert" has no linear layer "qurey"; .*query'):
        made(checkpoint, lora_rank=2, lora_targets=["qurey"])


def test_settings_without_a_rank_are_told(checkpoint: Path) -> None:
    with pytest.raises(
        BenchError, match=r"lora_alpha: without lora_rank there are no adapters; set model.lora_rank = 8"
    ):
        made(checkpoint, lora_alpha=4.0, lora_rank=None)


def test_without_peft_the_extra_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name, *more))
    assert isinstance(made(checkpoint), Encoder)
    with pytest.raises(BenchError, match=r'needs the package peft: pip install "sam-bench\[lora\]"'):
        made(checkpoint, lora_rank=2)
