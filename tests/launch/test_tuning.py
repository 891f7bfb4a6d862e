"""Tuning, then the final runs: what is chosen and written down, what survives a kill, and that no test label counts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.analysis.study import Study
from bench.config.file import load
from bench.core.experiment import Experiment, PlannedRun
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import Plan, make_plan
from bench.launch.tuning import choose, write_down
from bench.store import records
from bench.store.run_folder import Store
from bench.store.selection import phased
from bench.train import train
from tests import prefork

TOML = """
title = "Phases"
task = "digits"
model = { name = "mlp", width = 8 }
baseline = "sgd"
[tune]
seeds = 2
trials = 3
search = "sobol"
[final]
seeds = 2
refit = true
[data]
label_noise = 0.2
[train]
epochs = 2
batch_size = 128
[optimizers.sgd]
sweep.lr = { low = 0.01, high = 1.0, log = true }
[optimizers.sam]
base = "sgd"
sweep.lr = { low = 0.01, high = 1.0, log = true }
sweep.rho = [0.05, 0.1]
[optimizers.adam]
lr = 0.01
tune = false
"""
TUNE, FINAL = 2 * 3 * 2, 3 * 2
"""Runs: labels, trials, seeds of tuning; labels, seeds at the end."""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "phases.toml").write_text(TOML)
    return load(tmp_path / "phases.toml")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def finish(store: Store, run: PlannedRun, score: float = 0.5, **changes: Any) -> None:
    """What a finished run leaves, without having trained."""
    folder = store.run(run.spec.run_id)
    folder.write_start("{}", {"device": "a CPU", "threads": 1, "commit": "0123456", "dirty": False})
    tested = {} if run.phase == "tune" else {"test_acc": 0.9, "test_loss": 0.1}
    validated = {} if run.spec.phase == "refit" else {"val_acc": score, "val_loss": 1 - score}
    metrics = {"train_loss": 0.1, **validated, **tested}
    result = {"run_id": run.spec.run_id, "status": "done", "metrics": metrics, "passes": 10, "train_seconds": 1.0}
    folder.write_result(result | changes, [{"epoch": 2, "passes": 10, **metrics}])


def tune(
    store: Store, experiment: Experiment, best: Mapping[str, int], labels: tuple[str, ...] = ("sgd", "sam")
) -> None:
    """Finish all runs of tuning, the best[label]-th trial of a label with the highest validation score."""
    for label in labels:
        trials = list(dict.fromkeys(run.config_text for run in experiment.tuning if run.label == label))
        for run in experiment.tuning:
            if run.label == label:
                finish(store, run, 0.9 if trials.index(run.config_text) == best[label] else 0.6)


def final(plan: Plan) -> list[tuple[str, str, int]]:
    return [(run.label, run.config_text, run.spec.seed) for run in plan.experiment.runs if run.phase == "final"]


def config(experiment: Experiment, label: str, trial: int) -> str:
    return list(dict.fromkeys(run.config_text for run in experiment.tuning if run.label == label))[trial]


# ---- what is planned -----------------------------------------------------------------------------------------


def test_before_tuning_the_final_runs_are_to_be_chosen(experiment: Experiment, store: Store) -> None:
    plan = make_plan(experiment, store)
    assert len(plan.to_do) == TUNE + 2, "and those of the one that is not tuned"
    assert [(run.label, run.spec.seed) for run in plan.to_be_chosen] == [("sgd", 2), ("sgd", 3), ("sam", 2), ("sam", 3)]
    assert plan.passes[plan.to_be_chosen[0].spec.run_id] == 2 * (1200 // 128), "over training and validation"
    assert plan.passes[plan.to_do[-1].spec.run_id] in (2 * (1080 // 128), 2 * (1200 // 128))
    assert not (store.folder / "chosen.json").exists()


def test_tuning_leads_to_final_runs_of_the_best_on_validation(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2})
    plan = make_plan(experiment, store)
    chosen = {"sgd": config(experiment, "sgd", 1), "sam": config(experiment, "sam", 2), "adam": ""}
    assert sorted(final(plan)) == sorted((label, text, seed) for label, text in chosen.items() for seed in (2, 3))
    assert {run.spec.phase for run in plan.to_do} == {"refit"}
    assert plan.to_be_chosen == []


def test_each_optimizer_goes_on_by_itself_and_only_keeps_to_its_labels(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 0}, labels=("sgd",))
    plan = make_plan(experiment, store)
    assert {label for label, *_ in final(plan)} == {"sgd", "adam"}
    assert {run.label for run in plan.to_be_chosen} == {"sam"}
    assert make_plan(experiment, store, only=["sgd"]).to_be_chosen == []


def test_a_failed_run_of_tuning_is_over_and_ranks_its_configuration_last(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 0})
    failed = next(run for run in experiment.tuning if run.config_text == config(experiment, "sgd", 1))
    folder = store.run(failed.spec.run_id)
    (folder.path / "result.json").unlink()
    assert make_plan(experiment, store).to_be_chosen, "it is to be done yet"
    folder.write_error("RuntimeError: no good")
    choices = choose(experiment, store)
    assert choices.chosen["", "sgd"] == config(experiment, "sgd", 0)
    (sgd,) = [content for content in choices.content if content["label"] == "sgd"]
    assert "of 2 complete configurations" in sgd["why"]
    assert [(one["n"], one["failed"]) for one in sgd["candidates"]] == [(2, 0), (1, 1), (2, 0)]


def test_where_no_run_of_tuning_finished_nothing_is_chosen(experiment: Experiment, store: Store) -> None:
    for run in experiment.tuning:
        finish(store, run, status="diverged", metrics={})
    assert choose(experiment, store).chosen == {}
    assert {run.label for run in make_plan(experiment, store).to_be_chosen} == {"sgd", "sam"}


# ---- what is written down ------------------------------------------------------------------------------------


def test_the_choice_is_written_down_with_every_candidate_and_why(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2})
    launch.collect(_written(experiment, store), Outcome())
    content = json.loads((store.folder / "chosen.json").read_text())
    assert content["seeds"] == [0, 1]
    assert "best mean validation accuracy" in content["rule"]
    sgd, sam = content["choices"]
    assert (sgd["label"], sgd["chosen"]) == ("sgd", config(experiment, "sgd", 1))
    assert sgd["why"] == (
        "best mean validation accuracy (90.00 %) of 3 complete configurations; the next best has 60.00 %"
    )
    assert len(sam["candidates"]) == 3
    assert sam["candidates"][2]["val_acc_mean"] == pytest.approx(0.9)
    assert sam["candidates"][2]["settings"].keys() == {"lr", "rho"}
    before = (store.folder / "chosen.json").read_bytes()
    _written(experiment, store)
    assert (store.folder / "chosen.json").read_bytes() == before


def test_final_runs_of_an_earlier_choice_are_told_and_not_mixed_in(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2})
    plan = _written(experiment, store)
    for run in plan.to_do:
        finish(store, run)
    assert list(plan.choices.changed()) == []

    tune(store, experiment, {"sgd": 0, "sam": 2})  # as if more runs had come in
    plan = make_plan(experiment, store)
    (said,) = plan.choices.changed()
    assert said.startswith(f"sgd: {config(experiment, 'sgd', 0)} is chosen now, {config(experiment, 'sgd', 1)} was")
    assert {run.label for run in plan.to_do} == {"sgd"}, "the others stand"
    launched = launch.collect(_written(experiment, store), Outcome())
    (earlier,) = phased(launched.results.meta)["superseded"]
    assert earlier == {"condition": "", "label": "sgd", "config": config(experiment, "sgd", 1), "finished": 2}
    (sgd,) = [row for row in Study(launched.results).rows if row.label == "sgd" and row.chosen]
    assert (sgd.done, sgd.unfinished) == (0, 2)

    tune(store, experiment, {"sgd": 1, "sam": 2})  # and back
    plan = make_plan(experiment, store)
    assert (plan.to_do, plan.choices.superseded(store)) == ([], [])


def test_records_name_the_phase_and_runs_of_tuning_have_no_test_numbers(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2})
    for run in _written(experiment, store).to_do:
        finish(store, run)
    launch.collect(make_plan(experiment, store), Outcome())
    results = records.read(store.folder)
    assert results.records["phase"].value_counts().to_dict() == {"tune": TUNE, "final": FINAL}
    assert results.curves["phase"].value_counts().to_dict() == {"tune": TUNE, "final": FINAL}
    of_test = [column for column in map(str, results.records) if "test" in column or "gap" in column]
    tuning = results.records["phase"] == "tune"
    assert results.records.loc[tuning, of_test].isna().all(axis=None)
    assert results.records.loc[~tuning, "test_acc"].notna().all()
    assert results.records.loc[~tuning, "val_acc"].isna().all()
    assert phased(results.meta)["tune"]["passes"] == {"sgd": 6 * 16, "sam": 6 * 32}


def test_results_of_another_machine_outlive_a_launch_that_has_only_tuned(experiment: Experiment, store: Store) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2}, labels=("sgd", "sam"))
    for run in _written(experiment, store).to_do:
        finish(store, run)
    launch.collect(make_plan(experiment, store), Outcome())
    committed = (store.folder / "records.csv").read_bytes()
    os.rename(store.folder / "runs", store.folder.with_name("gone"))
    tune(store, experiment, {"sgd": 1, "sam": 2})
    shutil.rmtree(store.run(experiment.tuning[0].spec.run_id).path)
    redone = make_plan(experiment, store, redo=True)
    assert {run.label for run in redone.to_be_chosen} == {"sgd"}
    launch.collect(redone, Outcome())
    assert (store.folder / "records.csv").read_bytes() == committed


def test_a_launch_that_redoes_all_does_the_final_runs_too_where_the_choice_is_the_records(
    experiment: Experiment, store: Store
) -> None:
    tune(store, experiment, {"sgd": 1, "sam": 2})
    for run in _written(experiment, store).to_do:
        finish(store, run)
    launch.collect(make_plan(experiment, store), Outcome())
    shutil.rmtree(store.folder / "runs")
    redone = make_plan(experiment, store, redo=True)
    assert {run.phase for run in redone.to_do if run.label != "adam"} == {"tune"}
    for run in redone.to_do:
        finish(store, run, 0.9 if run.config_text == config(experiment, "sgd", 1) else 0.6)
    following = launch.next_phase(redone)
    assert following
    assert {(run.label, run.spec.seed) for run in following.to_do} == {("sgd", 2), ("sgd", 3), ("sam", 2), ("sam", 3)}


def _written(experiment: Experiment, store: Store) -> Plan:
    plan = make_plan(experiment, store)
    write_down(plan.choices, plan.experiment, store)
    return plan


# ---- real runs -----------------------------------------------------------------------------------------------

OTHER_TEST_LABELS = '''
from dataclasses import replace
from bench import register_task
from bench.tasks.digits import Digits

@register_task("turned")
class Turned(Digits):
    """Digits with every test label wrong."""

    def load(self):
        train, test = super().load()
        return train, replace(test, targets=(test.targets + 1) % 10)
'''


def test_no_test_label_can_change_a_choice(tmp_path: Path, store: Store, registries: Callable[[], None]) -> None:
    """Every run of tuning is done twice, the second time with all test labels changed: nothing of it changes."""
    (tmp_path / "turned.py").write_text(OTHER_TEST_LABELS)
    text = TOML.replace("seeds = 2\ntrials = 3", "seeds = 1\ntrials = 2")
    (tmp_path / "phases.toml").write_text(text)
    experiment = load(tmp_path / "phases.toml")
    (tmp_path / "phases.toml").write_text(text.replace('"digits"', '"turned"\nplugins = ["turned.py"]'))
    turned = (load(tmp_path / "phases.toml"), Store(tmp_path / "turned"))
    measured = []
    for planned, where in ((experiment, store), turned):
        results = [train(run.spec, where.run(run.spec.run_id), torch.device("cpu")) for run in planned.tuning]
        measured.append([(result["weights_sha256"], result["metrics"]) for result in results])
    assert measured[0] == measured[1]
    assert not [name for _, metrics in measured[0] for name in metrics if "test" in name or "gap" in name]
    curve = store.run(experiment.tuning[0].spec.run_id).curve()
    assert "val_acc" in curve[0]
    assert not [name for name in curve[0] if "test" in name or "gap" in name]
    assert choose(experiment, store).chosen == choose(*turned).chosen
    assert choose(experiment, store).content == choose(*turned).content

    run = experiment.to_be_chosen()[0]
    result = train(run.spec, store.run(run.spec.run_id), torch.device("cpu"))
    assert "test_acc" in result["metrics"], "the labels that were turned do count here"
    assert not [name for name in result["metrics"] if "val" in name or "selected" in name]


class Launch:
    """`bench run` in a folder of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "phases.toml").write_text(TOML)
        self.results = path / "results" / "phases"

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench", "run", "phases.toml", "--jobs", "2", *options]
        return prefork.Popen(
            command,
            cwd=self.path,
            env=os.environ | {"COLUMNS": "120", prefork.WITHOUT_REPORT: "yes"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *options: str) -> str:
        process = self.start(*options)
        output, _ = process.communicate(timeout=prefork.HANGS)
        assert process.returncode == 0, output
        return output

    def weights(self) -> dict[str, str]:
        results = [json.loads(path.read_text()) for path in self.results.glob("runs/*/result.json")]
        return {result["run_id"]: result["weights_sha256"] for result in results}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Launch, str]:
    launched = Launch(tmp_path_factory.mktemp("undisturbed"))
    return launched, launched.run()


