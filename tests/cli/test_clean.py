"""Results of an experiment that has changed since: what is said of them, and what `bench clean` removes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.experiment import Experiment, PlannedRun
from bench.launch.leftover import leftovers
from bench.store import collecting, records
from bench.store.run_folder import Store

Bench = Callable[..., Any]
Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]

PLUGIN = """
import torch
from bench import register_optimizer

@register_optimizer("mine")
def mine(params, *, lr: float = 0.1):
    return torch.optim.SGD(params, lr=lr)
"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "cwd" / "results"


def finish(resolved: Experiment, out: Path, runs: Iterable[PlannedRun] | None = None, status: str = "done") -> Store:
    """Leave runs as training leaves them, and collect what there is."""
    store = Store(out / resolved.name)
    for run in resolved.runs if runs is None else runs:
        folder = store.run(run.spec.run_id)
        with folder.claim():
            folder.write_start(
                run.spec.model_dump_json(), {"device": "CPU", "threads": 1, "commit": "0", "dirty": False}
            )
            measured = {f"{part}_{what}": 0.5 for part in ("train_clean", "val", "test") for what in ("acc", "loss")}
            point = {"epoch": 2, "passes": 10, "train_seconds": 1.0, "lr": 0.1, "batch_loss": 1.0, **measured}
            about = {"run_id": folder.run_id, "status": status, "train_seconds": 1.0, "passes": 10}
            folder.write_result({**about, "metrics": {**measured, "gap_acc": 0.0, "gap_loss": 0.0}}, [point])
    records.publish(collecting.collect(store, resolved.meta(), resolved.runs), store.folder)
    return store


def left(resolved: Experiment, store: Store) -> dict[str, int]:
    counted: dict[str, int] = {}
    for one in leftovers(resolved, store, [run.spec.run_id for run in resolved.runs]):
        counted[one.why] = counted.get(one.why, 0) + 1
    return counted


# ---- which runs are left over, and why -----------------------------------------------------------------------


def test_what_an_edit_made_missing_is_counted_and_said_by_what_differs(
    write_experiment: Write, tiny: Tiny, results: Path
) -> None:
    store = finish(experiment.load(write_experiment(tiny())), results)
    assert left(experiment.load(write_experiment(tiny({"title": "Other", "baseline": "sam"}))), store) == {}
    changed = {"optimizers.sgd.lr": 0.2, "optimizers.sam.sweep": {"rho": [0.05, 0.4]}}
    assert left(experiment.load(write_experiment(tiny(changed))), store) == {
        "sgd: lr was 0.1, is 0.2": 2,
        "sam: rho was 0.1, is 0.05": 2,
    }
    other = {"sgd": {"lr": 0.5, "momentum": 0.1, "nesterov": True, "train": {"epochs": 1}}}
    assert left(experiment.load(write_experiment(tiny({"optimizers": other}))), store) == {
        "sam over sgd on digits: no run of the experiment is like it": 4,
        "sgd on digits: no run of the experiment is like it": 2,
    }


def test_a_comment_in_a_plug_in_is_named_as_its_change(
    write_experiment: Write, write_plugin: Write, tiny: Tiny, results: Path, registries: Callable[[], None]
) -> None:
    changes = {"plugins": [str(write_plugin(PLUGIN))], "optimizers.mine": {}}
    store = finish(experiment.load(write_experiment(tiny(changes))), results)
    registries()
    write_plugin(PLUGIN + "# a comment\n")
    assert left(experiment.load(write_experiment(tiny(changes))), store) == {"mine: plug-in mine.py has changed": 2}


def test_other_seeds_and_choices_that_tuning_may_make_again_are_no_leftovers(
    write_experiment: Write, tiny: Tiny, results: Path
) -> None:
    path = write_experiment(tiny({"seeds": 4}))
    store = finish(experiment.load(path), results)
    assert left(experiment.load(path, seeds=2), store) == {}
    tuned = {"seeds": ..., "tune": {"seeds": 1, "trials": 2}, "final": {"seeds": 2}, "optimizers.sgd.tune": False}
    phased = experiment.load(write_experiment(tiny(tuned), "phased"))
    first, second = ({("", "sam"): config} for config in ("rho=0.05", "rho=0.1"))
    store = finish(phased.with_final(first), results)
    assert left(phased.with_final(second), store) == {}
    assert left(phased, store) == {}


