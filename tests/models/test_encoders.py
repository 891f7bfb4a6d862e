"""Text encoders: what they make of tokens, their hyperparameters and architectures; SAM over them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig
from transformers.utils import logging as talk

from bench.core import registry
from bench.core.errors import BenchError
from bench.data.tokens import Texts
from bench.models.encoders import Encoder
from bench.optim.sam import SAM

from .encoder_files import (
    SENTENCES,
    Sentences,
    body,
    change_config,
    equal,
    made,
    rates,
    tokens,
    write,
    write_word_pieces,
)
from .helpers import CIFAR10, build, of_type

TASK = Sentences(3)
pytestmark = pytest.mark.usefixtures("data")


# ---- from tokens to logits -----------------------------------------------------------------------------------


@torch.no_grad()
def test_it_gives_a_row_of_logits_a_text(folder: Path) -> None:
    outputs = made(folder)(tokens(folder))
    assert (outputs.shape, outputs.dtype) == ((len(SENTENCES), 3), torch.float32)
    assert made(folder, task=Sentences(1))(tokens(folder)).shape == (len(SENTENCES), 1)


@torch.no_grad()
def test_padding_changes_nothing(folder: Path) -> None:
    model = made(folder).eval()
    together = tokens(folder)
    wider = F.pad(together, (0, 5))
    wider[:, 0, together.shape[-1] :] = -1
    alone = torch.cat([model(tokens(folder, Texts([text]))) for text in SENTENCES])
    assert (alone[0] - alone[1]).abs().max() > 0.05, "texts differ"
    torch.testing.assert_close(model(together), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(wider), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["roberta"], indirect=True)
def test_a_text_can_be_as_long_as_the_tokens_say(folder: Path) -> None:
    """RoBERTa has 64 positions here, and two of them are not for texts."""
    longest = tokens(folder, Texts(["film " * 100]))
    assert longest.shape[-1] == 62
    assert made(folder)(longest).isfinite().all()


@torch.no_grad()
def test_segments_are_seen_by_those_who_have_them(kind: str, folder: Path) -> None:
    model = made(folder).eval()
    pair = tokens(folder, Texts(["a good film"], ["not a good dog"]))
    without = pair.clone()
    without[:, 1] = 0
    assert pair[:, 1].any() == (kind != "roberta")
    assert torch.equal(model(pair), model(without)) == (kind in ("roberta", "distilbert"))
    assert model.has_segments == (kind in ("bert", "electra"))


@torch.no_grad()
def test_segments_are_not_shown_where_there_is_no_place_for_them(tmp_path: Path) -> None:
    one_kind = write(tmp_path / "bert", "bert", type_vocab_size=1)
    no_kind = write(tmp_path / "distilbert", "distilbert", type_vocab_size=2)  # left over from BERT
    for folder in (one_kind, no_kind):
        pair = tokens(folder, Texts(["a good film"], ["not a good dog"]))
        assert pair[:, 1].any()
        model = made(folder)
        assert model(pair).isfinite().all()
        assert not model.has_segments


@torch.no_grad()
def test_the_net_sees_tokens_as_they_are_and_padding_where_there_are_none(kind: str, folder: Path) -> None:
    model, shown = made(folder), tokens(folder)
    seen: list[dict[str, Tensor]] = []
    model.net.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model(shown)
    expected = shown[:, 0].long()
    expected[expected == -1] = 1 if kind == "roberta" else 0
    assert torch.equal(seen[0]["input_ids"], expected)
    assert torch.equal(seen[0]["attention_mask"], (shown[:, 0] != -1).long())


def test_every_weight_learns(folder: Path) -> None:
    model = made(folder)
    loss = F.cross_entropy(model(tokens(folder)), torch.tensor([0, 1, 2, 0]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_a_task_of_images_is_refused(bert: Path) -> None:
    cases: dict[str, dict[str, Any]] = {"encoder": {"checkpoint": str(bert)}, "minilm": {}}
    for name, params in cases.items():
        with pytest.raises(BenchError, match=r"reads text; the task gives examples of shape \(3, 32, 32\)"):
            build(name, CIFAR10, **params)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What transformers says, if it is asked to say what it can."""
    talk.set_verbosity_info()  # type: ignore[no-untyped-call]
    talk.enable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").addHandler(caplog.handler)
    with caplog.at_level(logging.DEBUG):
        yield caplog
    logging.getLogger("transformers").removeHandler(caplog.handler)
    talk.set_verbosity_warning()  # type: ignore[no-untyped-call]


