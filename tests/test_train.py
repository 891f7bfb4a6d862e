"""The training loop: what it computes, what it counts, and that stopping it changes nothing."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.registry import load_builtins, models, optimizers, tasks
from bench.core.run_options import RunOptions
from bench.core.seeding import derive, numpy_stream
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.splits import Split
from bench.optim.base.schedule import Scheduler
from bench.optim.sam import SAM
from bench.store.run_folder import RunFolder, Store
from bench.tasks.base import ACCURACY, Data, Task, prepare_data
from bench.train import Stopped, train, weights_sha256
from bench.training import checkpoint
from bench.training.evaluate import BATCH, evaluate
from bench.training.step import steps_per_epoch

load_builtins()
CPU = torch.device("cpu")
PLAIN = [entry.name for entry in optimizers if not entry.wraps_base]
METHODS = [*((entry.name, "sgd") for entry in optimizers if entry.wraps_base), ("sam", "adam"), ("sam", "adamw")]
TIMES = {
    *("setup_seconds", "train_seconds", "train_cpu_seconds", "eval_seconds", "finished_at", "peak_memory_mb"),
    *("resumes", "curve_sha256"),
}


def optimizer_choice(name: str = "sgd", base: str | None = None, **params: Any) -> OptimizerSpec:
    plain = base or name
    params = {"lr": 0.05} | params
    own = optimizers[name].schema.model_fields
    chosen = ComponentSpec(
        name=plain,
        params=optimizers[plain]
        .schema.model_validate({key: value for key, value in params.items() if base is None or key not in own})
        .model_dump(),
    )
    if base is None:
        return OptimizerSpec(name=chosen.name, params=chosen.params)
    method = optimizers[name].schema.model_validate({key: value for key, value in params.items() if key in own})
    return OptimizerSpec(name=name, params=method.model_dump(), base=chosen)


def make_spec(optimizer: OptimizerSpec | None = None, seed: int = 0, noise: float = 0.0, **train: Any) -> RunSpec:
    """A run of a fraction of a second: an MLP with dropout on shifted digits."""
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=ComponentSpec(name="mlp", params={"width": 16, "depth": 1, "dropout": 0.2}),
        optimizer=optimizer or optimizer_choice(),
        data=DataSettings(validation=0.25, label_noise=noise),
        train=TrainSettings(**({"epochs": 3, "batch_size": 100} | train)),
        seed=seed,
    )


def do(spec: RunSpec, root: Path, **options: Any) -> dict[str, Any]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, CPU, **options)


STEPS = 9  # an epoch of `make_spec`
EPOCH = STEPS + 1  # as often the loop asks in an epoch whether to stop: after every step, and at its end


def stop_after(asked: int) -> Callable[[], bool]:
    """True from the so manyth time on that the loop asks."""
    count = iter(range(1, 10_000))
    return lambda: next(count) >= asked


def numbers(folder: RunFolder) -> tuple[Any, Any]:
    """Everything a run measured, without what the clock and the memory say."""
    result = folder.result()
    assert result is not None
    curve = [{k: v for k, v in point.items() if k not in TIMES} for point in folder.curve()]
    return {k: v for k, v in result.items() if k not in TIMES}, curve


# ---- what it computes ----------------------------------------------------------------------------------------


def test_the_loop_equals_one_written_by_hand_bit_for_bit(tmp_path: Path) -> None:
    spec = make_spec(optimizer_choice("sgd", momentum=0.9, weight_decay=1e-3), seed=3, noise=0.2)
    result = do(spec, tmp_path)

    task = tasks["digits"].factory(augment="shift")
    data = prepare_data(task, spec.data, 3)
    torch.manual_seed(derive(3, "init"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, fused=True)
    torch.manual_seed(derive(3, "dropout"))
    for epoch in range(3):
        order = torch.from_numpy(numpy_stream(3, "order", epoch).permutation(900))
        augment = numpy_stream(3, "augment", epoch)
        for step in range(9):
            lr = 0.05 * 0.5 * (1 + math.cos(math.pi * (9 * epoch + step) / 27))
            optimizer.param_groups[0]["lr"] = lr
            batch = order[100 * step : 100 * (step + 1)]
            x, y = task.training_batch(data.train.inputs[batch], data.train.targets[batch], augment)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    assert result["weights_sha256"] == weights_sha256(model)
    model.eval()
    with torch.no_grad():
        right = model(data.test.inputs).argmax(1) == data.test.targets
    assert result["metrics"]["test_acc"] == right.double().mean().item()


def test_every_optimizer_sees_the_same_start_batches_augmentation_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {}
    factory = models["mlp"].factory

    def spying(task: Task, **params: Any) -> nn.Module:
        model: nn.Module = factory(task, **params)
        seen[label] = [p.detach().clone() for p in model.parameters()]
        model.register_forward_pre_hook(
            lambda module, inputs: seen[label].append(inputs[0].clone()) if module.training else None
        )
        return model

    object.__setattr__(models["mlp"], "factory", spying)
    try:
        for label, choice in (  # noqa: B007 - the spy reads label
            ("sgd", optimizer_choice("sgd", lr=1e-30)),
            ("adamw", optimizer_choice("adamw", lr=1e-30)),
            ("sam", optimizer_choice("sam", "sgd", lr=1e-30, rho=0.5)),
        ):
            do(make_spec(choice, epochs=2, noise=0.3), tmp_path)
    finally:
        object.__setattr__(models["mlp"], "factory", factory)
    parameters, steps = 4, 2 * 9
    assert len(seen["sgd"]) == len(seen["adamw"]) == parameters + steps
    assert len(seen["sam"]) == parameters + 2 * steps
    sam = seen["sam"][:parameters] + seen["sam"][parameters::2]
    second = seen["sam"][:parameters] + seen["sam"][parameters + 1 :: 2]
    for one, other in (("sgd", seen["adamw"]), ("sgd", sam), ("sgd", second)):
        assert all(torch.equal(a, b) for a, b in zip(seen[one], other, strict=True))


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    first = do(make_spec(seed=1), tmp_path / "a")["weights_sha256"]
    assert do(make_spec(seed=1), tmp_path / "b")["weights_sha256"] == first
    assert do(make_spec(seed=2), tmp_path / "c")["weights_sha256"] != first


def test_bf16_runs_and_ends_near_fp32(tmp_path: Path) -> None:
    fp32 = do(make_spec(), tmp_path)["metrics"]["test_acc"]
    bf16 = do(make_spec(precision="bf16"), tmp_path)["metrics"]["test_acc"]
    assert fp32 == pytest.approx(bf16, abs=0.05)


# ---- what it counts and measures -----------------------------------------------------------------------------


def test_passes_examples_and_batches_are_counted(tmp_path: Path) -> None:
    sgd = do(make_spec(), tmp_path)
    sam = do(make_spec(optimizer_choice("sam", "sgd")), tmp_path)
    assert (sgd["passes"], sgd["examples"]) == (3 * 9, 3 * 900)
    assert (sam["passes"], sam["examples"]) == (2 * 3 * 9, 3 * 900)
    assert steps_per_epoch(900, 128) == 7
    assert steps_per_epoch(90, 128) == 1  # a set smaller than a batch is one batch
    assert do(make_spec(batch_size=5000), tmp_path)["examples"] == 3 * 900


def test_curve_has_the_evaluated_epochs_and_always_the_last(tmp_path: Path) -> None:
    spec = make_spec(epochs=5, eval_every=2)
    do(spec, tmp_path)
    curve = Store(tmp_path).run(spec.run_id).curve()
    assert [point["epoch"] for point in curve] == [2, 4, 5]
    assert [point["passes"] for point in curve] == [18, 36, 45]


def test_selected_epoch_is_validations_choice_and_the_headline_is_the_last(tmp_path: Path) -> None:
    spec = make_spec(optimizer_choice("sgd", lr=0.5), epochs=6, noise=0.5, schedule="constant")
    metrics = do(spec, tmp_path)["metrics"]
    curve = Store(tmp_path).run(spec.run_id).curve()
    best = max(point["val_acc"] for point in curve)
    chosen = next(point for point in curve if point["epoch"] == metrics["selected_epoch"])
    assert chosen["val_acc"] == best
    assert metrics["selected_test_acc"] == chosen["test_acc"]
    assert metrics["test_acc"] == curve[-1]["test_acc"]


class _Fixed(nn.Module):
    """Logits that are looked up: the input is a row number."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows]


