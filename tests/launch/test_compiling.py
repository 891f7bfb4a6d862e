"""train.compile = "auto": decided once per experiment by measuring, kept, and the same for every run of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.config.file import load
from bench.core.errors import BadValue, BenchError
from bench.core.experiment import Experiment, PlannedRun
from bench.core.meta import CompilingMeta
from bench.evidence.merge import merge
from bench.launch import compiling
from bench.launch import run as launch
from bench.launch.estimate import Speed, kind
from bench.launch.local.slots import Slot
from bench.launch.outcome import Outcome
from bench.launch.plan import make_plan
from bench.launch.progress import ProgressDisplay
from bench.launch.shard import Shard
from bench.launch.slurm import submit as slurm
from bench.launch.slurm.profile import Profile
from bench.store import records
from bench.store.run_folder import Store
from bench.training.step import set_up
from tests.run_folders import finish

Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]
SHARES = [Slot("cpu", (0,), 1), Slot("cpu", (1,), 1)]
AS_WRITTEN = Speed(setup=1.0, a_pass=0.010, an_evaluation=0.0)
FASTER = Speed(setup=1.0, a_pass=0.008, an_evaluation=0.0, compiling=30.0)


@pytest.fixture
def open_(write_experiment: Write, tiny: Tiny) -> Experiment:
    return load(write_experiment(tiny({"train.compile": "auto"})))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Speed, Speed | None], None]:
    """measured(as written, compiled): what the machine is found to take, for every kind of run."""

    def set_to(as_written: Speed, compiled: Speed | None) -> None:
        def speeds_here(runs: Sequence[PlannedRun], *others: object) -> tuple[dict[str, Speed], str]:
            found = {kind(run.spec): compiled if run.spec.train.compile else as_written for run in runs}
            missing = "" if compiled else "torch.compile fails here"
            return {name: speed for name, speed in found.items() if speed}, missing

        monkeypatch.setattr(compiling, "speeds_here", speeds_here)

    return set_to


def decided(experiment: Experiment, passes: int, tmp_path: Path) -> CompilingMeta:
    costs = {run.spec.run_id: passes for run in experiment.runs}
    display = ProgressDisplay(costs, experiment.metric, Console(quiet=True))
    return compiling.decide(experiment.runs, costs, Store(tmp_path / "results"), display, SHARES)


def test_runs_are_compiled_where_they_are_long_enough_to_pay_for_it(
    open_: Experiment, measured: Callable[..., None], tmp_path: Path
) -> None:
    measured(AS_WRITTEN, FASTER)
    long, short = (decided(open_, passes, tmp_path) for passes in (100_000, 1_000))
    assert (long["compile"], short["compile"]) == (True, False)
    assert "compiled: 6 runs were estimated to take" in long["why"]
    assert "not compiled: 6 runs were estimated to take" in short["why"]


def test_what_is_hardly_faster_or_cannot_be_compiled_is_not(
    open_: Experiment, measured: Callable[..., None], tmp_path: Path
) -> None:
    measured(AS_WRITTEN, Speed(1.0, 0.0098, 0.0))
    assert not decided(open_, 1_000_000, tmp_path)["compile"]
    measured(AS_WRITTEN, None)
    decision = decided(open_, 1_000_000, tmp_path)
    assert not decision["compile"]
    assert "torch.compile fails here" in decision["why"]


@pytest.mark.parametrize("on", [True, False])
def test_once_decided_the_runs_are_those_of_an_experiment_that_says_so(
    write_experiment: Write, tiny: Tiny, open_: Experiment, tmp_path: Path, on: bool
) -> None:
    store = Store(tmp_path / "results" / "tiny")
    assert compiling.is_open(make_plan(open_, store).asked)
    compiling.write_down({"compile": on, "why": "so it was measured"}, store)
    plan = make_plan(open_, store)
    plain = load(write_experiment(tiny({"train.compile": on}), "plain"))
    assert plan.ids == [run.spec.run_id for run in plain.runs]
    finish(store, plan.to_do, plan.experiment.runs)
    results = launch.collect(plan, Outcome()).results
    assert results.meta["compiling"] == {"compile": on, "why": "so it was measured"}
    (store.folder / compiling.FILE).unlink()  # as of results that come from elsewhere
    assert make_plan(open_, store).ids == plan.ids
    assert not make_plan(open_, store).to_do


def test_cuda_graphs_are_of_compiled_runs_only(write_experiment: Write, tiny: Tiny) -> None:
    experiment = load(write_experiment(tiny({"train.compile": "auto", "train.cuda_graphs": True})))
    for on in (True, False):
        (train,) = {
            run.spec.train for run in compiling.with_decision(experiment, {"compile": on, "why": "measured"}).runs
        }
        assert (train.compile, train.cuda_graphs) == (on, on)


@pytest.mark.parametrize("content", ["[]", "{}", '{"compile": "yes"}', '{"compile": tr'])
def test_a_damaged_decision_is_told_with_its_file(open_: Experiment, tmp_path: Path, content: str) -> None:
    (tmp_path / compiling.FILE).write_text(content)
    with pytest.raises(BenchError, match=compiling.FILE):
        make_plan(open_, Store(tmp_path))


def test_machines_that_might_decide_otherwise_are_not_begun_with(
    open_: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "results")
    with pytest.raises(BadValue, match=r'(?s)--shard: .*"auto" is decided by measuring'):
        make_plan(open_, store, shard=Shard(1, 2))
    monkeypatch.setattr(slurm, "check_there_is_slurm", lambda: None)
    for submitted in (lambda plan: list(slurm.scripts(plan, Profile())), lambda plan: slurm.submit(plan, Profile())):
        with pytest.raises(BadValue, match=r'(?s)--on slurm: .*"auto" is decided by measuring'):
            submitted(make_plan(open_, store))


def test_parts_that_were_decided_otherwise_are_not_merged(open_: Experiment, tmp_path: Path) -> None:
    parts = []
    for on in (True, False):
        store = Store(tmp_path / str(on) / "tiny")
        compiling.write_down({"compile": on, "why": ""}, store)
        plan = make_plan(open_, store)
        finish(store, plan.to_do, plan.experiment.runs)
        launch.collect(plan, Outcome())
        parts.append((str(on), records.read(store.folder)))
    with pytest.raises(BadValue, match=r'(?s)"auto" was decided as true in True, as false in False'):
        merge(parts)


def test_a_run_by_itself_decides_nothing(open_: Experiment) -> None:
    import torch

    with pytest.raises(BenchError, match="set true or false for a single run"):
        set_up(open_.runs[0].spec, torch.device("cpu"))


def test_a_dry_run_shows_no_ids_and_writes_nothing(
    bench: Callable[..., Any], write_experiment: Write, tiny: Tiny
) -> None:
    said = bench("run", write_experiment(tiny({"train.compile": "auto"})), "--dry-run")
    assert said.status == 0, said.err
    assert said.out.count("------------  ") == 6
    assert "decides whether runs are compiled" in said.out
    assert not Path("results").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("without_report")
def test_a_launch_measures_decides_and_keeps_to_it(
    bench: Callable[..., Any], write_experiment: Write, tiny: Tiny
) -> None:
    path = write_experiment(tiny({"train.compile": "auto", "seeds": 1}))
    said = bench("run", path, "--jobs", 1)
    assert said.status == 0, said.err
    assert 'train.compile = "auto": not compiled: 3 runs were estimated to take' in said.err
    assert json.loads(Path("results/tiny/compiling.json").read_text())["compile"] is False
    assert list(records.read(Path("results/tiny")).records["compile"]) == [False] * 3
    again = bench("run", path, "--jobs", 1, "--seeds", 2)
    assert again.status == 0, again.err
    assert "3 done, 3 to do" in again.err
    assert "auto" not in again.err
    assert bench("clean", path).out.endswith("is part of the experiment\n")
