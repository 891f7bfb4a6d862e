"""--name and --set: which results of an experiment a command is about, the same for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import cli
from bench.config.file import load
from bench.core.errors import BadValue
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import make_plan
from bench.store import records
from bench.store.run_folder import Store
from tests.run_folders import finish

Bench = Callable[..., Any]

SET = ("--set", "train.epochs=3")


@pytest.fixture
def path(write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """An experiment with results of it as it is, of it overridden, and of that under a name."""
    path = write_experiment(tiny({"seeds": 1}))
    for overrides, name in (((), None), ((SET[1],), None), ((SET[1],), "short")):
        experiment = load(path, overrides, results_name=name)
        store = Store(tmp_path / "cwd" / "results" / experiment.name)
        finish(store, experiment.runs)
        launch.collect(make_plan(experiment, store), Outcome())
    return path


def test_a_name_takes_the_place_of_the_overrides_in_the_folders_name(path: Path) -> None:
    named = load(path, [SET[1]], results_name="short")
    assert (named.name, named.of) == ("short", "tiny")
    assert [run.spec.run_id for run in named.runs] == [run.spec.run_id for run in load(path, [SET[1]]).runs]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", ".x", "a b", "x" * 201, "a\n", "a\0"])
def test_what_no_folder_can_be_called_is_told(path: Path, name: str) -> None:
    with pytest.raises(BadValue, match="must be letters, digits"):
        load(path, results_name=name)


def test_table_finds_results_as_run_names_them(bench: Bench, path: Path) -> None:
    named = ("--name", "short")
    every = (((), "tiny"), (SET, "tiny+train.epochs=3"), (named, "short"), ((*SET, *named), "short"))
    for options, folder in every:
        shutil.rmtree(Path("results") / folder / "tables", ignore_errors=True)
        said = bench("table", path, *options, "--format", "csv")
        assert (said.status, said.err) == (0, "")
        assert (Path("results") / folder / "tables").is_dir()


@pytest.mark.parametrize("command", ["table", "plot", "report", "diff"])
def test_results_that_are_not_there_or_of_other_overrides_are_told(bench: Bench, path: Path, command: str) -> None:
    said = bench(command, path, "--set", "train.epochs=9", "--name", "short")
    assert "results/short holds results of --set train.epochs=3; give the same settings, or another --name" in said.err
    assert 'no results of "shorter"; did you mean "short"?' in bench(command, path, "--name", "shorter").err
    assert 'no results of "tiny+train.epochs=9"' in bench(command, path, "--set", "train.epochs=9").err


def test_status_clean_and_run_are_about_the_named_results(bench: Bench, path: Path) -> None:
    named = (*SET, "--name", "short")
    assert bench("status", path, *named).out.splitlines()[1].split()[:2] == ["sgd", "1"]
    assert bench("clean", path, *named).out == "short: every run in results/short/runs is part of the experiment\n"
    assert "short: 3 done, 0 to do" in bench("run", path, *named, "--dry-run").err
    before = records.files(Path("results/short"))
    for options in (["--name", "short"], ["--set", "train.epochs=4", "--name", "short"]):
        said = bench("run", path, *options)
        assert said.status == 2
        assert "the results in results/short are results of tiny --set train.epochs=3; give the same" in said.err
    assert records.files(Path("results/short")) == before


def test_another_experiment_does_not_get_into_named_results(bench: Bench, path: Path) -> None:
    other = path.with_name("other.toml")
    shutil.copy(path, other)
    said = bench("run", other, *SET, "--name", "short", "--redo")
    assert (said.status, "are results of tiny --set train.epochs=3" in said.err) == (2, True)


def test_diff_compares_an_experiment_with_what_became_of_it(bench: Bench, path: Path) -> None:
    said = bench("diff", path, *SET, "--format", "md")
    assert said.status == 1
    assert "tiny (A) and tiny+train.epochs=3 (B)" in said.out
    assert "short (B)" in bench("diff", path, path, "--name", "short", "--format", "md").out
    assert bench("diff", "short", path, *SET, "--format", "md").status == 0, "the same runs, whatever they are called"
    assert "nothing to compare with:" in bench("diff", path).err


def test_results_under_a_name_know_their_experiment(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("experiments").mkdir()
    shutil.copy(path, "experiments/tiny.toml")
    assert bench("table", "short").err == ""
    text = Path("experiments/tiny.toml").read_text()
    Path("experiments/tiny.toml").write_text(text.replace('"lr" = 0.1', '"lr" = 0.3', 1))
    assert (
        "results/short is of an older experiments/tiny.toml, with other optimizers.sgd.lr"
        in bench("table", "short").err
    )


def test_every_command_about_an_experiments_results_takes_both() -> None:
    for name in ("run", "status", "cancel", "table", "plot", "report", "diff", "clean", "verify", "export", "measure"):
        options = {flag for parameter in cli.cli.commands[name].params for flag in parameter.opts}
        assert {"--set", "--name", "--out"} <= options, name