class _Rows(Task):
    num_outputs = 2
    input_shape = ()
    metric = ACCURACY

    def load(self) -> tuple[Split, Split]:
        raise AssertionError


def test_means_weigh_examples_and_noisy_labels_stand_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BATCH, "cpu", 3)  # batches of 3, 3 and 1: a mean of means would differ
    logits = torch.tensor([[2.0, 0.0]] * 6 + [[0.0, 5.0]])
    rows, ones = torch.arange(7), torch.ones(7, dtype=torch.long)
    noisy = torch.tensor([True, False, False, True, False, False, False])
    data = Data(Split(rows, ones, noisy), Split(rows, 1 - ones), Split(rows[-1:], ones[-1:]), "")
    measured = evaluate(_Fixed(logits), _Rows(), data, torch.autocast("cpu", enabled=False))
    wrong, right = math.log(1 + math.exp(2)), math.log(1 + math.exp(-5))
    assert measured["train_loss"] == pytest.approx((6 * wrong + right) / 7, rel=1e-6)
    assert measured["train_acc"] == pytest.approx(1 / 7)
    assert measured["train_noisy_loss"] == pytest.approx(wrong, rel=1e-6)
    assert measured["train_clean_acc"] == pytest.approx(1 / 5)
    assert measured["gap_acc"] == pytest.approx(1 / 5 - 1)
    assert measured["gap_loss"] == pytest.approx(right - (4 * wrong + right) / 5, rel=1e-6)
    assert measured["val_acc"] == pytest.approx(6 / 7)