@pytest.mark.slow
def test_one_command_tunes_chooses_and_does_the_final_runs(undisturbed: tuple[Launch, str]) -> None:
    launched, output = undisturbed
    assert f"phases: 0 done, {TUNE + 2} to do" in output
    assert "phases: then 4 final runs (" in output
    assert len(re.findall(r"\] tune s\w+ lr=\S+ .*\(validation\)", output)) == TUNE
    assert len(re.findall(r"\] final \w+ .*seed [23]: done", output)) == FINAL
    assert len(launched.weights()) == TUNE + FINAL
    names = {str(path.relative_to(launched.results)) for path in launched.results.rglob("*") if path.is_file()}
    assert {"chosen.json", "tables/tuning.md", "tables/sweep.csv", "tables/results.tex"} <= names
    rows = [row for row in Study(records.read(launched.results)).rows if row.chosen]
    assert [(row.label, row.phase, row.done, row.planned) for row in rows] == [
        (label, "final", 2, 2) for label in ("sgd", "sam", "adam")
    ]
    chosen = json.loads((launched.results / "chosen.json").read_text())["choices"]
    assert [one["chosen"] for one in chosen] == [row.config for row in rows[:2]]
    output = launched.run()
    assert f"{TUNE + FINAL} done, 0 to do" in output