def test_runs_of_an_older_version_say_so(
    write_experiment: Write, tiny: Tiny, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved = experiment.load(write_experiment(tiny({"seeds": 1})))
    store = finish(resolved, results)
    monkeypatch.setattr("bench.core.spec.PROTOCOL", 99)
    found = left(resolved, store)
    because = "made by a version of this package with other measuring rules"
    assert found == {f"sgd: {because}": 1, f"sam: {because}": 2}


# ---- what commands say ---------------------------------------------------------------------------------------


def test_run_and_status_name_finished_runs_that_an_edit_made_missing(
    bench: Bench, write_experiment: Write, tiny: Tiny, results: Path
) -> None:
    path = write_experiment(tiny())
    finish(experiment.load(path), results)
    assert "No longer part" not in bench("status", path).out
    write_experiment(tiny({"optimizers.sgd.lr": 0.2}))
    for said in (bench("status", path).out, bench("run", path, "--dry-run").err):
        assert "No longer part of the experiment: 2 finished runs in results/tiny/runs: " in said
        assert "sgd: lr was 0.1, is 0.2 (2 runs). `bench clean` lists and removes them." in said


def test_clean_lists_and_removes_once_it_is_told_to(
    bench: Bench, write_experiment: Write, tiny: Tiny, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_experiment(tiny())
    store = finish(experiment.load(path), results)
    assert "every run in results/tiny/runs is part of the experiment" in bench("clean", path).out
    write_experiment(tiny({"optimizers.sgd.lr": 0.2}))
    before = store.present()
    listed = bench("clean", path)
    gone = {one.run_id for one in leftovers(experiment.load(path), store, [])} - {
        run.spec.run_id for run in experiment.load(path).runs
    }
    assert (listed.status, store.present()) == (0, before)
    assert all(f"{run_id}  done      sgd: lr was 0.1, is 0.2" in listed.out for run_id in gone)
    assert "tiny: 2 runs, 0.0 MB" in listed.out
    assert "still show 2 of them; `bench run" in listed.out
    assert "Nothing was removed; add --yes to remove these runs." in listed.out

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.confirm", lambda question: False)
    assert "Nothing was removed" in bench("clean", path).out
    held, _ = sorted(gone)
    with store.run(held).claim():
        said = bench("clean", path, "--yes").out
    assert "Removed 1 run." in said
    assert store.present() & gone == {held}
    assert "Removed 1 run." in bench("clean", path, "--yes").out
    assert store.present() == {*before, "lock"} - gone
    assert (store.folder / "records.csv").exists()


def test_clean_leaves_alone_what_is_no_run(bench: Bench, write_experiment: Write, tiny: Tiny, results: Path) -> None:
    path = write_experiment(tiny({"seeds": 1}))
    store = finish(experiment.load(path), results)
    for name in ("notes", "0123456789ab"):
        (store.folder / "runs" / name).mkdir()
        (store.folder / "runs" / name / "mine.txt").write_text("x")
    before = store.present()
    assert "is part of the experiment" in bench("clean", path, "--yes").out
    assert store.present() == before


# ---- results of an older file --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["table", "plot", "report"])
def test_results_of_an_older_file_are_told_with_the_keys_that_differ(
    bench: Bench, write_experiment: Write, tiny: Tiny, results: Path, command: str
) -> None:
    path = write_experiment(tiny())
    finish(experiment.load(path), results)
    assert bench(command, path).err == ""
    write_experiment(tiny({"title": "Other", "baseline": "sam", "optimizers.sgd.lr": 0.2, "model": "mlp"}))
    said = bench(command, path).err
    assert f"results/tiny is of an older {path}, with other baseline, model.width, optimizers.sgd.lr, title:" in said
    assert said.count("\n") == 1


def test_overrides_are_part_of_what_results_are_of(
    bench: Bench, write_experiment: Write, tiny: Tiny, results: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cwd" / "experiments"
    folder.mkdir()
    path = write_experiment(tiny()).rename(folder / "tiny.toml")
    resolved = experiment.load(path, ["train.epochs=3"], seeds=1)
    finish(resolved, results)
    assert bench("table", "tiny+train.epochs=3").err == ""
    path.write_text(path.read_text() + "# a comment\n")
    assert bench("table", "results/tiny+train.epochs=3").err == ""
    path.write_text(path.read_text().replace('"lr" = 0.1', '"lr" = 0.3', 1))
    assert "with other optimizers.sgd.lr:" in bench("table", "tiny+train.epochs=3").err
    path.write_text("broken")
    assert bench("table", "tiny+train.epochs=3").err == "", "that is for `bench run` to tell"


def test_results_without_a_record_of_their_file_are_compared_by_baseline_and_optimizers(
    write_experiment: Write, tiny: Tiny
) -> None:
    path = write_experiment(tiny())
    meta = experiment.load(path).meta()
    del meta["file"], meta["overrides"]
    assert experiment.changed_keys(path, meta) == []
    write_experiment(tiny({"baseline": "sam"}))
    assert experiment.changed_keys(path, meta) == ["baseline"]


def test_what_is_kept_of_a_file_survives_json_and_tells_plug_ins_apart(
    write_experiment: Write, write_plugin: Write, tiny: Tiny, registries: object
) -> None:
    path = write_experiment(tiny({"plugins": [str(write_plugin(PLUGIN))], "optimizers.mine": {}}))
    meta = json.loads(json.dumps(experiment.load(path).meta()))
    assert experiment.changed_keys(path, meta) == []
    plugin = write_plugin(PLUGIN + "# a comment\n")
    assert experiment.changed_keys(path, meta) == [f"plugins.{plugin}"]
