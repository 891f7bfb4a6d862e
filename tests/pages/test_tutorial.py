"""docs/your-own-model.md does what it says: its files are written and its commands run as they stand there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests import prefork

ROOT = Path(__file__).parents[2]
TUTORIAL = (ROOT / "docs/your-own-model.md").read_text()
FILES = {
    name: text for text, name in re.findall(r"^```(?:python|toml)\n(# (\S+)\n.*?)^```", TUTORIAL, flags=re.M | re.S)
}
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", TUTORIAL, flags=re.M | re.S) for line in block.splitlines()
]
PROGRAMS = {"python": [sys.executable], "bench": [sys.executable, "-m", "bench"]}


def run(command: str, folder: Path) -> str:
    """What a command of the tutorial prints, done in the reader's folder."""
    program, *arguments = shlex.split(command)
    done = prefork.run([*PROGRAMS[program], *arguments], cwd=folder)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder, with all files of the tutorial and the data that it makes."""
    place = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (place / name).write_text(text)
    for command in COMMANDS:
        if command.startswith("python "):
            run(command, place)
    return place


def test_every_block_is_a_file_or_commands_that_are_run() -> None:
    kinds = re.findall(r"^```(\w*)$", TUTORIAL, flags=re.M)[::2]  # without those that end a block
    assert kinds.count("python") + kinds.count("toml") == len(FILES)
    assert set(kinds) == {"python", "toml", "sh", "text"}
    assert {command.split()[0] for command in COMMANDS} == set(PROGRAMS)
    assert {command.split()[-1] for command in COMMANDS} <= set(FILES)


def test_the_data_is_what_the_text_says(folder: Path) -> None:
    assert len(list(folder.glob("pictures/*/*.png"))) == 1797
    assert len(list(folder.glob("pictures/*"))) == 10
    assert len(pd.read_csv(folder / "votes.csv")) == 944
    assert len(list(folder.glob("texts/*.txt"))) > 20


def answer_and_records(folder: Path, command: str, question: str) -> pd.DataFrame:
    """Run an experiment of the tutorial, see that it ends with an answer to the question, and return its records."""
    assert command in COMMANDS
    printed = " ".join(run(command, folder).split())
    answer = re.split(question, printed)[-1]
    assert re.match(r" (sam .* is (better|worse) than|No difference between sam and|sam against) ", answer), printed[
        -2000:
    ]
    name = command.split()[-1].removesuffix(".toml")
    records = pd.read_csv(folder / "results" / name / "records.csv")
    assert list(records.status.unique()) == ["done"]
    assert records.data_fingerprint.nunique() == 1
    assert (folder / "results" / name / "report.html").is_file()
    return records


@pytest.mark.parametrize(
    ("command", "question", "runs", "better_than_guessing"),
    [
        (
            "bench run pictures.toml",
            r"Does sam beat now and now-2x on pictures \(our_net\), and at what price\?",
            27,
            0.8,
        ),
        ("bench run votes.toml", r"Does sam beat now on votes \(mlp\), and at what price\?", 30, 0.8),
        ("bench run survey.toml", r"Does sam beat adam on survey \(our_mlp\), and at what price\?", 6, 0.55),
    ],
)
def test_an_experiment_ends_with_the_answer_in_words(
    folder: Path, command: str, question: str, runs: int, better_than_guessing: float
) -> None:
    records = answer_and_records(folder, command, question)
    assert len(records) == runs
    assert records.groupby("optimizer").test_acc.max().min() > better_than_guessing


def test_the_experiment_on_text_ends_with_perplexities_below_that_of_guessing(folder: Path) -> None:
    question = r"Does sam beat now on texts \((byte decoder|byte_decoder)\), and at what price\?"
    records = answer_and_records(folder, "bench run texts.toml", question)
    assert len(records) == 4
    assert records.test_ppl.between(2, 60).all()  # all bytes equally likely: 257
    assert (records.tokens > 0).all()


def test_answers_that_are_shown_are_of_the_experiments_that_are_shown() -> None:
    shown = re.findall(r"^```text\n(Does .*?)^```", TUTORIAL, flags=re.M | re.S)
    assert len(shown) == 2
    for text, (baseline, task) in zip(shown, (("now and now-2x", "pictures"), ("now", "votes")), strict=True):
        assert text.startswith(f"Does sam beat {baseline} on {task} (")


def test_links_lead_somewhere() -> None:
    assert "](docs/your-own-model.md)" in (ROOT / "README.md").read_text()
