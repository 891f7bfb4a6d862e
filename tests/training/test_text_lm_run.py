"""Whole runs on text of a user's own: tokens counted, perplexity, resume, adapters, and what stops a launch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.errors import BenchError
from bench.core.registry import load_builtins, models
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.datasets import user_files_sha256
from bench.evidence.measures.measure import MeasureSettings, measure
from bench.launch import run as launch
from bench.store.run_folder import Store
from bench.tasks.text_lm import TextLM
from bench.train import Stopped, train
from bench.training.evaluate import evaluate
from bench.training.step import set_up
from tests import prefork

load_builtins()
CPU = torch.device("cpu")
ADAPTED = {"lora_rank": 2, "lora_dropout": 0.1}


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve documents of random words."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    random = np.random.RandomState(0)
    (tmp_path / "texts").mkdir()
    for number in range(12):
        words = random.choice(["the", "dog", "saw", "a", "film", "and", "was", "good"], size=20)
        (tmp_path / "texts" / f"{number:02}.txt").write_text(" ".join(words) + "\n")
    return tmp_path / "texts"


def make_spec(texts: Path, *, sam: bool = True, model: dict[str, Any] | None = None, **train: Any) -> RunSpec:
    base = ComponentSpec(
        name="adamw", params={"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01}
    )
    method = OptimizerSpec(name="sam", params={"m": None, "rho": 0.05}, base=base)
    small = {"layers": 1, "hidden": 16, "dropout": 0.1}
    params = {"path": str(texts), "block": 16, "parts": 1, "test": 0.2}
    return RunSpec(
        task=ComponentSpec(name="text_lm", params=params),
        model=ComponentSpec(
            name="byte_decoder",
            params=models["byte_decoder"].schema.model_validate(small | (model or {})).model_dump(),
        ),
        optimizer=method if sam else OptimizerSpec(name="adamw", params=base.params),
        data=DataSettings(validation=0.2),
        train=TrainSettings(**{"epochs": 2, "batch_size": 8, **train}),
        seed=0,
        files_sha256=user_files_sha256(TextLM, params),
    )


def do(spec: RunSpec, root: Path, **options: Any) -> dict[str, Any]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, CPU, **options)


def test_perplexity_is_that_of_a_loop_by_hand_over_all_blocks(texts: Path) -> None:
    run = set_up(make_spec(texts), CPU)
    measured = evaluate(run.model, run.task, run.data, run.autocast)
    assert [split.inputs.shape[1:] for split in run.data.splits().values()] == [(1, 16)] * 3
    run.model.eval()
    for name, split in run.data.splits().items():
        total, count = 0.0, 0
        for (block,), following in zip(split.inputs, split.targets, strict=True):
            assert block[1:].tolist() == following[:-1].tolist()
            with torch.no_grad():
                (logits,) = run.model(block[None, None])
            for place, token in enumerate(following.tolist()):
                total -= float(logits[place].double().log_softmax(0)[token])
                count += 1
        assert measured[f"{name}_loss"] == pytest.approx(total / count, rel=1e-5)
        assert measured[f"{name}_ppl"] == pytest.approx(np.exp(total / count), rel=1e-5)
    assert measured["gap_ppl"] == pytest.approx(measured["test_ppl"] - measured["train_ppl"])
    assert measured["test_constant"] == 0


@pytest.mark.parametrize("model", [{}, ADAPTED], ids=["all", "lora"])
def test_a_stopped_run_goes_on_to_the_same_bits(texts: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    if model:
        pytest.importorskip("peft", reason="needs the extra lora")
    spec = make_spec(texts, model=model)
    straight, again = (do(spec, tmp_path / name) for name in ("straight", "again"))
    asked = iter(range(100))
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=lambda: next(asked) == 3)  # in the middle of the first epoch
    resumed = do(spec, tmp_path / "stopped")
    for name in ("weights_sha256", "metrics", "tokens", "passes"):
        assert again[name] == straight[name], name
        assert resumed[name] == straight[name], name
    assert resumed["resumes"] == 1
    assert straight["status"] == "done"


def test_every_predicted_token_is_counted_once_a_step_whatever_the_passes(texts: Path, tmp_path: Path) -> None:
    plain, sam = (do(make_spec(texts, sam=sam), tmp_path) for sam in (False, True))
    steps = len(set_up(make_spec(texts), CPU).data.train) // 8
    assert plain["tokens"] == sam["tokens"] == 2 * steps * 8 * 16
    assert sam["passes"] == 2 * plain["passes"] == 2 * 2 * steps
    (environment,) = Store(tmp_path).run(make_spec(texts).run_id).environments()
    assert (environment["truncated"], environment["max_tokens"]) == (0, 16)


def test_settings_of_adapters_that_are_left_out_change_no_run_id(texts: Path) -> None:
    spec = make_spec(texts)
    old = {key: value for key, value in spec.model.params.items() if not key.startswith("lora")}
    assert {*spec.model.params} - {*old} == {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
    before = spec.model_copy(update={"model": ComponentSpec(name=spec.model.name, params=old)})
    assert before.run_id == spec.run_id
    assert make_spec(texts, model={"lora_rank": 2}).run_id != spec.run_id


def test_sharpness_is_measured_of_blocks_too(texts: Path) -> None:
    spec = make_spec(texts)
    run = set_up(spec, CPU)
    settings = MeasureSettings(examples=8, eigenvalues=1, m=4, line_points=3, plane_points=3)
    row, _ = measure(run, spec, settings, with_plane=False)
    assert row["loss"] == pytest.approx(np.log(257), rel=0.05)  # of weights as they were drawn
    assert np.isfinite(row["eigenvalue_1"])
    assert "ece" not in row


# ---- from the file to the table ------------------------------------------------------------------------------

EXPERIMENT: dict[str, Any] = {
    "task": {"name": "text_lm", "path": "texts", "block": 16, "test": 0.2},
    "model": {"name": "byte_decoder", "layers": 1, "hidden": 16},
    "baseline": "adamw",
    "seeds": 1,
    "data": {"validation": 0.2},
    "train": {"epochs": 1, "batch_size": 8},
    "optimizers": {"adamw": {"lr": 1e-2}},
}


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    return {**EXPERIMENT, **{k: {**EXPERIMENT[k], **v} if isinstance(v, dict) else v for k, v in changes.items()}}


@pytest.mark.slow
def test_an_experiment_ends_in_perplexities_and_tokens_per_second(
    texts: Path, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(EXPERIMENT)
    launched = launch.run(str(path), out=tmp_path / "results", jobs=1)
    found: Any = launched.results.records
    assert list(found.status) == ["done"]
    assert found.test_ppl.item() == pytest.approx(np.exp(found.test_loss.item()))
    command = [sys.executable, "-m", "bench", "table", path.stem, "--out", str(tmp_path / "results"), "--format", "md"]
    table = prefork.run(command).stdout
    assert "perplexity" in table
    assert "Tokens/s: training tokens a second" in table


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": {"path": "nowhere"}}, "task.path: .*nowhere is neither a text file nor a folder"),
        ({"task": {"block": 300}}, "the (val|test) set has 2 of the documents, .* fewer than one block"),
        ({"model": "mlp"}, '"mlp" does not read text'),
        ({"model": {"lora_rank": 0}}, "model.lora_rank"),
        ({"model": {"lora_alpha": 3.0}}, "lora_alpha: without lora_rank"),
        ({"model": {"lora_rank": 2, "lora_targets": ["c_atn"]}}, 'has no linear layer "c_atn"; .*c_attn'),
        ({"data": {"label_noise": 0.1}}, "data.label_noise needs a task with classes"),
    ],
)
def test_what_does_not_fit_stops_the_launch(
    texts: Path, tmp_path: Path, write_experiment: Callable[..., Path], changes: dict[str, Any], words: str
) -> None:
    path = write_experiment(changed(changes))
    with pytest.raises(BenchError, match=words):
        launch.run(str(path), out=tmp_path / "results")
    assert not list((tmp_path / "results").rglob("result.json"))