def test_nothing_is_printed_and_afterwards_transformers_is_as_it_was(
    folder: Path, said: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    said.clear()
    capfd.readouterr()
    made(folder)
    tokens(folder, Texts(["film " * 100]))
    printed = capfd.readouterr()
    assert [record for record in said.records if record.name.startswith("transformers")] == []
    assert (printed.out, printed.err) == ("", "")
    assert talk.get_verbosity() == logging.INFO
    assert talk.is_progress_bar_enabled()


# ---- SAM -----------------------------------------------------------------------------------------------------


def step_of(folder: Path, rho: float | None) -> tuple[Encoder, float]:
    model = made(folder, dropout=0.3)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    base = torch.optim.AdamW(model.parameters(), lr=1e-3)
    optimizer = base if rho is None else SAM(base, rho=rho, model=model)
    inputs, targets = tokens(folder), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(7)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return model, (torch.nn.utils.parameters_to_vector(model.parameters()) - before).norm().item()


def test_sam_with_a_tiny_rho_is_its_base_with_the_same_dropout(folder: Path) -> None:
    (base, moved), (tiny, _), (large, _) = (step_of(folder, rho) for rho in (None, 1e-9, 0.5))
    assert moved > 0.01
    expected, near, far = (
        torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in (base, tiny, large)
    )
    # Adam's first step is the gradient's sign: where that is nearly nothing, so little as float's error decides.
    assert (near - expected).norm() < 0.05 * moved
    assert (far - expected).norm() > 0.3 * moved


# ---- hyperparameters -----------------------------------------------------------------------------------------


def test_dropout_is_the_checkpoints_or_as_it_is_set(kind: str, folder: Path) -> None:
    assert rates(made(folder)) == ({0.1, 0.2} if kind == "distilbert" else {0.1})
    for rate in (0.0, 0.35):
        assert rates(made(folder, dropout=rate)) == {rate}
        assert rates(made(folder, dropout=rate, from_scratch=True)) == {rate}


def test_dropout_is_before_the_head_as_well(bert: Path) -> None:
    change_config(bert, classifier_dropout=0.2)
    assert rates(made(bert)) == {0.1, 0.2}
    assert rates(made(bert, dropout=0.35)) == {0.35}


@torch.no_grad()
def test_without_dropout_training_is_as_evaluation(folder: Path) -> None:
    """Attention's own is no module everywhere."""
    model, inputs = made(folder, dropout=0.0), tokens(folder)
    torch.testing.assert_close(model.train()(inputs), model.eval()(inputs))
    model = made(folder, dropout=0.5)
    assert not torch.allclose(model.train()(inputs), model.eval()(inputs))


@torch.no_grad()
def test_dropout_in_attention_is_set_too(folder: Path) -> None:
    model, inputs = made(folder, dropout=0.5), tokens(folder)
    assert {call["dropout_p"] for call in attention_calls(partial(model.train(), inputs))} == {0.5}
    assert {call["dropout_p"] for call in attention_calls(partial(model.eval(), inputs))} == {0.0}


def attention_calls(action: Callable[[], object]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    real: Callable[..., Tensor] = F.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:

        def note(*tensors: Tensor, **options: Any) -> Tensor:
            calls.append(options)
            return real(*tensors, **options)

        patch.setattr(F, "scaled_dot_product_attention", note)
        action()
    assert calls
    return calls


def test_from_scratch_all_weights_are_drawn_from_the_seed(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    one, again, other = (made(folder, seed, from_scratch=True) for seed in (0, 0, 1))
    assert equal(one.state_dict(), again.state_dict())
    changed = [key for key, tensor in body(one).items() if not torch.equal(tensor, body(other)[key])]
    assert any("query" in key or "q_lin" in key for key in changed)
    assert any("word_embeddings" in key for key in changed)


def test_from_scratch_depth_and_sizes_can_be_chosen(folder: Path) -> None:
    model = made(folder, from_scratch=True, layers=1, hidden=16, heads=2)
    config = model.net.config
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (1, 16, 2)
    shapes = {tuple(layer.weight.shape) for layer in of_type(model, nn.Linear)}
    assert {(64, 16), (16, 64), (16, 16)} <= shapes
    assert not any(32 in shape for shape in shapes)
    one_layer = sum(p.numel() for p in made(folder, from_scratch=True, layers=1).parameters())
    assert one_layer < sum(p.numel() for p in made(folder, from_scratch=True).parameters())


def test_sizes_that_do_not_go_together_are_told(bert: Path) -> None:
    with pytest.raises(BenchError, match=r"hidden = 30 is not a multiple of heads = 4 .*hidden = 32 is"):
        made(bert, from_scratch=True, hidden=30)
    with pytest.raises(BenchError, match=r"hidden = 32 is not a multiple of heads = 3 "):
        made(bert, from_scratch=True, heads=3)


def test_a_pretrained_net_has_the_size_it_has(bert: Path) -> None:
    with pytest.raises(BenchError, match=r"^layers = 1, heads = 2: the size of a pretrained encoder is fixed; leave"):
        made(bert, layers=1, heads=2)


def test_hyperparameters_have_bounds() -> None:
    schema = registry.models["encoder"].schema
    assert schema(layers=1, hidden=1, heads=1, dropout=0.0).model_dump()["checkpoint"] == "bert-base-uncased"
    for bad in ({"layers": 0}, {"hidden": 0}, {"heads": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"checkpoint": 1}):
        with pytest.raises(ValidationError):
            schema(**bad)


# ---- architectures -------------------------------------------------------------------------------------------


def test_an_architecture_that_cannot_classify_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    CLIPConfig().save_pretrained(folder)
    write_word_pieces(folder)
    said = (
        r'"clip" \(.*config.json\) has no classification head .*; encoders that do: bert, roberta, distilbert, electra'
    )
    with pytest.raises(BenchError, match=said):
        made(folder, from_scratch=True)


def test_an_unheard_of_architecture_is_told_and_its_code_not_run(bert: Path, tmp_path: Path) -> None:
    (bert / "theirs.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass Theirs: pass\n")
    change_config(bert, model_type="theirs", auto_map={"AutoConfig": "theirs.Theirs", "AutoModel": "theirs.Theirs"})
    for from_scratch in (False, True):
        with pytest.raises(BenchError, match=re.escape(f"{bert / 'config.json'} cannot be used: ")):
            made(bert, from_scratch=from_scratch)
    change_config(bert, model_type="bert", auto_map={"AutoConfig": "theirs.Theirs", **MODELS_OF_THEIRS})
    assert type(made(bert).net).__module__.startswith("transformers.")
    assert not (tmp_path / "executed").exists()


MODELS_OF_THEIRS = {"AutoModel": "theirs.Theirs", "AutoModelForSequenceClassification": "theirs.Theirs"}


@pytest.mark.parametrize("content", ['{"model_type": ', "[]", '{"model_type": "bert", "hidden_size": "wide"}'])
def test_a_damaged_configuration_is_told(bert: Path, content: str) -> None:
    (bert / "config.json").write_text(content)
    with pytest.raises(BenchError, match=re.escape(f"{bert / 'config.json'} cannot be used: ")):
        made(bert)


def test_a_net_without_padding_is_told(bert: Path) -> None:
    change_config(bert, pad_token_id=None)
    with pytest.raises(BenchError, match=re.escape(f"{bert / 'config.json'} has no pad_token_id")):
        made(bert)
