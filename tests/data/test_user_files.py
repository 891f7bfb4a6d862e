"""A run on a user's own files is known by what is in them: not by where they lie, and not by when they changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.config.file import load
from bench.core.errors import BadValue, BenchError
from bench.core.experiment import PlannedRun
from bench.training.step import load_task

TOML = """
task = {{ name = "csv", path = "{path}", target = "kind", drop = ["age"] }}
model = "mlp"
baseline = "sgd"
seeds = 1
[train]
epochs = 1
[optimizers.sgd]
lr = 0.1
"""


@pytest.fixture
def plan(data_folder: Path, tmp_path: Path) -> Callable[[str], PlannedRun]:
    def first(path: str) -> PlannedRun:
        (tmp_path / "own.toml").write_text(TOML.format(path=path))
        return load(tmp_path / "own.toml").runs[0]

    return first


def test_the_path_is_relative_to_the_experiment_and_no_part_of_the_run(
    plan: Callable[[str], PlannedRun], tmp_path: Path
) -> None:
    here = plan("data/table.csv").spec
    (tmp_path / "data" / "table.csv").rename(tmp_path / "renamed.csv")
    moved = plan("renamed.csv").spec
    assert moved.task.params["path"] == str(tmp_path / "renamed.csv")
    assert moved.task.params["path"] != here.task.params["path"]
    assert moved.run_id == here.run_id
    assert "task.path" not in moved.hyperparameters()
    assert moved.hyperparameters()["task.drop"] == "age"
    assert load_task(moved).title == "renamed"


def test_other_content_is_another_run(plan: Callable[[str], PlannedRun], tmp_path: Path) -> None:
    before = plan("data/table.csv").spec.run_id
    table = tmp_path / "data" / "table.csv"
    table.write_text(table.read_text().replace("red", "dark red", 1))
    assert plan("data/table.csv").spec.run_id != before


def test_a_run_refuses_files_that_have_changed_since_it_was_planned(
    plan: Callable[[str], PlannedRun], tmp_path: Path
) -> None:
    spec = plan("data/table.csv").spec
    assert load_task(spec).train_examples() == 48
    table = tmp_path / "data" / "table.csv"
    table.write_text(table.read_text().replace("red", "dark red", 1))
    with pytest.raises(BenchError, match=r"table\.csv has changed since this run was planned; plan it again"):
        load_task(spec)


def test_no_such_file_is_told_with_its_key_and_the_nearest_one(plan: Callable[[str], PlannedRun]) -> None:
    with pytest.raises(BadValue, match=r'task\.path: .*tables\.csv is not a file; did you mean "table\.csv"\?'):
        plan("data/tables.csv")


def test_the_path_cannot_be_varied(plan: Callable[[str], PlannedRun], tmp_path: Path) -> None:
    plan("data/table.csv")
    path = tmp_path / "own.toml"
    path.write_text(path.read_text() + '[vary]\ntask.path = ["data/table.csv", "b.csv"]\n')
    with pytest.raises(BadValue, match=r"vary\.task\.path: cannot be varied; make one experiment per data set"):
        load(path)
