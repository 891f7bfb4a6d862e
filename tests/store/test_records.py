"""Collecting: every planned run has a row, and committed records are believed only as they were written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.experiment import Experiment
from bench.store import collecting, records
from bench.store.run_folder import Store

TOML = """
task = "digits"
model = { name = "mlp", width = 8 }
baseline = "sgd"
seeds = 2
[train]
epochs = 2
[optimizers.sgd]
lr = 0.1
[optimizers.sam]
base = "sgd"
lr = 0.1
sweep.rho = [0.05, 0.1]
"""


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "tiny.toml").write_text(TOML)
    return load(tmp_path / "tiny.toml")


def finish(store: Store, run_id: str, test_acc: float = 0.9, **changes: Any) -> None:
    folder = store.run(run_id)
    folder.write_start("{}", {"device": "a CPU", "threads": 1, "commit": "0123456", "dirty": False, "host": "secret"})
    metrics = {"train_loss": 0.1, "test_acc": test_acc, "val_acc": 0.5}
    result = {"run_id": run_id, "status": "done", "metrics": metrics, "train_seconds": 1.5, "passes": 10} | changes
    folder.write_result(result, [{"epoch": 1, "passes": 5, "test_acc": 0.4}, {"epoch": 2, "passes": 10, **metrics}])


def collect(store: Store, experiment: Experiment) -> records.Results:
    return collecting.collect(store, experiment.meta(), experiment.runs)


def test_every_planned_run_has_one_row_whatever_became_of_it(tmp_path: Path, experiment: Experiment) -> None:
    store = Store(tmp_path / "results")
    ids = [run.spec.run_id for run in experiment.runs]
    finish(store, ids[0], test_acc=0.75)
    finish(store, ids[1], status="diverged", metrics={})
    store.run(ids[2]).write_start("{}", {})
    store.run(ids[2]).write_error("Traceback\n  ...\nValueError: of a kind\n")
    found = collect(store, experiment)
    assert list(found.records.run_id) == ids
    assert list(found.records.status) == ["done", "diverged", "failed", "missing", "missing", "missing"]
    assert list(found.records.optimizer) == ["sgd", "sgd", "sam", "sam", "sam", "sam"]
    assert list(found.records.config) == ["", "", "rho=0.05", "rho=0.05", "rho=0.1", "rho=0.1"]
    assert found.records.error[2] == "ValueError: of a kind"
    assert found.records.test_acc[0] == 0.75
    assert found.records.test_acc[1:].isna().all()
    assert list(found.curves.epoch) == [1, 2, 1, 2]
    for column in ("lr", "momentum", "rho", "epochs", "label_noise", "model.width", "method", "base", "seed"):
        assert column in found.records, column
    assert "host" not in found.records  # records are published; machine names are not


def test_what_is_published_is_read_back(tmp_path: Path, experiment: Experiment) -> None:
    store = Store(tmp_path / "results")
    for number, run in enumerate(experiment.runs):
        finish(store, run.spec.run_id, test_acc=0.1 * number)
    found = collect(store, experiment)
    records.publish(found, store.folder)
    back = records.read(store.folder)
    assert back.meta == found.meta
    orders = [
        json.dumps({key: value for key, value in meta.items() if key != "sha256"}) for meta in (found.meta, back.meta)
    ]
    assert orders[0] == orders[1], "tables and pages made of either have the same order"
    pd.testing.assert_series_equal(back.records.test_acc, found.records.test_acc)  # to the last bit
    assert list(back.records.run_id) == list(found.records.run_id)
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.*")}
    records.publish(collect(store, experiment), store.folder)
    assert before == {path.name: path.read_bytes() for path in store.folder.glob("*.*")}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.30000000000000004", "0.99", "its sha256 differs"),
        (",done,", ",dome,", r"line 2: status is 'dome'; did you mean \"done\"\?"),
        ("seed", "sead", "column seed is missing"),
        ("1.5", "fast", r"line 2: train_seconds is 'fast', not a number"),
    ],
)
def test_records_edited_by_hand_are_refused_with_the_place(
    tmp_path: Path, experiment: Experiment, old: str, new: str, message: str
) -> None:
    store = Store(tmp_path / "results")
    for number, run in enumerate(experiment.runs):
        finish(store, run.spec.run_id, test_acc=0.1 * number)
    records.publish(collect(store, experiment), store.folder)
    path = store.folder / "records.csv"
    edited = path.read_text().replace(old, new, 1)
    path.write_text(edited)
    with pytest.raises(BenchError, match=message) as error:
        records.read(store.folder)
    assert "records.csv is not as it was written" in str(error.value)
    assert path.read_text() == edited


def test_a_records_file_cut_short_or_broken_is_refused(tmp_path: Path, experiment: Experiment) -> None:
    store = Store(tmp_path / "results")
    records.publish(collect(store, experiment), store.folder)
    path = store.folder / "records.csv"
    whole = path.read_text()
    for broken in (whole[: len(whole) // 2], whole + 'a,b\n"never closed', ""):
        path.write_text(broken)
        with pytest.raises(BenchError, match="is not as it was written"):
            records.read(store.folder)
    os.remove(path)
    with pytest.raises(BenchError, match=r"cannot read .*records\.csv"):
        records.read(store.folder)


def test_a_folder_without_results_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="holds no results yet; `bench run`"):
        records.read(tmp_path)


def test_records_that_are_no_table_stop_a_launch(tmp_path: Path) -> None:
    (tmp_path / "records.csv").write_text("what,is\nthis,?\n")
    with pytest.raises(BenchError, match=r"records\.csv is not a table of records .*; restore or remove it"):
        records.finished(tmp_path)
    assert records.finished(tmp_path / "nowhere") == set()


def test_run_ids_that_look_like_numbers_stay_text(tmp_path: Path, experiment: Experiment) -> None:
    store = Store(tmp_path / "results")
    found = collect(store, experiment)
    found.records["run_id"] = ["0" * 12, "12e456789012", *found.records.run_id[2:]]
    records.publish(found, store.folder)
    assert list(records.read(store.folder).records.run_id[:2]) == ["0" * 12, "12e456789012"]


def test_meta_is_what_tables_need(experiment: Experiment) -> None:
    meta = experiment.meta()
    assert meta["labels"] == ["sgd", "sam"]
    assert meta["sweeps"] == {"sam": ["rho"]}
    assert meta["metric"]["key"] == "acc"
    assert json.loads(json.dumps(meta)) == meta
