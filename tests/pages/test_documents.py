"""README and docs do what they say: commands parse, settings resolve, links lead somewhere, code is run by a test."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from bench.cli import cli
from bench.config.resolve import Resolver
from bench.core.experiment import Experiment
from bench.launch.slurm import profile
from bench.sinks import sink
from tests import prefork
from tests.pages import keys_block
from tests.pages.documents import DOCUMENTS, ROOT, blocks, commands, text

RUN_BY = {
    "README.md": "test_readme.py",
    "docs/tour.md": "test_documents.py",
    "docs/sam-in-your-own-code.md": "test_own_code_page.py",
    "docs/sam-in-trainers.md": "test_drop_in.py",
    "docs/extending.md": "test_extending.py",
    "docs/your-own-model.md": "test_tutorial.py",
    "docs/data.md": "test_data_page.py",
}
"""Which test runs the Python code of a document."""

EXPERIMENT: dict[str, Any] = {
    "task": "digits",
    "model": "resnet8",
    "baseline": "sgd",
    "seeds": 5,
    "train": {"epochs": 20, "batch_size": 64},
    "optimizers": {"sgd": {"lr": 0.01}},
}
"""What a part of an experiment that a page shows is put into."""

RUNS = {"docs/experiments.md": [6 * 5, 6 * 5], "docs/tuning.md": [2 * 8 * 2], "docs/text-encoders.md": [4 * 5, 4 * 5]}
"""Runs of the experiments that pages show, where the number is known without counting by the code."""


def whole(part: dict[str, Any]) -> dict[str, Any]:
    """Return an experiment's document with this part of it in its place."""
    if "optimizers" in part and "task" in part:
        return part
    document = EXPERIMENT | part
    for table in ("train", "optimizers"):
        document[table] = EXPERIMENT[table] | part.get(table, {})
    if "display" in part:
        document["optimizers"]["sam"] = {"base": "sgd", "lr": 0.01}
    return {key: value for key, value in document.items() if key != "seeds" or "tune" not in part}


def resolved(part: dict[str, Any]) -> Experiment:
    return Resolver(Path("shown.toml"), whole(part)).experiment("shown")


# ---- commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "line"), [(document, line) for document in DOCUMENTS for line in commands(document, "bench")]
)
def test_every_command_that_is_shown_parses(document: str, line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    if name.startswith("-"):
        cli.make_context("bench", [name, *arguments], resilient_parsing=True)
        return
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"{document}: no command {name}"
    try:
        command.make_context(name, arguments)
    except click.exceptions.Exit:  # --help
        pass
    except click.UsageError as error:
        pytest.fail(f"{document}: {line}: {error.format_message()}")


def test_documents_show_commands() -> None:
    assert {shlex.split(line)[1] for line in commands("README.md", "bench")} >= {"run", "new", "report"}
    shown = {shlex.split(line)[1] for document in DOCUMENTS for line in commands(document, "bench")}
    assert shown >= {*cli.list_commands(click.Context(cli))}, "a command that no page shows"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_exist(document: str) -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", text("Makefile"), flags=re.M))
    shown = re.findall(
        r"(?:^ {4}(?:[A-Z_]+=\S+ )?|`(?:[A-Z_]+=\S+ )?)make ((?:[a-z0-9-]+ ?)+)", text(document), flags=re.M
    )
    assert not {target for targets in shown for target in targets.split()} - known


# ---- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if blocks(one, "toml") and "model.md" not in one])
def test_settings_that_are_shown_are_accepted(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for number, block in enumerate(blocks(document, "toml")):
        part = tomllib.loads(block)
        if document in RUN_BY and block.startswith("# "):  # a file, which that test runs
            continue
        if "slurm" in part:
            (tmp_path / "slurm.toml").write_text(block)
            assert profile.load(tmp_path / "slurm.toml", {}).partition == part["slurm"]["partition"]
        elif "log" in part:
            assert sink.checked(part["log"]) == (*part["log"],)
        elif "plugins" in part:
            assert document in RUN_BY, f"{number}: run by a test of its own"
        else:
            for name, content in zip(part.get("published", []), blocks(document, "csv"), strict=False):
                Path(name).write_text(content)
            task = part.get("task")
            if isinstance(task, dict) and "target" in task:  # a table of the reader's own
                rows = [f"{n},{n % 2}" for n in range(60)]
                (tmp_path / "own.csv").write_text("\n".join([f"age,{task['target']}", *rows]))
                task["path"] = str(tmp_path / "own.csv")
            runs.append(len(resolved(part).runs))
    assert all(runs)
    assert runs == RUNS.get(document, runs)


def test_a_shown_setting_that_is_wrong_is_told() -> None:
    with pytest.raises(Exception, match="epoch"):
        resolved({"train": {"epoch": 3}})


def test_the_keys_are_those_of_the_code() -> None:
    page = keys_block.PAGE.read_text(encoding="utf-8")
    assert keys_block.with_keys(page) == page, "`python -m tests.pages.keys_block` writes the block anew"


# ---- code and links ------------------------------------------------------------------------------------------


def test_a_test_runs_the_code_of_every_document() -> None:
    assert {document for document in DOCUMENTS if blocks(document, "python")} == {*RUN_BY}
    for test in RUN_BY.values():
        assert (Path(__file__).parent / test).is_file()


@pytest.mark.slow
def test_the_code_of_the_tour_runs_as_written(tmp_path: Path) -> None:
    (code,) = blocks("docs/tour.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=prefork.HANGS
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d +sgd +0 +0\.\d+$", done.stdout, flags=re.M), done.stdout


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= {*cited}
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in project["authors"]]


def slug(heading: str) -> str:
    """Return the anchor of a heading, as mkdocs and code hosts make it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)|`", r"\1", heading).strip().lower()
    return re.sub(r"[\s]", "-", re.sub(r"[^\w\s-]", "", words))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_somewhere(document: str) -> None:
    prose = re.sub(r"^```.*?^```", "", text(document), flags=re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)", prose)
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.is_file(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in map(slug, headings), link


def test_every_page_is_in_the_site_and_every_document_is_reached_from_readme() -> None:
    nav = text("mkdocs.yml").partition("\nnav:")[2]
    named = set(re.findall(r": (\S+\.md)$", nav, flags=re.M))
    pages = {document.removeprefix("docs/") for document in DOCUMENTS if document.startswith("docs/")}
    assert named == pages | {"index.md", "contributing.md", "changelog.md"}
    linked = set(re.findall(r"\]\((docs/[^)#]+|[A-Z]+\.md)\)", text("README.md")))
    assert linked >= {*DOCUMENTS} - {"README.md"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_page_names_a_part_of_readme_that_has_moved(document: str) -> None:
    assert not re.findall(r"README, \"|README\.md#", text(document))


def test_the_files_that_the_map_of_the_code_names_exist() -> None:
    for line in text("docs/architecture.md").splitlines():
        folders = [ROOT, ROOT / "bench"]
        for name in re.findall(r"`([\w/]+(?:\.py|\.csv|/))`", line):
            there = [folder / name for folder in folders if (folder / name).exists()]
            assert there, f"docs/architecture.md names {name}, which is not there: {line}"
            folders.append(there[0] if name.endswith("/") else there[0].parent)
