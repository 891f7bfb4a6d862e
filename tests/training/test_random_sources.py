"""`train.random`: which of a run's random numbers its seed draws, the others being those of seed 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bench.training.step as stepping
from bench.core.registry import load_builtins, optimizers
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.store.run_folder import Store
from bench.train import train, weights_sha256
from bench.training.step import set_up

load_builtins()
CPU = torch.device("cpu")
SOURCES = ("init", "order", "augment", "dropout", "noise")


def spec(seed: int, random: Any = "all") -> RunSpec:
    params = optimizers["sgd"].schema.model_validate({"lr": 0.05}).model_dump()
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=ComponentSpec(name="mlp", params={"width": 8, "depth": 1, "dropout": 0.5}),
        optimizer=OptimizerSpec(name="sgd", params=params),
        data=DataSettings(validation=0.25, label_noise=0.2),
        train=TrainSettings(epochs=1, batch_size=450, random=random),
        seed=seed,
    )


def drawn(one: RunSpec, monkeypatch: pytest.MonkeyPatch, folder: Path) -> dict[str, object]:
    """Return what each random stream gave to a run, by the stream's name."""
    seen: dict[str, object] = {}
    run = set_up(one, CPU)
    noisy = run.data.train.noisy
    assert noisy is not None
    seen["init"] = weights_sha256(run.model)
    seen["order"] = run.batches(0)[0].examples.tolist()
    seen["noise"] = noisy.tolist()
    seen["augment"] = run.seed_for("augment")
    step = stepping.TrainingRun.step

    def spied(self: Any, *arguments: Any) -> torch.Tensor:
        seen.setdefault("dropout", torch.get_rng_state().tolist())
        return step(self, *arguments)

    monkeypatch.setattr(stepping.TrainingRun, "step", spied)
    run_folder = Store(folder).run(one.run_id)
    with run_folder.claim():
        train(one, run_folder, CPU)
    monkeypatch.undo()
    return seen


@pytest.mark.parametrize("source", SOURCES)
def test_one_source_follows_the_seed_and_the_others_stay(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = drawn(spec(0, source), monkeypatch, tmp_path)
    other = drawn(spec(1, source), monkeypatch, tmp_path)
    assert {name for name in SOURCES if first[name] != other[name]} == {source}


def test_all_sources_follow_the_seed_unless_one_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, other = (drawn(spec(seed), monkeypatch, tmp_path) for seed in (0, 1))
    assert {name for name in SOURCES if first[name] != other[name]} == {*SOURCES}


def test_seed_0_is_the_same_run_whatever_the_source() -> None:
    runs = [set_up(spec(0, source), CPU) for source in ("all", *SOURCES)]
    assert len({weights_sha256(run.model) for run in runs}) == 1


def test_the_setting_is_in_the_run_id_only_where_it_is_not_the_default() -> None:
    plain = spec(3)
    assert plain.model_copy(update={"train": TrainSettings(epochs=1, batch_size=450)}).run_id == plain.run_id
    assert len({spec(3, source).run_id for source in ("all", *SOURCES)}) == 6
