"""Every architecture of `encoders.COMMON`, trained as runs train it: no text's logits depend on its neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.tokens import Texts, Tokens, encode
from bench.launch.trial import try_texts
from bench.models.encoders import COMMON, Encoder
from bench.optim.sam import SAM

from .architecture_files import ARCHITECTURES, write_architecture
from .encoder_files import SENTENCES, Sentences, change_config, made

SINGLE, PAIRS = Texts(SENTENCES), Texts(SENTENCES, SENTENCES[::-1])
SEGMENTS = {
    *("bert", "electra", "albert", "xlnet", "squeezebert", "funnel", "big_bird", "convbert", "nystromformer"),
    *("roformer", "rembert", "ernie"),
}
"""Architectures that tell the texts of a pair apart by segments."""

NOT_IN_BF16 = {"deberta"}
WITH_PRECISION = [
    *((architecture, "fp32") for architecture in COMMON),
    *((architecture, "bf16") for architecture in COMMON if architecture not in NOT_IN_BF16),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each architecture, filled by whoever needs it first."""
    root = tmp_path_factory.mktemp("architectures")
    return {kind: root / kind for kind in ARCHITECTURES}


@pytest.fixture
def checkpoint(architecture: str, checkpoints: dict[str, Path], data: Path) -> Path:
    folder = checkpoints[architecture]
    return folder if folder.exists() else write_architecture(folder, architecture)


every_architecture = pytest.mark.parametrize("architecture", COMMON)
both_tasks = pytest.mark.parametrize("texts", [SINGLE, PAIRS], ids=["single", "pair"])


def one_by_one(model: Encoder, folder: Path, texts: Texts) -> Tensor:
    """Logits of each text alone, without any padding."""
    numbers = torch.arange(len(texts))
    return torch.cat([model(encode(texts[numbers[n : n + 1]], folder, 60).ids) for n in range(len(texts))])


def spec_of(folder: Path, precision: Literal["fp32", "bf16"] = "fp32") -> RunSpec:
    model = ComponentSpec(name="encoder", params={"checkpoint": str(folder), "from_scratch": False})
    return RunSpec(
        task=ComponentSpec(name="sentences"),
        model=model,
        optimizer=OptimizerSpec(name="sgd", params={"lr": 0.1}),
        data=DataSettings(),
        train=TrainSettings(epochs=1, precision=precision),
        seed=0,
    )


def try_out(folder: Path, texts: Texts, precision: Literal["fp32", "bf16"] = "fp32") -> Tokens:
    """Raise what a launch would raise before any run."""
    tokens = encode(texts, folder, 60)
    try_texts(spec_of(folder, precision), Sentences(3), tokens)
    return tokens


# ---- what can be trained -------------------------------------------------------------------------------------


@every_architecture
@both_tasks
@torch.no_grad()
def test_a_text_alone_has_the_logits_that_it_has_in_a_padded_batch(
    architecture: str, checkpoint: Path, texts: Texts
) -> None:
    model, together = made(checkpoint).eval(), encode(texts, checkpoint, 60).ids
    wider = F.pad(together, (0, 11))
    wider[:, 0, together.shape[-1] :] = -1
    alone = one_by_one(model, checkpoint, texts)
    assert (alone[0] - alone[1]).abs().max() > 0.05, "texts differ"
    torch.testing.assert_close(model(together), alone, rtol=1e-4, atol=5e-5)
    torch.testing.assert_close(model(wider), alone, rtol=1e-4, atol=5e-5)
    if architecture not in NOT_IN_BF16:
        with torch.autocast("cpu", torch.bfloat16):
            halved = model(wider).float()
        assert (halved - alone).norm() < 0.2 * alone.norm()


@pytest.mark.parametrize(("architecture", "precision"), WITH_PRECISION)
@both_tasks
def test_sam_takes_a_step_on_it(
    architecture: str, checkpoint: Path, texts: Texts, precision: Literal["fp32", "bf16"]
) -> None:
    tokens = try_out(checkpoint, texts, precision).ids
    model = made(checkpoint)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=1e-3), rho=0.01, model=model)
    before = {name: weight.clone() for name, weight in model.named_parameters()}

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens)
        loss = F.cross_entropy(logits.float(), torch.tensor([0, 1, 2, 0]))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure).isfinite()
    moved = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert len(moved) > 0.8 * len(before), set(before) - set(moved)
    assert all(weight.isfinite().all() for weight in model.parameters())


@every_architecture
@torch.no_grad()
def test_the_texts_of_a_pair_are_told_apart(architecture: str, checkpoint: Path) -> None:
    """Transformers' tokenizers of ALBERT and eight others give segments only if asked for them."""
    model, pairs = made(checkpoint).eval(), encode(PAIRS, checkpoint, 60).ids
    without = pairs.clone()
    without[:, 1] = 0
    assert model.has_segments == (architecture in SEGMENTS)
    assert torch.allclose(model(pairs), model(without), atol=1e-4) == (architecture not in SEGMENTS)
    if architecture in SEGMENTS:
        assert {0, 1} <= set(pairs[:, 1].flatten().tolist())


