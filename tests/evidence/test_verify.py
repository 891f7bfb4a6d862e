"""`bench verify`: a finished run comes out again bit for bit, and what does not is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench.core.errors import BadValue, BenchError
from bench.core.spec import PROTOCOL
from bench.evidence import repeat
from bench.evidence.repeat import Recorded, recorded
from bench.evidence.verify import FLOOR_SCORE, SPREADS, reproduction, tolerances
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.store import records
from bench.store.run_folder import Store
from bench.train import weights_sha256
from bench.training import checkpoint
from bench.training.step import set_up

EXPERIMENT = """
task = "digits"
model = { name = "mlp", width = 8 }
baseline = "sgd"
seeds = 2
plugins = ["plain.py"]
[train]
epochs = 3
batch_size = 256
[optimizers.sgd]
lr = 0.1
[optimizers.plain]
lr = 0.1
[optimizers.sam]
base = "sgd"
lr = 0.1
sweep.rho = [0.05, 0.1]
"""
PLUGIN = """
import torch
from bench import register_optimizer
@register_optimizer("plain")
def plain(params, *, lr: float = 0.1):
    "Gradient descent."
    return torch.optim.SGD(params, lr=lr)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment, its plug-in and, under results/, what its eight runs left, weights included."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "plain.py").write_text(PLUGIN)
    (folder / "tiny.toml").write_text(EXPERIMENT)
    launched = launch.run(str(folder / "tiny.toml"), out=folder / "results", jobs=1, keep_weights=True)
    assert launched.outcome.finished == 8
    return folder


@pytest.fixture
def clone(place: Path, tmp_path: Path) -> Path:
    """The results as a fresh clone has them: no folders of runs."""
    return Path(shutil.copytree(place / "results", tmp_path / "results", ignore=shutil.ignore_patterns("runs")))


@pytest.fixture(scope="module")
def then(place: Path) -> Recorded:
    return recorded(str(place / "tiny.toml"), place / "results")


def changed(of: Recorded, of_run: str, /, **values: Any) -> Recorded:
    """As recorded, but for these columns of a run (of all where of_run is "")."""
    frame = of.results.records.copy()
    for name, value in values.items():
        frame.loc[frame["run_id"].str.startswith(of_run), name] = value
    return replace(of, results=replace(of.results, records=frame))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_come_out_again_bit_for_bit_from_a_clone_without_runs(
    bench: Callable[..., Any], place: Path, clone: Path
) -> None:
    before = contents(clone)
    said = bench("verify", place / "tiny.toml", "--out", clone, "--jobs", 1)
    assert said.status == 0, said.err
    assert "repeating 3 of 8 finished runs (of each optimizer's chosen configuration, the first seed" in said.err
    assert said.out.count("identical ") == 3
    assert said.out.splitlines()[-1] == "3 repeated: 3 identical"
    assert contents(clone) == before


@pytest.mark.slow
def test_a_changed_record_is_found_and_named_with_its_epoch(
    bench: Callable[..., Any], place: Path, clone: Path
) -> None:
    results = records.read(clone / "tiny")
    first, second, *_ = results.records["run_id"]
    results.records.loc[results.records["run_id"] == first, "weights_sha256"] = "0" * 16
    results.curves.loc[(results.curves["run_id"] == second) & (results.curves["epoch"] >= 2), "val_loss"] += 1e-12
    records.publish(results, clone / "tiny")
    said = bench("verify", place / "tiny.toml", first, second, "--out", clone)
    assert said.status == 1
    head, weights, *rest = said.out.splitlines()
    assert head == f"differs    {first}  sgd seed 0"
    assert weights.strip().startswith(f"weights_sha256: recorded {'0' * 16}, here ")
    assert rest[0] == f"differs    {second}  sgd seed 1"
    assert "from epoch 2 on, 1 of " in rest[1]
    assert "numbers there; val_loss recorded " in rest[1]
    assert said.out.splitlines()[-1] == "2 repeated: 2 differs"


