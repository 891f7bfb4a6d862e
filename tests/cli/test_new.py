"""`bench new`: what it writes runs at once, and nothing is overwritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.store import records

Bench = Callable[..., Any]


@pytest.mark.slow
@pytest.mark.usefixtures("registries", "without_report")
@pytest.mark.parametrize("own", [(), ("--task", "--optimizer")])
def test_what_is_written_runs_at_once(bench: Bench, own: tuple[str, ...]) -> None:
    said = bench("new", "mine", *own)
    assert said.status == 0, said.err
    files = {"mine.toml", *(f"mine_{flag.removeprefix('--')}.py" for flag in own)}
    assert {path.name for path in Path().iterdir()} == files
    assert said.out.endswith("Try it: bench run mine.toml --dry-run\n")
    done = bench("run", "mine.toml", "--seeds", 1, "--jobs", 1, "--set", "train.epochs=1")
    assert done.status == 0, done.err
    (folder,) = Path("results").iterdir()
    found = records.read(folder).records
    labels = {"sgd", "sgd-2x", "sam"} | ({"mine", "sam-over-mine"} if "--optimizer" in own else set())
    assert {*found.optimizer} == labels
    assert {*found.status} == {"done"}
    assert {*found.task} == {"mine" if "--task" in own else "digits"}


def test_where_experiments_have_a_folder_it_goes_there_and_is_found_by_name(bench: Bench) -> None:
    Path("experiments").mkdir()
    said = bench("new", "mine")
    assert said.out == f"wrote {Path('experiments/mine.toml')}\nTry it: bench run mine --dry-run\n"
    assert "sgd-2x" in bench("status", "mine").out


def test_nothing_is_overwritten_and_then_nothing_is_written(bench: Bench) -> None:
    Path("mine_task.py").write_text("mine")
    said = bench("new", "mine", "--task", "--optimizer")
    assert said.status == 2
    assert "mine_task.py would be overwritten" in said.err
    assert [path.name for path in Path().iterdir()] == ["mine_task.py"]
    assert Path("mine_task.py").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["My Own"], "must be small letters"),
        (["../mine"], "must be small letters"),
        (["digits", "--task"], "task digits already exists"),
        (["sgd", "--optimizer"], "optimizer sgd already exists"),
    ],
)
def test_a_name_that_cannot_be_is_told(bench: Bench, arguments: list[str], words: str) -> None:
    said = bench("new", *arguments)
    assert said.status == 2
    assert words in said.err
    assert not list(Path().iterdir())
