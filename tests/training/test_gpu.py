"""What only a GPU can show: `pytest -m gpu` on a machine that has one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.core.registry import load_builtins, optimizers
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.batching import Batch
from bench.store.run_folder import Store
from bench.train import Stopped, train
from bench.training.step import TrainingRun, set_up

load_builtins()
GPU = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("data_folder"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def make_spec(method: str = "sam", m: int | None = None, **train: Any) -> RunSpec:
    base = ComponentSpec(name="sgd", params=optimizers["sgd"].schema.model_validate({"lr": 0.05}).model_dump())
    optimizer = OptimizerSpec(name="sgd", params=base.params)
    if method == "sam":
        optimizer = OptimizerSpec(name="sam", params={"rho": 0.05, "m": m}, base=base)
    task = {"augment": "autoaugment", "mixup": 0.4, "allow_unverified_data": True}
    return RunSpec(
        task=ComponentSpec(name="cifar10", params=task),
        model=ComponentSpec(name="resnet20", params={"width": 16}),
        optimizer=optimizer,
        data=DataSettings(validation=0.1),
        train=TrainSettings(**({"epochs": 3, "batch_size": 16} | train)),
        seed=0,
    )


def do(spec: RunSpec, root: Path, **options: Any) -> dict[str, Any]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, GPU, **options)


def losses(run: TrainingRun, steps: int = 5) -> list[float]:
    run.network.train()
    augment = np.random.RandomState(0)
    batch = Batch(torch.arange(run.batch_size, device=GPU))
    return [run.step(batch, augment).item() for _ in range(steps)]


def test_deterministic_runs_repeat_and_resume_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    spec = make_spec(deterministic=True)
    straight = do(spec, tmp_path / "straight")
    assert do(spec, tmp_path / "again")["weights_sha256"] == straight["weights_sha256"]
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=lambda: True)
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=lambda: True)
    assert do(spec, tmp_path / "stopped")["weights_sha256"] == straight["weights_sha256"]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_a_step_never_waits_for_the_device(method: str) -> None:
    run = set_up(make_spec(method, clip_norm=1.0, precision="bf16"), GPU)
    run.warm_up()
    losses(run)  # the optimizer makes its state
    batch, augment = run.batches(0)[0], np.random.RandomState(0)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(3):
        run.step(batch, augment)


@pytest.mark.parametrize("m", [None, 8])
@pytest.mark.parametrize("train", [{"compile": True}, {"compile": True, "cuda_graphs": True}])
def test_compiled_and_replayed_losses_are_those_of_the_model_as_written(train: dict[str, Any], m: int | None) -> None:
    plain, other = set_up(make_spec(m=m), GPU), set_up(make_spec(m=m, **train), GPU)
    other.warm_up()
    assert losses(other) == pytest.approx(losses(plain), rel=1e-2)


def test_bf16_starts_where_fp32_does() -> None:
    fp32, bf16 = (losses(set_up(make_spec(precision=p), GPU)) for p in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=5e-2)


def test_memory_and_device_are_recorded(tmp_path: Path) -> None:
    spec = make_spec()
    result = do(spec, tmp_path)
    (environment,) = Store(tmp_path).run(spec.run_id).environments()
    assert environment["device"] == torch.cuda.get_device_name()
    assert 1 < result["peak_memory_mb"] < 10_000