def test_what_cannot_be_repeated_is_told_before_anything_starts(
    bench: Callable[..., Any], place: Path, clone: Path, tmp_path: Path
) -> None:
    some = records.read(clone / "tiny").records["run_id"][0]
    said = bench("verify", place / "tiny.toml", some[:-1] + "x", "--out", clone)
    assert (said.status, f'no such run; did you mean "{some}"?' in said.err) == (2, True)
    said = bench("verify", place / "tiny.toml", some, "--all", "--out", clone)
    assert (said.status, "not both" in said.err) == (2, True)
    other = EXPERIMENT.replace("epochs = 3", "epochs = 4").replace("plain.py", str(place / "plain.py"))
    (tmp_path / "tiny.toml").write_text(other)
    said = bench("verify", tmp_path / "tiny.toml", "--out", clone)
    assert (said.status, "does not describe 8 of the finished runs" in said.err) == (2, True)
    about = json.loads((clone / "tiny" / "experiment.json").read_text())
    (clone / "tiny" / "experiment.json").write_text(json.dumps(about | {"protocol": PROTOCOL - 1}))
    said = bench("verify", place / "tiny.toml", "--out", clone)
    assert (said.status, f"were measured under protocol {PROTOCOL - 1}" in said.err) == (2, True)


def test_an_unfinished_run_is_not_repeated(then: Recorded) -> None:
    run_id = next(iter(then.finished))
    with pytest.raises(BadValue, match="is failed; only a finished run can be repeated"):
        changed(then, run_id, status="failed").select([run_id])


def test_seeds_that_were_asked_for_on_the_command_line_are_found(place: Path, tmp_path: Path) -> None:
    launch.run(str(place / "tiny.toml"), out=tmp_path, seeds=3, only=["sgd"], jobs=1)
    found = recorded(str(place / "tiny.toml"), tmp_path)
    assert sorted(run.spec.seed for run in found.finished.values()) == [0, 1, 2]


def test_a_run_is_repeated_with_the_recorded_number_of_threads(
    then: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Callable[[int, int], None]
) -> None:
    machine(8, 0)
    seen: list[tuple[int, int, int, tuple[int, ...]]] = []

    def run_local(runs: Any, store: Any, display: Any, *, shares: Any, options: Any) -> Outcome:
        seen.append((len(runs), len(shares), shares[0].threads, shares[-1].cores))
        return Outcome()

    monkeypatch.setattr(repeat, "run_local", run_local)
    first, *others = then.finished
    repeat.repeat(
        changed(changed(then, "", threads=1), first, threads=3), then.select([first, *others]), Store(tmp_path)
    )
    assert seen == [(1, 2, 3, (3, 4, 5)), (7, 8, 1, (7,))]


# ---- the verdict ---------------------------------------------------------------------------------------------


def test_what_is_the_same_is_identical(then: Recorded) -> None:
    for run in then.finished.values():
        assert reproduction(run.spec.run_id, then, then).word == "identical"


@pytest.mark.parametrize("name", ["weights_sha256", "initial_weights_sha256", "test_acc", "passes"])
def test_one_other_bit_differs_on_the_same_machine(then: Recorded, name: str) -> None:
    run_id = next(iter(then.finished))
    old = then.record(run_id)[name]
    other = "0" if isinstance(old, str) else old + 1e-9 if old < 1 else old + 1
    found = reproduction(run_id, then, changed(then, run_id, **{name: other}))
    assert found.word == "differs"
    assert name in found.faults[0]


def test_a_curve_that_ends_early_differs(then: Recorded) -> None:
    run = next(iter(then.finished.values()))
    curves = then.results.curves
    now = replace(then, results=replace(then.results, curves=curves[curves["epoch"] < 3]))
    found = reproduction(run.spec.run_id, then, now)
    assert (found.word, found.first_epoch) == ("differs", 3)
    assert "recorded epochs 1 to 3, here 1 to 2" in found.faults[0]


