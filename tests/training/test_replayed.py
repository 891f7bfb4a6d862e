"""CUDA graphs without a GPU: each pass overwrites what the ones before it have returned, outputs and gradients.

A replayed graph writes to the same memory every time, and autograd is told nothing. The stand-in fills what earlier
passes have left with NaN when the next one begins, so that whoever still reads it ends with other bits.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.config.file import load as experiment
from bench.core.registry import Entry, load_builtins, models, optimizers
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.optim.gsam import GSAM
from bench.store.run_folder import Store
from bench.tasks.base import Data, Task
from bench.train import train as do
from bench.train import weights_sha256
from bench.training.evaluate import outputs
from bench.training.step import TrainingRun, load, set_up

load_builtins()
CPU = torch.device("cpu")
EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ENTRIES = [entry for entry in optimizers if entry.plugin is None]


class Replayed(nn.Module):
    """A network whose outputs, and the gradients it leaves, last until its next pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.given, self.passes = network, list[Tensor](), 0
        for parameter in network.parameters():
            parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]

    def _note(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.given.append(parameter.grad.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        for tensor in self.given:
            tensor.data.fill_(torch.nan)
        made: Tensor = self.network(inputs)
        self.given, self.passes = [made.detach()], self.passes + 1
        return made


def make_spec(entry: Entry, m: int | None = None) -> RunSpec:
    fields = entry.schema.model_fields
    given = {"lr": 0.1, "m": m, "k": 2, "rho": 0.1}
    params = entry.schema.model_validate({key: value for key, value in given.items() if key in fields}).model_dump()
    base = None
    if entry.wraps_base:
        sgd = optimizers["sgd"].schema.model_validate({"lr": 0.1, "momentum": 0.9})
        base = ComponentSpec(name="sgd", params=sgd.model_dump())
    mlp = models["mlp"].schema().model_dump() | {"width": 8, "depth": 1, "dropout": 0.2}
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "none"}),
        model=ComponentSpec(name="mlp", params=mlp),
        optimizer=OptimizerSpec(name=entry.name, params=params, base=base),
        data=DataSettings(),
        train=TrainSettings(epochs=1, batch_size=200),
        seed=0,
    )


@functools.cache
def loaded() -> tuple[Task, Data]:
    return load(make_spec(optimizers["sgd"]), CPU)


def steps(run: TrainingRun, count: int = 4) -> str:
    """Take some steps and return the weights' fingerprint."""
    torch.manual_seed(1)
    run.network.train()
    for batch in run.batches(0)[:count]:
        run.step(batch, np.random.RandomState(0))
    return weights_sha256(run.model)


def replayed(run: TrainingRun) -> TrainingRun:
    run.network, run.cuda_graphs = Replayed(run.model), True
    return run


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_no_method_reads_what_a_replay_has_overwritten(entry: Entry) -> None:
    for m in (None, 100) if "m" in entry.schema.model_fields else (None,):
        spec = make_spec(entry, m)
        plain, other = (set_up(spec, CPU, loaded=loaded()) for _ in range(2))
        start = weights_sha256(plain.model)
        assert steps(replayed(other)) == steps(plain) != start, f"m = {m}"


def test_a_method_that_keeps_gradients_without_a_copy_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: GSAM) -> dict[Tensor, Tensor]:
        return {p: p.grad.detach() for p in self.parameters_with_gradient() if p.grad is not None}

    monkeypatch.setattr(GSAM, "_copied_gradients", careless)
    run = replayed(set_up(make_spec(optimizers["gsam"]), CPU, loaded=loaded()))
    start = [parameter.detach().clone() for parameter in run.model.parameters()]
    steps(run)
    now = list(run.model.parameters())
    assert all(map(torch.equal, now, start)), "gradients are not finite: every step is skipped"


@pytest.mark.parametrize("graphs", [True, False])
def test_losses_that_are_views_of_outputs_last_for_a_step(graphs: bool) -> None:
    task, data = loaded()
    run = replayed(set_up(make_spec(optimizers["esam"]), CPU, loaded=(task, data)))
    run.cuda_graphs = graphs  # without, losses are read after they were overwritten
    batch = run.batches(0)[0]
    inputs, targets = batch.of(data.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "losses", lambda outputs, targets: outputs[:, 0])
        before = run._losses(inputs, targets)()
        run._losses(inputs, targets)()
    assert bool(before.isfinite().all()) is graphs


def test_each_pass_tells_the_graphs_that_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(1))
    plain = set_up(make_spec(optimizers["sam"]), CPU, loaded=loaded())
    steps(plain, 1)
    assert told == []
    run = replayed(set_up(make_spec(optimizers["sam"]), CPU, loaded=loaded()))
    steps(run, 1)
    assert isinstance(run.network, Replayed)
    assert len(told) == run.network.passes == 2


def test_evaluation_keeps_outputs_of_every_batch() -> None:
    task, data = loaded()
    run = replayed(set_up(make_spec(optimizers["sgd"]), CPU, loaded=(task, data)))
    run.network.eval()
    found = outputs(run.network, task, data.test, run.autocast, fixed=True)
    torch.testing.assert_close(found, outputs(run.model, task, data.test, run.autocast))


# ---- where they are asked for --------------------------------------------------------------------------------


def test_experiments_with_cuda_graphs_have_batches_of_few_shapes() -> None:
    graphed = [path for path in EXPERIMENTS.glob("*.toml") if "cuda_graphs = true" in path.read_text()]
    assert {"cifar10_sam", "cifar100_sam", "paper_foret_table1"} <= {path.stem for path in graphed}
    for path in graphed:
        for run in experiment(path).runs:
            spec = run.spec
            assert spec.train.cuda_graphs
            assert spec.optimizer.params.get("variant") != "authors" or spec.optimizer.name != "esam", path.stem
            assert models[spec.model.name].tokenizer is None, "texts have many widths"


def test_on_a_cpu_cuda_graphs_change_nothing(tmp_path: Path) -> None:
    ends = set()
    for graphs in (False, True):
        spec = make_spec(optimizers["sam"])
        train = spec.train.model_copy(update={"compile": True, "cuda_graphs": graphs})
        spec = spec.model_copy(update={"train": train})
        folder = Store(tmp_path).run(spec.run_id)
        with folder.claim():
            ends.add(do(spec, folder, CPU)["weights_sha256"])
    assert len(ends) == 1