@every_architecture
def test_a_checkpoint_that_transformers_saved_with_a_head_is_taken_without_it(
    architecture: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Both are drawn from one seed, Funnel's with the decoder that its base for classifying lacks."""
    body, plain = (
        {name: weight for name, weight in made(folder).net.base_model.state_dict().items() if "pooler" not in name}
        for folder in (write_architecture(tmp_path / "with_head", architecture, head=True), checkpoint)
    )
    assert body.keys() == plain.keys()
    assert all(torch.equal(body[name], plain[name]) for name in plain)


# ---- one by one ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["xlnet"])
def test_padding_stands_before_the_texts_of_a_net_that_reads_the_last_position(
    architecture: str, checkpoint: Path
) -> None:
    seen: list[Tensor] = []
    model, tokens = made(checkpoint).eval(), encode(SINGLE, checkpoint, 60).ids
    model.net.register_forward_pre_hook(lambda net, args, inputs: seen.append(inputs["input_ids"]), with_kwargs=True)
    model(tokens)
    for row, text in zip(seen[0], tokens[:, 0], strict=True):
        assert row[-int((text >= 0).sum()) :].tolist() == text[text >= 0].tolist()
        assert set(row[: -int((text >= 0).sum())].tolist()) <= {model.padding}


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_texts_as_long_as_a_net_has_positions_are_tried_without_more_padding(
    architecture: str, checkpoint: Path
) -> None:
    tokens = encode(Texts(["film " * 100, "a film"]), checkpoint, 512)
    assert tokens.ids.shape[-1] == tokens.limit == (62 if architecture == "roberta" else 64)
    try_texts(spec_of(checkpoint), Sentences(3), tokens)


@pytest.mark.parametrize(
    ("architecture", "end"), [("gpt2", 0), ("qwen3", 0), ("llama", 2)], ids=["gpt2", "qwen3", "llama"]
)
def test_decoders_pad_with_the_end_of_text_and_have_it_between_the_texts_of_a_pair(
    architecture: str, end: int, checkpoint: Path
) -> None:
    first, second, pair = (
        encode(texts, checkpoint, 60).ids[0, 0].tolist()
        for texts in (Texts(["the dog"]), Texts(["a film"]), Texts(["the dog"], ["a film"]))
    )
    assert pair == [*first, end, *second]
    model = made(checkpoint)
    assert model.padding == end
    assert not model.net.config.use_cache
    with pytest.raises(BenchError, match=r"text 2 of 2 has no tokens, and the tokenizer in .* adds none"):
        encode(Texts(["the dog", ""]), checkpoint, 60)


@pytest.mark.parametrize("architecture", ["gpt2"])
def test_the_number_of_positions_has_another_name_in_gpt2(architecture: str, checkpoint: Path) -> None:
    assert encode(Texts(["film " * 100]), checkpoint, 512).limit == 64


@pytest.mark.parametrize("architecture", ["t5"])
def test_the_decoder_of_t5_starts_with_padding_if_its_configuration_does_not_say(
    architecture: str, checkpoint: Path
) -> None:
    assert json.loads((checkpoint / "config.json").read_text()).get("decoder_start_token_id") is None
    net = made(checkpoint).net
    assert net.config.decoder_start_token_id == net.config.pad_token_id == 0


@pytest.mark.parametrize("architecture", ["xmod"])
def test_xmod_asks_for_the_language_of_the_texts(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    said = r'languages the texts are in; add "default_language": "en_XX", or one of de_DE'
    with pytest.raises(BenchError, match=said):
        made(checkpoint)
    folder = write_architecture(tmp_path / "xmod", architecture)
    change_config(folder, default_language="de_DE")
    try_out(folder, PAIRS)
    with pytest.raises(BenchError, match=r"cannot compute in train.precision"):
        try_out(folder, PAIRS, "bf16")


# ---- what cannot ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["fnet"])
def test_a_net_that_lets_padding_into_texts_is_refused(architecture: str, checkpoint: Path) -> None:
    """FNet's Fourier transforms run over padding as over text."""
    with pytest.raises(BenchError, match=r"gives a text other outputs when its batch is padded \(they differ by"):
        try_out(checkpoint, SINGLE)


@pytest.mark.parametrize("architecture", ["nystromformer"])
def test_a_net_that_fails_on_texts_is_refused(architecture: str, checkpoint: Path, tmp_path: Path) -> None:
    folder = write_architecture(tmp_path / "landmarks", architecture)
    change_config(folder, num_landmarks=8)  # texts of exactly 64 tokens then
    with pytest.raises(BenchError, match=r'model "encoder" \(checkpoint = .*landmarks.* cannot read the texts of'):
        try_out(folder, SINGLE)


@pytest.mark.parametrize("architecture", sorted(NOT_IN_BF16))
def test_a_net_that_cannot_compute_in_bf16_is_refused(architecture: str, checkpoint: Path) -> None:
    try_out(checkpoint, PAIRS, "fp32")
    with pytest.raises(BenchError, match=r'cannot compute in train.precision = "bf16": RuntimeError: .*; take "fp32"'):
        try_out(checkpoint, PAIRS, "bf16")
