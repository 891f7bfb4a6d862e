"""Compiled code outlives a run: the next one of the same kind does not compile it anew, and computes the same bits."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench.core.registry import load_builtins, models, optimizers
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.store.run_folder import Store
from bench.train import train
from bench.training import precision as numerics
from bench.training.step import set_up

load_builtins()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """Each test begins, and leaves the process, without compiled code."""
    numerics._kept = None
    yield
    numerics._kept = None
    torch.compiler.reset()


@pytest.fixture
def compilations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every graph that is compiled; with the parameter "traced" they run as they were traced."""
    from torch._inductor import compile_fx

    seen: list[int] = []
    real = compile_fx.compile_fx

    def counted(graph: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return graph.forward if getattr(request, "param", "") == "traced" else real(graph, *args, **kwargs)

    monkeypatch.setattr(compile_fx, "compile_fx", counted)
    return seen


def make_spec(method: str = "sgd", seed: int = 0, width: int = 8, **settings: Any) -> RunSpec:
    sgd = optimizers["sgd"].schema.model_validate({"lr": 0.1}).model_dump()
    optimizer = OptimizerSpec(name="sgd", params=sgd)
    if method != "sgd":
        own = optimizers[method].schema.model_validate({"rho": 0.05}).model_dump()
        optimizer = OptimizerSpec(name=method, params=own, base=ComponentSpec(name="sgd", params=sgd))
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "none"}),
        model=ComponentSpec(
            name="mlp", params=models["mlp"].schema().model_dump() | {"width": width, "depth": 1, "dropout": 0.2}
        ),
        optimizer=optimizer,
        data=DataSettings(),
        train=TrainSettings(**({"epochs": 1, "batch_size": 200, "compile": True} | settings)),
        seed=seed,
    )


def end_of(spec: RunSpec, root: Path) -> str:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return str(train(spec, folder, CPU)["weights_sha256"])


def test_a_run_on_kept_code_ends_with_the_bits_of_a_run_on_code_of_its_own(
    tmp_path: Path, compilations: list[int]
) -> None:
    fresh = {}
    for seed in (1, 2):
        numerics._kept = None
        fresh[seed] = end_of(make_spec("sam", seed=seed), tmp_path / f"fresh {seed}")
    before = len(compilations)
    assert before >= 2
    kept = {seed: end_of(make_spec("sam", seed=seed), tmp_path / f"kept {seed}") for seed in (1, 2)}
    assert len(compilations) == before
    assert kept == fresh


@pytest.mark.parametrize("compilations", ["traced"], indirect=True)
def test_optimizers_that_do_nothing_to_the_model_share_code_and_other_runs_do_not(compilations: list[int]) -> None:
    def compiled_for(spec: RunSpec) -> int:
        before = len(compilations)
        run = set_up(spec, CPU)
        run.warm_up()
        return len(compilations) - before

    adam = OptimizerSpec(name="adam", params=optimizers["adam"].schema.model_validate({"lr": 1e-3}).model_dump())
    assert compiled_for(make_spec())
    assert compiled_for(make_spec().model_copy(update={"optimizer": adam})) == 0
    assert compiled_for(make_spec("sam")), "another method"
    assert compiled_for(make_spec("sam", width=9)), "another model"
    assert compiled_for(make_spec("sam", width=9, batch_size=100)), "another batch"
    assert compiled_for(make_spec("sam", width=9, batch_size=100, precision="bf16")), "another precision"
    assert compiled_for(make_spec("sam", width=9, batch_size=100)), "code of one kind of run is kept, not of all"


@pytest.mark.parametrize("spec", [make_spec("esam"), make_spec(cuda_graphs=True)], ids=["esam", "CUDA graphs"])
def test_where_the_course_of_a_run_decides_what_is_compiled_nothing_is_kept(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    for _ in range(3):
        set_up(spec, CPU)
    assert len(resets) == 3


def test_code_for_batches_of_many_widths_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    for _ in range(2):
        numerics.compiled(nn.Linear(2, 2), TrainSettings(epochs=1, compile=True), dynamic=True)
    assert len(resets) == 2


@pytest.mark.parametrize("compilations", ["traced"], indirect=True)
def test_kept_code_keeps_no_model(compilations: list[int]) -> None:
    run = set_up(make_spec(), CPU)
    run.warm_up()
    assert compilations
    model = weakref.ref(run.model)
    del run
    gc.collect()
    assert model() is None
