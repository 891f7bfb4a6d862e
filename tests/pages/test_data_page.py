"""docs/data.md does what it says: its files are written and its commands run as they stand there."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from bench.core import registry
from bench.data.torchvision_sets import SETS
from tests import prefork
from tests.pages.documents import blocks, files, text

PAGE = "docs/data.md"
COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.splitlines()]
PROGRAMS = {"python": [sys.executable], "bench": [sys.executable, "-m", "bench"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder, after all commands of the page."""
    place = tmp_path_factory.mktemp("data_page")
    for name, content in files(PAGE).items():
        (place / name).write_text(content)
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        done = prefork.run([*PROGRAMS[program], *arguments], cwd=place)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return place


def test_every_file_that_is_shown_is_used() -> None:
    assert {command.split()[-1] for command in COMMANDS} == {*files(PAGE)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "score"), [("arrays", "test_acc"), ("saved", "test_macro_f1")])
def test_the_experiments_learn_something(folder: Path, name: str, score: str) -> None:
    records = pd.read_csv(folder / "results" / name / "records.csv")
    assert list(records.status.unique()) == ["done"]
    assert len(records) == 4
    assert records[score].min() > 0.3, "guessing gives 0.1"


def test_the_page_names_every_task_of_a_user_s_own_data() -> None:
    registry.load_builtins()
    own = {entry.name for entry in registry.tasks if hasattr(entry.factory, "files")}
    assert {name for name in own if f'name = "{name}"' in text(PAGE)} == own == {
        "arrays", "csv", "hf_dataset", "image_folder", "text_lm"
    }  # fmt: skip
    words = {*text(PAGE).replace("`", " ").replace(",", " ").split()}
    assert {*SETS} <= words
