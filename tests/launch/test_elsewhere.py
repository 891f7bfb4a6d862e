"""Finished is finished, wherever: what the records hold counts as done, is not lost, and is never mixed with others."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from bench.analysis.study import Study
from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.experiment import Experiment, PlannedRun
from bench.core.spec import PROTOCOL
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import Plan, make_plan
from bench.launch.prepare import check_data
from bench.store import collecting, records
from bench.store.run_folder import Store
from bench.store.selection import phased
from bench.tasks.base import fingerprint
from bench.training.step import load_task
from tests.run_folders import ENVIRONMENT, finish

Bench = Callable[..., Any]
Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]

TUNED: dict[str, Any] = {
    "seeds": ...,
    "tune": {"seeds": 2, "trials": 2},
    "final": {"seeds": [20, 21]},
    "optimizers.sgd": {"sweep": {"lr": [0.1, 0.2]}},
}


@pytest.fixture
def experiment(write_experiment: Write, tiny: Tiny) -> Experiment:
    return load(write_experiment(tiny()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cwd" / "results" / "tiny")


def commit(store: Store, experiment: Experiment, runs: Iterable[PlannedRun] | None = None) -> dict[str, bytes]:
    """Have runs done, collected, and their folders gone, as in a fresh clone; return the records."""
    finish(store, experiment.runs if runs is None else runs, experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    shutil.rmtree(store.folder / "runs")
    return records.files(store.folder)


def again(plan: Plan) -> pd.DataFrame:
    """Collect, and return the records as they are read."""
    launch.collect(plan, Outcome())
    return records.read(plan.store.folder).records


# ---- what counts as done -------------------------------------------------------------------------------------


def test_a_fresh_clone_has_nothing_to_do_and_collects_the_same_bytes(experiment: Experiment, store: Store) -> None:
    committed = commit(store, experiment)
    plan = make_plan(experiment, store)
    assert (plan.to_do, plan.count("done"), plan.count_held()) == ([], 6, 6)
    launch.collect(plan, Outcome())
    assert records.files(store.folder) == committed


def test_new_runs_stand_beside_those_of_another_machine(
    experiment: Experiment, store: Store, write_experiment: Write, tiny: Tiny
) -> None:
    commit(store, experiment)
    more = {"seeds": 3, "optimizers.adam": {"lr": 0.01}, "vary": {"data": {"label_noise": [0.0, 0.2]}}}
    for change, missing in (({"seeds": 3}, 3), ({"seeds": 3, "optimizers.adam": {"lr": 0.01}}, 6)):
        grown = load(write_experiment(tiny(change)))
        plan = make_plan(grown, store)
        assert len(plan.to_do) == missing
        assert again(plan).status.value_counts().to_dict() == {"done": 6, "missing": missing}
    finish(store, plan.to_do, grown.runs)
    frame = again(make_plan(grown, store))
    assert list(frame.status) == ["done"] * 12
    assert list(frame.run_id) == [run.spec.run_id for run in grown.runs]
    whole = Store(store.folder.with_name("whole"))
    finish(whole, grown.runs, grown.runs)
    assert set(again(make_plan(grown, whole)).columns) == set(frame.columns)
    conditions = load(write_experiment(tiny(more)))
    assert len(make_plan(conditions, store).to_do) == 12, "a condition more: no label noise is what was done"


def test_numbers_of_half_collected_records_come_back_as_they_were_written(
    experiment: Experiment, store: Store, tmp_path: Path
) -> None:
    commit(store, experiment, experiment.runs[:3])  # beside missing rows a whole number is written as a fraction
    finish(store, experiment.runs[3:], experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    one = Store(tmp_path / "one" / "tiny")
    finish(one, experiment.runs, experiment.runs)
    launch.collect(make_plan(experiment, one), Outcome())
    assert records.files(store.folder) == records.files(one.folder)


def test_a_run_that_stands_under_a_new_label_too_is_not_repeated(
    experiment: Experiment, store: Store, write_experiment: Write, tiny: Tiny
) -> None:
    commit(store, experiment)
    renamed = load(write_experiment(tiny({"optimizers.plain": {"use": "sgd", "lr": 0.1}})))
    plan = make_plan(renamed, store)
    assert plan.to_do == []
    launch.collect(plan, Outcome())
    results = records.read(store.folder)
    sgd, plain = (results.curves[results.curves.optimizer == label] for label in ("sgd", "plain"))
    pd.testing.assert_frame_equal(plain.assign(optimizer="sgd").reset_index(drop=True), sgd.reset_index(drop=True))


def test_what_is_finished_here_counts_before_what_the_records_say(experiment: Experiment, store: Store) -> None:
    commit(store, experiment)
    finish(store, experiment.runs[:1], experiment.runs, train_seconds=7.0)
    assert list(again(make_plan(experiment, store)).train_seconds) == [7.0, *[2.0] * 5]


def test_a_folder_that_is_half_or_damaged_takes_no_finished_run_out(experiment: Experiment, store: Store) -> None:
    commit(store, experiment)
    half, failed, broken = (store.run(run.spec.run_id) for run in experiment.runs[:3])
    half.write_start("{}", ENVIRONMENT)
    failed.write_start("{}", ENVIRONMENT)
    failed.write_error("RuntimeError: no good")
    finish(store, experiment.runs[2:3], experiment.runs)
    (broken.path / "curve.jsonl").write_text("[]")
    plan = make_plan(experiment, store)
    assert plan.count("done") == 6
    launched = launch.collect(plan, Outcome())
    assert list(records.read(store.folder).records.status) == ["done"] * 6
    assert len(records.read(store.folder).curves) == 12
    (said,) = launched.results.damaged
    assert said.startswith(f"{broken.path}/curve.jsonl is damaged")
    assert said.endswith("until then its row in the records counts")


def test_redo_does_again_what_left_no_folder_here_and_goes_on_where_it_was_stopped(
    experiment: Experiment, store: Store
) -> None:
    commit(store, experiment)
    plan = make_plan(experiment, store, redo=True)
    assert (len(plan.to_do), plan.count_held()) == (6, 0)
    finish(store, plan.to_do[:2], experiment.runs, train_seconds=7.0)
    assert sorted(again(plan).train_seconds) == [2.0] * 4 + [7.0] * 2, "the rest is as it was"
    assert len(make_plan(experiment, store, redo=True).to_do) == 4


# ---- seeds ---------------------------------------------------------------------------------------------------


def test_a_launch_over_fewer_seeds_leaves_the_others_in(experiment: Experiment, store: Store, tmp_path: Path) -> None:
    committed = commit(store, experiment)
    plan = make_plan(load(tmp_path / "tiny.toml", seeds=1), store)
    assert (plan.to_do, plan.count("done")) == ([], 3), "this launch is about one seed"
    launch.collect(plan, Outcome())
    assert records.files(store.folder) == committed
    assert records.read(store.folder).meta["seeds"] == [0, 1]


def test_seeds_that_nobody_has_finished_leave_no_trace(experiment: Experiment, store: Store, tmp_path: Path) -> None:
    launch.collect(make_plan(load(tmp_path / "tiny.toml", seeds=50), store), Outcome())
    finish(store, experiment.runs, experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    assert records.read(store.folder).meta["seeds"] == [0, 1]


# ---- what is never mixed and never lost ----------------------------------------------------------------------


def test_runs_of_another_machine_that_are_no_part_any_more_stop_a_launch_with_the_reason(
    experiment: Experiment, store: Store, write_experiment: Write, tiny: Tiny
) -> None:
    committed = commit(store, experiment)
    changed = load(write_experiment(tiny({"optimizers.sgd.lr": 0.2})))
    plan = make_plan(changed, store)
    with pytest.raises(BenchError, match=r"hold 2 finished runs of another machine .*: sgd: lr was 0\.1, is 0\.2 \(2"):
        launch.execute(plan)
    with pytest.raises(BenchError, match="--name NAME"):
        launch.collect(plan, Outcome())
    assert records.files(store.folder) == committed
    finish(store, changed.runs, changed.runs)
    frame = again(make_plan(changed, store, redo=True))
    assert list(frame.run_id) == [run.spec.run_id for run in changed.runs]


def test_records_of_another_protocol_are_not_gone_on_from(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(store, experiment)
    monkeypatch.setattr("bench.core.spec.PROTOCOL", PROTOCOL + 1)
    monkeypatch.setattr("bench.launch.leftover.PROTOCOL", PROTOCOL + 1)
    plan = make_plan(experiment, store)
    assert len(plan.to_do) == 6
    with pytest.raises(BenchError, match=rf"6 finished runs .*: measured under protocol {PROTOCOL}; .*{PROTOCOL + 1}"):
        plan.check_records()
    make_plan(experiment, store, redo=True).check_records()


def test_a_plug_in_that_has_changed_is_no_setting_and_told_all_the_same(
    store: Store, write_experiment: Write, write_plugin: Write, tiny: Tiny, registries: Callable[[], None]
) -> None:
    text = '@__import__("bench").register_optimizer("mine")\ndef mine(params, *, lr: float = 0.1):\n    ...\n'
    changes = {"plugins": [str(write_plugin(text))], "optimizers.mine": {}}
    commit(store, load(write_experiment(tiny(changes))))
    registries()
    write_plugin(text + "# a comment\n")
    plan = make_plan(load(write_experiment(tiny(changes))), store)
    assert "mine: made with another plug-in, data file, seed of tuning or version (2 runs)" in plan.refusal()


def test_damaged_records_are_collected_anew_where_all_runs_are_here_and_refused_elsewhere(
    experiment: Experiment, store: Store
) -> None:
    finish(store, experiment.runs, experiment.runs)
    launch.collect(make_plan(experiment, store), Outcome())
    whole = records.files(store.folder)
    for name, spoilt in (("records.csv", b"0.1"), ("experiment.json", b"digits"), ("curves.csv", b"0.1")):
        (store.folder / name).write_bytes(whole[name].replace(spoilt, b"0.2", 1))
        launch.collect(make_plan(experiment, store), Outcome())
        assert records.files(store.folder) == whole
    shutil.rmtree(store.folder / "runs")
    for name, content in whole.items():
        (store.folder / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(BenchError, match=rf"{name}.*\n?.*without a folder here .*restore the files"):
            make_plan(experiment, store)
        (store.folder / name).write_bytes(content)
    (store.folder / "experiment.json").unlink()
    with pytest.raises(BenchError, match=r"6 finished runs in records\.csv without a folder here"):
        make_plan(experiment, store)


def test_data_that_are_not_those_of_the_records_stop_a_launch(experiment: Experiment, store: Store) -> None:
    finish(store, experiment.runs[:3], experiment.runs)
    for run in experiment.runs[:3]:
        path = store.run(run.spec.run_id).path / "environment.json"
        path.write_text(json.dumps([{**ENVIRONMENT, "data_fingerprint": fingerprint(load_task(run.spec))}]))
    launch.collect(make_plan(experiment, store), Outcome())
    shutil.rmtree(store.folder / "runs")
    check_data(make_plan(experiment, store))
    results = records.read(store.folder)
    results.records["data_fingerprint"] = "0123456789abcdef"
    records.publish(results, store.folder)
    with pytest.raises(BenchError, match=r"data of task digits here .* are not those of .*0123456789abcdef"):
        launch.execute(make_plan(experiment, store))
    assert store.present() == set(), "nothing has begun"
    check_data(make_plan(experiment, store, redo=True))


# ---- while a launch goes on ----------------------------------------------------------------------------------


def test_what_is_finished_is_collected_every_tenth_run_or_minute(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = load(tmp_path / "tiny.toml", seeds=10)
    clock = 0.0
    monkeypatch.setattr("time.monotonic", lambda: clock)
    plan = make_plan(experiment, store)
    collector = launch.Collector(plan, Console(file=io.StringIO()))

    def collected() -> int:
        return len(records.finished(store.folder))

    for number, run in enumerate(experiment.runs[:12], start=1):
        finish(store, [run], experiment.runs)
        collector(run.spec.run_id)
        assert collected() == (0 if number < 10 else 10)
    clock = 59.0
    collector()
    assert collected() == 10
    clock = 60.0
    collector()
    assert collected() == 12
    collector.cost = 3.0  # of many runs collecting takes a while
    finish(store, experiment.runs[12:], experiment.runs)
    for run in experiment.runs[12:]:
        collector(run.spec.run_id)
    assert collected() == 12
    clock += 150.0
    collector()
    assert collected() == 30


def test_what_cannot_be_collected_is_told_and_stops_nothing(
    experiment: Experiment, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "RUNS", 1)
    said = io.StringIO()
    collector = launch.Collector(make_plan(experiment, store), Console(file=said))
    finish(store, experiment.runs[:1])
    (store.folder / "records.csv").write_text("what,is\nthis,?\n")
    collector(experiment.runs[0].spec.run_id)
    assert said.getvalue().startswith("Not collected yet: ")


# ---- phases --------------------------------------------------------------------------------------------------


def tuned(store: Store, experiment: Experiment) -> Experiment:
    """Finish both phases; return the experiment with its final runs."""
    finish(store, experiment.tuning, experiment.tuning)
    whole = make_plan(experiment, store).experiment
    finish(store, [run for run in whole.runs if run.phase == "final"], whole.runs)
    return whole


def test_the_choice_is_made_from_the_records_alone(store: Store, write_experiment: Write, tiny: Tiny) -> None:
    experiment = load(write_experiment(tiny(TUNED)))
    whole = tuned(store, experiment)
    committed = commit(store, whole, [])
    plan = make_plan(experiment, store)
    assert (plan.to_do, plan.to_be_chosen) == ([], [])
    assert plan.experiment.runs == whole.runs
    launch.collect(plan, Outcome())
    assert records.files(store.folder) == committed
    more = make_plan(load(write_experiment(tiny({**TUNED, "final": {"seeds": [20, 21, 22]}}))), store)
    assert [(run.phase, run.spec.seed) for run in more.to_do] == [("final", 22)] * 2, "of what was chosen elsewhere"
    assert len(make_plan(experiment, store, redo=True).to_be_chosen) == 4


def test_final_runs_of_another_machine_stay_while_tuning_goes_on(
    store: Store, write_experiment: Write, tiny: Tiny
) -> None:
    whole = tuned(store, load(write_experiment(tiny(TUNED))))
    commit(store, whole, [])
    more = load(write_experiment(tiny({**TUNED, "tune": {"seeds": [0, 1, 9], "trials": 2}})))
    plan = make_plan(more, store)
    assert {(run.phase, run.spec.seed) for run in plan.to_do} == {("tune", 9)}
    assert {run.label for run in plan.to_be_chosen} == {"sgd", "sam"}
    frame = again(plan)
    assert frame[frame.phase == "final"].status.value_counts().to_dict() == {"done": 4}
    worse = {f"val_{what}": value for what, value in (("acc", 0.0), ("loss", 9.0))}
    for run in plan.to_do:  # the choice turns: the last configuration of each was the best
        first = run.config_text == next(one.config_text for one in more.tuning if one.label == run.label)
        finish(store, [run], more.tuning, **({} if first else {"metrics": worse}))
    plan = make_plan(more, store)
    assert {(run.phase, run.label) for run in plan.to_do} == {("final", "sgd"), ("final", "sam")}
    launch.collect(plan, Outcome())
    results = records.read(store.folder)
    assert [(one["label"], one["finished"]) for one in phased(results.meta)["superseded"]] == [("sgd", 2), ("sam", 2)]
    assert [row.done for row in Study(results).rows if row.chosen] == [0, 0]
    launch.collect(make_plan(more, store), Outcome())
    assert records.read(store.folder).meta == results.meta, "they are counted although they are nowhere any more"


# ---- commands ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_report")
def test_status_and_run_say_what_only_the_records_hold(
    bench: Bench, experiment: Experiment, store: Store, tmp_path: Path
) -> None:
    commit(store, experiment)
    status = [line.split() for line in bench("status", tmp_path / "tiny.toml").out.splitlines()]
    assert status[1:] == [["sgd", "2", *"·····"], ["sam", "4", *"·····"]]
    said = bench("run", tmp_path / "tiny.toml")
    assert (said.status, said.err.splitlines()[0]) == (
        0,
        "tiny: 6 done (6 of them on other machines, by the records), 0 to do (0 passes)",
    )
    assert (store.folder / "report.html").is_file()


def test_clean_takes_runs_out_of_the_records_that_are_nowhere_else(
    bench: Bench, experiment: Experiment, store: Store, write_experiment: Write, tiny: Tiny
) -> None:
    commit(store, experiment)
    path = write_experiment(tiny({"optimizers.sgd.lr": 0.2}))
    assert "hold 2 finished runs of another machine" in bench("status", path).out
    for options in (["--dry-run"], []):
        assert (said := bench("run", path, *options)).status == 2
        assert "sgd: lr was 0.1, is 0.2 (2 runs)" in said.err
    listed = bench("clean", path)
    assert listed.out.count("done      sgd: lr was 0.1, is 0.2") == 2
    assert "2 runs of them without a folder here" in listed.out
    assert len(records.finished(store.folder)) == 6
    assert "tables and figures in results/tiny still show 2 of them" in listed.out
    assert bench("clean", path, "--yes").out.endswith("Removed 2 runs.\n")
    results = records.read(store.folder)
    assert list(results.records.status) == ["missing"] * 2 + ["done"] * 4
    assert results.records.test_acc[:2].isna().all()
    assert set(results.curves.optimizer) == {"sam"}
    assert len(make_plan(load(path), store).to_do) == 2
    assert bench("clean", path).out.startswith("tiny: every run in")


def test_all_that_is_collected_stays_where_a_launch_is_killed_over_it(experiment: Experiment, store: Store) -> None:
    """What `publish` writes is written whole (tests/store/test_damage.py); here: from what is held and what is new."""
    commit(store, experiment, experiment.runs[:2])
    finish(store, experiment.runs[2:4], experiment.runs)
    held = collecting.held(store)
    new = collecting.collect(store, experiment.meta(), experiment.runs, held, changed=set())
    assert list(new.records.status) == ["done"] * 4 + ["missing"] * 2, "what is not held is looked for in any case"
    records.publish(replace(new, meta=json.loads(json.dumps(new.meta))), store.folder)
    shutil.rmtree(store.folder / "runs")
    assert collecting.held(store).rows.keys() == {run.spec.run_id for run in experiment.runs[:4]}