def test_evaluation_leaves_training_mode_and_statistics_alone() -> None:
    task = tasks["digits"].factory()
    data = prepare_data(task, DataSettings(validation=0.25), 0)
    model = models["resnet8"].factory(task, width=4).train()
    before = weights_sha256(model)
    measured = evaluate(model, task, data, torch.autocast("cpu", enabled=False))
    assert model.training
    assert weights_sha256(model) == before
    assert "train_noisy_acc" not in measured


def test_a_loss_that_is_not_a_number_ends_the_run_as_diverged(tmp_path: Path) -> None:
    spec = make_spec(optimizer_choice("sgd", lr=1e12, momentum=0.9), epochs=50)
    result = do(spec, tmp_path)
    assert result["status"] == "diverged"
    assert result["epochs_done"] < 50
    assert result["metrics"] == {}
    assert Store(tmp_path).run(spec.run_id).status() == "diverged"


def test_a_run_that_diverges_in_its_last_evaluation_keeps_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, lost = make_spec(epochs=1, seed=0), make_spec(epochs=1, seed=1)
    do(kept, tmp_path, options=RunOptions(keep_weights=True))
    assert Store(tmp_path).run(kept.run_id).weights.exists()
    measure = evaluate
    monkeypatch.setattr("bench.train.evaluate", lambda *given: {**measure(*given), "train_loss": math.inf})
    result = do(lost, tmp_path, options=RunOptions(keep_weights=True))
    assert (result["status"], result["metrics"]) == ("diverged", {})
    assert not Store(tmp_path).run(lost.run_id).weights.exists()


def test_a_batch_loss_that_is_not_finite_ends_the_run_although_the_update_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient, steps = SAM.gradient, itertools.count()

    def once_infinite(self: SAM, closure: Any) -> Any:
        loss, norm = gradient(self, closure)
        return (loss * math.inf, torch.tensor(math.inf)) if next(steps) == 1 else (loss, norm)

    monkeypatch.setattr(SAM, "gradient", once_infinite)
    result = do(make_spec(optimizer_choice("sam", "sgd")), tmp_path)
    assert (result["status"], result["epochs_done"], result["skipped_steps"]) == ("diverged", 1, 1)


def test_skipped_steps_are_counted_across_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = SAM.gradient

    def sometimes_infinite(self: SAM, closure: Any) -> Any:
        loss, _ = gradient(self, closure)
        return loss, torch.tensor(math.inf)

    monkeypatch.setattr(SAM, "gradient", sometimes_infinite)
    spec = make_spec(optimizer_choice("sam", "sgd"))
    for asked in (EPOCH, 4):
        with pytest.raises(Stopped):
            do(spec, tmp_path, stop=stop_after(asked))
    assert do(spec, tmp_path)["skipped_steps"] == 27


# ---- stopping and going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "base"), [*((name, None) for name in PLAIN), *METHODS])
def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path, name: str, base: str | None) -> None:
    spec = make_spec(optimizer_choice(name, base), epochs=4, warmup_epochs=1, clip_norm=1.0, noise=0.2)
    do(spec, tmp_path / "straight")
    for asked in (EPOCH, 4, EPOCH + 2, 1):  # at the end of an epoch, inside one, and inside later ones
        with pytest.raises(Stopped):
            do(spec, tmp_path / "stopped", stop=stop_after(asked))
    resumed = do(spec, tmp_path / "stopped")
    straight, stopped = (Store(tmp_path / which).run(spec.run_id) for which in ("straight", "stopped"))
    assert numbers(straight) == numbers(stopped)
    assert resumed["resumes"] == 4
    assert not stopped.checkpoint.exists()


def test_a_stop_at_the_last_step_of_all_comes_before_the_evaluation(tmp_path: Path) -> None:
    spec = make_spec(epochs=1)
    straight = do(spec, tmp_path / "straight")
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=stop_after(STEPS))
    assert not Store(tmp_path / "stopped").run(spec.run_id).curve(), "nothing is measured before the stop"
    assert do(spec, tmp_path / "stopped")["weights_sha256"] == straight["weights_sha256"]


