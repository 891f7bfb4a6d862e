"""A dry run: every configuration takes one step, and what would fail a run fails there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import file as experiment
from bench.core.errors import BenchError, NotPrepared
from bench.core.experiment import Experiment
from bench.core.registry import optimizers
from bench.core.spec import ComponentSpec, OptimizerSpec, RunSpec
from bench.launch import estimate
from bench.launch.estimate import configuration, rehearse
from bench.launch.local import worker
from bench.launch.local.worker import Rehearse
from bench.launch.plan import make_plan
from bench.store.run_folder import Store
from bench.training import step
from bench.training.passes import passes_per_step

CPU = torch.device("cpu")
PLUGIN = """
import torch
from bench import register_model, register_optimizer
from bench.optim.base.wrapper import OptimizerWrapper

class Twice(OptimizerWrapper):
    \"\"\"A method of two passes that does not say so.\"\"\"
    def gradient(self, closure):
        closure()
        return super().gradient(closure)

@register_optimizer("twice", wraps_base=True)
def twice(base, model):
    \"\"\"Two passes per step.\"\"\"
    return Twice(base)

class Now(torch.optim.SGD):
    \"\"\"torch's SGD with a second pass in every third step.\"\"\"
    steps = 0
    def step(self, closure=None):
        if self.steps % 3 == 0:
            with torch.enable_grad():
                closure()
        self.steps += 1
        return super().step(closure)

@register_optimizer("now")
def now(params, *, lr: float = 0.1):
    \"\"\"A third of a pass more per step.\"\"\"
    return Now(params, lr=lr)

@register_optimizer("nothing")
def nothing(params):
    \"\"\"Forgets to return.\"\"\"
    torch.optim.SGD(params, lr=0.1)

@register_optimizer("text")
def text(params):
    \"\"\"Returns a word.\"\"\"
    return "sgd"

@register_optimizer("signature")
def signature(*, lr: float = 0.1):
    \"\"\"Takes no parameters.\"\"\"
    return None

@register_optimizer("flat-muon")
def muon(params, *, lr: float = 0.02):
    \"\"\"For matrices only, and given biases.\"\"\"
    return torch.optim.Muon(params, lr=lr)

@register_optimizer("no-lr")
def no_lr(params):
    \"\"\"Its groups have no lr, which a schedule changes.\"\"\"
    optimizer = torch.optim.SGD(params, lr=0.1)
    for group in optimizer.param_groups:
        del group["lr"]
    optimizer.step = lambda closure: torch.enable_grad()(closure)()
    return optimizer

class Unsaved(torch.optim.SGD):
    \"\"\"Cannot be saved.\"\"\"
    def state_dict(self):
        raise NotImplementedError("nothing to save")

@register_optimizer("unsaved")
def unsaved(params):
    \"\"\"SGD.\"\"\"
    return Unsaved(params, lr=0.1)

class Elsewhere(torch.optim.SGD):
    \"\"\"Has other weights for evaluation, and loses them.\"\"\"
    def train(self):
        pass
    def eval(self):
        raise RuntimeError("no average yet")

@register_optimizer("elsewhere")
def elsewhere(params):
    \"\"\"SGD.\"\"\"
    return Elsewhere(params, lr=0.1)

@register_model("no_module")
def no_module(task):
    \"\"\"A function is no module.\"\"\"
    return lambda x: x