def test_elsewhere_final_numbers_must_agree_as_closely_as_the_seeds_do(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    records = then.results.records
    allowed = tolerances(then.results, then.record(run_id), "acc")["test_acc"]
    spread = records.loc[records["optimizer"] == "sgd", "test_acc"].std()
    assert allowed == pytest.approx(max(FLOOR_SCORE, SPREADS * spread))
    value = then.record(run_id)["test_acc"]
    for by, word in ((0.99 * allowed, "agrees"), (1.01 * allowed, "differs"), (float("nan"), "differs")):
        now = changed(then, run_id, threads=64, weights_sha256="0", test_acc=value - by)
        found = reproduction(run.spec.run_id, then, now)
        assert found.word == word, by
        assert any(line.startswith("threads: recorded ") for line in found.elsewhere)


def test_other_data_differs_everywhere(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    found = reproduction(run.spec.run_id, then, changed(then, run_id, torch="1.0", data_fingerprint="0"))
    assert found.word == "differs"
    assert found.faults[0].startswith("data_fingerprint")


def test_another_commit_is_information_and_no_excuse(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    now = changed(then, run_id, commit="abcdef012345", dirty=False)
    assert reproduction(run.spec.run_id, then, now).word == "identical"
    assert reproduction(run.spec.run_id, then, now).code.endswith("this is abcdef0123")
    assert reproduction(run.spec.run_id, then, changed(now, run_id, weights_sha256="0")).word == "differs"


def test_a_run_that_fails_here_differs(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    found = reproduction(run.spec.run_id, then, changed(then, run_id, status="failed", error="out of memory"))
    assert (found.word, found.faults) == ("differs", ["failed here: out of memory"])


def test_on_a_gpu_bits_are_promised_to_deterministic_runs_only(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    gpu = changed(then, run_id, device="NVIDIA H100", device_type="cuda")
    now = changed(gpu, run_id, weights_sha256="0")
    assert reproduction(run.spec.run_id, gpu, now).word == "agrees"
    gpu, now = (changed(of, run_id, deterministic=True) for of in (gpu, now))
    assert reproduction(run.spec.run_id, gpu, now).word == "differs"


def test_columns_that_an_older_version_did_not_record_are_left_out(then: Recorded) -> None:
    run_id, run = next(iter(then.finished.items()))
    results = then.results
    older = replace(
        then, results=replace(results, records=results.records.drop(columns=["tokens", "train_clean_loss"]))
    )
    assert reproduction(run.spec.run_id, older, then).word == "identical"
    empty = pd.Series(float("nan"), results.records.index)
    older = replace(then, results=replace(results, records=results.records.assign(data_fingerprint=empty)))
    assert reproduction(run.spec.run_id, older, then).word == "identical"
    assert run_id in older.finished


# ---- kept weights --------------------------------------------------------------------------------------------


def test_kept_weights_are_those_the_run_ended_with(place: Path, then: Recorded) -> None:
    store = Store(place / "results" / "tiny")
    for run_id, run in list(then.finished.items())[:3]:
        model = set_up(run.spec, torch.device("cpu")).model
        assert weights_sha256(model) == then.record(run_id)["initial_weights_sha256"]
        checkpoint.load_weights(store.run(run_id).weights, model)
        assert weights_sha256(model) == then.record(run_id)["weights_sha256"]


def test_weights_are_kept_where_asked_only(place: Path, tmp_path: Path) -> None:
    launched = launch.run(str(place / "tiny.toml"), out=tmp_path, seeds=1, only=["sgd"], jobs=1)
    assert launched.outcome.finished == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_damaged_weights_are_named(then: Recorded, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    path = tmp_path / "weights.safetensors"
    checkpoint.keep_weights(path, torch.nn.Linear(3, 3), {})
    with pytest.raises(BenchError, match="does not hold the weights of this run"):
        checkpoint.load_weights(path, model)
    path.write_bytes(b"no")
    with pytest.raises(BenchError, match=r"weights\.safetensors"):
        checkpoint.load_weights(path, model)


# ---- phases --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_final_runs_of_what_was_chosen_come_out_again_from_a_clone_without_runs(
    bench: Callable[..., Any], tmp_path: Path
) -> None:
    head, _, tail = EXPERIMENT.partition("seeds = 2\n")
    phases = "[tune]\nseeds = 1\ntrials = 2\n[final]\nseeds = 2\n[train]"
    text = (head + tail).replace('plugins = ["plain.py"]\n', "").replace("[train]", phases)
    text = text.replace("[optimizers.plain]\nlr = 0.1\n", "").replace("[optimizers.sgd]\nlr = 0.1", "[optimizers.sgd]")
    path = tmp_path / "phased.toml"
    path.write_text(text.replace("[optimizers.sgd]", "[optimizers.sgd]\nsweep.lr = [0.1, 0.01]"))
    assert bench("run", path, "--out", tmp_path / "out", "--jobs", 1).status == 0
    shutil.rmtree(tmp_path / "out" / "phased" / "runs")
    found = recorded(str(path), tmp_path / "out")
    phases_of = [found.finished[run_id].phase for run_id in found.chosen()]
    assert phases_of == ["final"] * 4
    assert len(found.finished) == 2 * 2 + 2 * 2
    tuned = next(run_id for run_id, run in found.finished.items() if run.phase == "tune")
    said = bench("verify", path, found.chosen()[0], tuned, "--out", tmp_path / "out", "--jobs", 1)
    assert said.status == 0, said.out + said.err
    assert said.out.splitlines()[-1] == "2 repeated: 2 identical"