def test_batch_norm_models_resume_with_the_same_bits(tmp_path: Path) -> None:
    spec = make_spec(optimizer_choice("sam", "sgd")).model_copy(
        update={"model": ComponentSpec(name="resnet8", params={"width": 2})}
    )
    straight = do(spec, tmp_path / "straight")
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=stop_after(EPOCH + 3))
    assert do(spec, tmp_path / "stopped")["weights_sha256"] == straight["weights_sha256"]


def test_clocks_go_on_where_they_stopped(tmp_path: Path) -> None:
    spec = make_spec()
    with pytest.raises(Stopped):
        do(spec, tmp_path, stop=stop_after(EPOCH + 5))
    folder = Store(tmp_path).run(spec.run_id)
    before = checkpoint.load(folder.checkpoint, spec.run_id)["clocks"]
    assert (before["passes"], before["examples"]) == (STEPS + 5, 100 * (STEPS + 5))
    result = do(spec, tmp_path)
    assert result["train_seconds"] > before["train_seconds"] > 0
    assert result["train_cpu_seconds"] > before["train_cpu_seconds"] > 0  # the load beside the run
    assert result["passes"] == 27


def test_checkpoints_come_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[int, int]] = []

    def note(folder: RunFolder, state: dict[str, Any]) -> None:
        saved.append((state["place"]["epoch"], state["place"]["step"]))

    monkeypatch.setattr(checkpoint, "save", note)
    do(make_spec(epochs=2), tmp_path / "often", options=RunOptions(checkpoint_minutes=0))
    inside = [[(epoch, step) for step in range(1, STEPS)] for epoch in range(2)]
    assert saved == [*inside[0], (1, 0), *inside[1]]  # after the last epoch there is a result instead
    saved.clear()
    do(make_spec(epochs=2), tmp_path / "never", options=RunOptions(checkpoint_minutes=60))
    assert saved == []


def test_an_epoch_that_ends_has_a_checkpoint_where_the_last_is_not_quite_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, int]] = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: saved.append((state["place"]["epoch"], 0)))
    minutes = itertools.count(0, 0.03)  # of a clock that goes when it is looked at: after each step and each epoch
    clock = SimpleNamespace(
        monotonic=lambda: 60 * next(minutes), perf_counter=time.perf_counter, process_time=time.process_time
    )
    monkeypatch.setattr("bench.train.time", clock)
    do(make_spec(epochs=4), tmp_path, options=RunOptions(checkpoint_minutes=5))
    assert saved == [(2, 0)]


# ---- what it records -----------------------------------------------------------------------------------------


def test_a_run_records_when_it_ended(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    ended = datetime.fromisoformat(do(make_spec(epochs=1), tmp_path)["finished_at"])
    assert before <= ended <= datetime.now(UTC)


def test_a_run_leaves_spec_environment_curve_and_result(tmp_path: Path) -> None:
    spec = make_spec(noise=0.2)
    do(spec, tmp_path)
    folder = Store(tmp_path).run(spec.run_id)
    assert {path.name for path in folder.path.iterdir()} == {
        *("spec.json", "environment.json", "curve.jsonl", "result.json", "lock"),
    }
    assert RunSpec.model_validate_json((folder.path / "spec.json").read_text()) == spec
    (environment,) = folder.environments()
    assert environment["torch"] == torch.__version__
    assert environment["threads"] == torch.get_num_threads()
    assert len(environment["data_fingerprint"]) == 16
    assert environment["data_verified"] is True
    assert len(environment["initial_weights_sha256"]) == 16
    assert json.loads((folder.path / "result.json").read_text())["peak_memory_mb"] > 100


def test_the_report_tells_every_epoch(tmp_path: Path) -> None:
    told: list[tuple[int, int, bool]] = []
    do(
        make_spec(epochs=3, eval_every=2),
        tmp_path,
        report=lambda done, epochs, measured: told.append((done, epochs, "val_acc" in measured)),
    )
    assert told == [(1, 3, False), (2, 3, True), (3, 3, True)]


def test_the_schedule_is_that_of_the_spec(tmp_path: Path) -> None:
    spec = make_spec(epochs=4, warmup_epochs=2)
    do(spec, tmp_path)
    lrs = [point["lr"] for point in Store(tmp_path).run(spec.run_id).curve()]
    model = nn.Linear(1, 1)
    reference = Scheduler(torch.optim.SGD(model.parameters(), lr=0.05), 36, 18, "cosine")
    expected = []
    for step in range(36):
        if step % 9 == 0:
            expected.append(reference.optimizer.param_groups[0]["lr"])
        reference.optimizer.step()
        reference.step()
    assert lrs == expected