"""


@pytest.fixture
def load(tiny: Any, write_experiment: Any, write_plugin: Any, registries: Any) -> Callable[..., Experiment]:
    write_plugin(PLUGIN)
    return lambda changes: experiment.load(write_experiment(tiny({"plugins": ["mine.py"], "seeds": 1, **changes})))


def only(label: str, entry: dict[str, Any]) -> dict[str, Any]:
    return {"optimizers": {label: entry}, "baseline": label}


def spec_of(resolved: Experiment) -> RunSpec:
    return resolved.runs[0].spec


# ---- passes are counted --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "passes"),
    [({"use": "twice", "base": "sgd", "lr": 0.1}, 2.0), ({"use": "now"}, 4 / 3), ({"use": "ema", "base": "sgd"}, 1.0)],
)
def test_passes_of_an_optimizer_that_does_not_say_are_counted(
    load: Callable[..., Experiment], tmp_path: Path, entry: dict[str, Any], passes: float
) -> None:
    entry = entry | ({"lr": 0.1} if entry.get("base") else {})
    resolved = load(only("mine", entry))
    before = torch.get_rng_state()
    assert passes_per_step(spec_of(resolved).optimizer) == pytest.approx(passes)
    assert torch.equal(torch.get_rng_state(), before)
    plan = make_plan(resolved, Store(tmp_path / "results"))
    assert set(plan.passes.values()) == {round(8 * passes)}  # two epochs of four steps
    assert rehearse(spec_of(resolved), CPU) == pytest.approx(2.0 if passes > 1 else 1.0)


def test_what_an_optimizer_says_of_its_passes_counts() -> None:
    base = ComponentSpec(name="sgd", params={"lr": 0.1})
    params = optimizers["looksam"].schema.model_validate({"k": 4}).model_dump()
    assert passes_per_step(OptimizerSpec(name="looksam", params=params, base=base)) == pytest.approx(1.25)
    assert passes_per_step(OptimizerSpec(name="sgd", params={"lr": 0.1})) == 1


def test_equal_passes_are_shared_out_by_what_is_counted(load: Callable[..., Experiment]) -> None:
    tune = {"seeds": 1, "trials": 4, "search": "sobol", "budget": "passes"}
    lr = {"low": 0.01, "high": 0.1, "log": True}
    entries = {
        "sgd": {"sweep": {"lr": lr}},
        "mine": {"use": "twice", "base": "sgd", "sweep": {"lr": lr}},
    }
    resolved = load({"optimizers": entries, "tune": tune, "final": {"seeds": 1}, "seeds": ...})
    assert resolved.phases is not None
    assert dict(resolved.phases.trials) == {"sgd": 4, "mine": 2}


# ---- what would fail fails -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"use": "nothing"}, BenchError, r"nothing cannot be built: its factory in .*mine\.py returns None"),
        ({"use": "text"}, BenchError, r"text cannot be built: its factory returns an object of type str, not a torch"),
        ({"use": "signature"}, BenchError, r"signature cannot be built: too many positional .* 1 positional argument,"),
        ({"use": "flat-muon"}, ValueError, "Muon only supports 2D"),
        ({"use": "no-lr"}, KeyError, "lr"),
        ({"use": "unsaved"}, NotImplementedError, "nothing to save"),
        ({"use": "elsewhere"}, RuntimeError, "no average yet"),
    ],
)
def test_an_optimizer_that_would_fail_the_run_fails_its_rehearsal(
    load: Callable[..., Experiment], entry: dict[str, Any], error: type[Exception], message: str
) -> None:
    spec = spec_of(load(only("mine", entry)))
    with pytest.raises(error, match=message):
        rehearse(spec, CPU)
    event = worker._rehearse(Rehearse(spec.model_dump_json()), CPU)
    assert event.kind == "failed"
    assert ("Traceback" in event.content) == (error is not BenchError)


def test_a_model_that_is_none_fails_its_rehearsal(load: Callable[..., Experiment]) -> None:
    spec = spec_of(load({"model": "no_module"}))
    with pytest.raises(BenchError, match="no_module cannot be built: its factory returns an object of type function"):
        rehearse(spec, CPU)


def test_a_broken_image_fails_the_rehearsal(load: Callable[..., Experiment], data_folder: Path) -> None:
    images = data_folder / "images"
    broken = sorted(images.rglob("*.png"))[7]
    broken.write_bytes(broken.read_bytes()[:40])
    spec = spec_of(load({"task": {"name": "image_folder", "path": str(images), "size": 8}}))
    with pytest.raises(BenchError, match=broken.name):
        rehearse(spec, CPU)


def test_data_that_a_launch_would_fetch_is_no_failure(
    load: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "empty"))
    spec = spec_of(load({"task": "cifar10"}))
    with pytest.raises(NotPrepared, match="bench prepare"):
        rehearse(spec, CPU)
    assert worker._rehearse(Rehearse(spec.model_dump_json()), CPU).kind == "absent"


# ---- each once -----------------------------------------------------------------------------------------------


def test_seeds_share_a_configuration_and_configurations_their_data(
    load: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = load({"seeds": 2})
    specs = {configuration(run.spec): run.spec for run in resolved.runs}
    assert len(specs) == 3
    loads: list[str] = []

    def counted(spec: RunSpec, device: torch.device) -> Any:
        loads.append(spec.run_id)
        return step.load(spec, device)

    monkeypatch.setattr(estimate, "load", counted)
    estimate._loaded.cache_clear()
    assert sorted(rehearse(spec, CPU) for spec in specs.values()) == [1.0, 2.0, 2.0]
    assert len(loads) == 1


@pytest.mark.slow
def test_a_dry_run_tells_every_configuration_that_would_fail_and_starts_none(
    bench: Callable[..., Any], tiny: Any, write_experiment: Any, write_plugin: Any, registries: Any
) -> None:
    write_plugin(PLUGIN)
    entries = {"sgd": {"lr": 0.1}, "other": {"use": "sgd", "lr": 0.2}, "flat-muon": {}, "nothing": {}}
    path = write_experiment(tiny({"plugins": ["mine.py"], "optimizers": entries}))
    said = bench("run", path, "--dry-run", "--jobs", 1)
    assert said.status == 1
    assert said.err.count("FAILED") == 2
    assert "muon seed 0: FAILED: ValueError: Muon only supports 2D" in said.err
    assert "nothing seed 0: FAILED: nothing cannot be built" in said.err
    assert "2 configurations would fail." in said.err
    assert list(Path.cwd().iterdir()) == []
    fine = bench("run", path, "--dry-run", "--jobs", 1, "--only", "sgd", "--only", "other")
    assert fine.status == 0
    assert "Took one step of 2 configurations: all of them can run." in fine.err