@pytest.mark.slow
def test_a_launch_killed_between_the_phases_goes_on_with_the_same_choice(
    undisturbed: tuple[Launch, str], tmp_path: Path
) -> None:
    whole, _ = undisturbed
    launched = Launch(tmp_path)
    process = launched.start("--only", "sgd", "--only", "sam")
    deadline = time.monotonic() + prefork.HANGS
    while not (launched.results / "chosen.json").exists():  # written before the first final run starts
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    tuned = {path.parent.name: path.stat().st_mtime_ns for path in launched.results.glob("runs/*/result.json")}
    assert len(tuned) >= TUNE
    (launched.results / "chosen.json").unlink()  # it can be made again from what the runs left
    launched.run()
    assert launched.weights() == whole.weights()
    assert (launched.results / "chosen.json").read_bytes() == (whole.results / "chosen.json").read_bytes()
    for run_id, written in tuned.items():
        assert (launched.results / "runs" / run_id / "result.json").stat().st_mtime_ns == written, "not done again"
    tuning = [(where.results / "tables" / "tuning.csv").read_bytes() for where in (launched, whole)]
    assert tuning[0] == tuning[1]


@pytest.mark.slow
def test_a_dry_run_shows_both_phases_and_status_counts_them(undisturbed: tuple[Launch, str], tmp_path: Path) -> None:
    whole, _ = undisturbed
    launched = Launch(tmp_path)
    output = launched.run("--dry-run", "--seeds", "1")
    assert len(re.findall(r"^[0-9a-f]{12}  tune s\w+ lr=\S+ .*seed [01]: \d+ passes$", output, flags=re.M)) == TUNE
    assert re.search(r"^-{12}  final sam seed 2, setting to be chosen: 36 passes$", output, flags=re.M)
    assert "seed 3" not in output
    assert "Estimated time on this machine" in output
    assert not launched.results.exists()
    command = [sys.executable, "-m", "bench", "status", "phases.toml"]
    for where, counted in ((launched, {"done": 0, "missing": 2}), (whole, {"done": 2, "missing": 0})):
        said = prefork.run(command, cwd=where.path).stdout
        (line,) = [line.split() for line in said.splitlines() if "final sam" in line]
        states = ("done", "running", "partial", "missing", "diverged", "failed")
        found = dict(zip(states, (int(cell.replace("·", "0")) for cell in line[2:]), strict=True))
        assert {state: found[state] for state in counted} == counted
        assert "tune sgd" in said
