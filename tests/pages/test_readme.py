"""README does what it says: its table is the committed one, its code runs, its files are there."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from bench.analysis import render, tables
from bench.analysis.study import Study
from bench.config.file import load
from bench.store import records
from tests import prefork
from tests.pages.readme_block import with_results

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def test_the_table_is_the_committed_one() -> None:
    results = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "results/digits_noise"]
    if subprocess.run(results, check=False).returncode:
        pytest.skip("results/digits_noise was made anew here, as `make quickstart` does")
    assert with_results(README) == README, "`make tables` writes the block anew"


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) >= 3
    for link in links:
        assert (ROOT / link).is_file(), link


def test_the_example_loop_runs_as_written() -> None:
    (code,) = (block for block in blocks("python") if "optimizer.step(closure)" in block)
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=prefork.HANGS)


def test_the_example_experiment_resolves(tmp_path: Path) -> None:
    glue, text, phases, vary = blocks("toml")
    (tmp_path / "glue.toml").write_text(glue)
    assert len(load(tmp_path / "glue.toml").runs) == 4 * 5
    (tmp_path / "example.toml").write_text(text)
    assert len(load(tmp_path / "example.toml").runs) == 6 * 5
    tuned = text.partition("[optimizers")[0].replace("seeds = 5\n", "").replace('"sgd"', '"adamw"') + phases
    (tmp_path / "example.toml").write_text(tuned)
    assert len(load(tmp_path / "example.toml").runs) == 8 * 2
    assert len(load(tmp_path / "example.toml").to_be_chosen()) == 5
    both = text.replace('model = "resnet8"', 'model = "resnet20"') + vary
    (tmp_path / "example.toml").write_text(both)
    assert len(load(tmp_path / "example.toml").runs) == 6 * 5 * 2 * 3


def test_the_example_plug_in_trains_with_sam_over_it(tmp_path: Path) -> None:
    (code,) = (block for block in blocks("python") if "register_task" in block)
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.toml").write_text(
        textwrap.dedent("""
        task = "breast_cancer"
        model = "mlp"
        plugins = ["mine.py"]
        baseline = "rmsprop"
        seeds = 2
        [train]
        epochs = 3
        [optimizers.rmsprop]
        [optimizers.sam]
        base = "rmsprop"
        """)
    )
    command = [sys.executable, "-m", "bench", "run", "mine.toml"]
    done = prefork.run(command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 to do" in done.stderr
    assert re.search(r"^sam +9\d\.\d\d ", done.stdout, flags=re.M)


@pytest.mark.parametrize("folder", sorted(ROOT.glob("results/*/")), ids=lambda folder: folder.name)
def test_committed_tables_are_made_from_the_committed_records(folder: Path, tmp_path: Path) -> None:
    paths = render.write(tables.build(Study(records.read(folder))), tmp_path)
    assert len(paths) >= 6
    left_over = {path.name for path in (folder / "tables").iterdir()} - {path.name for path in paths}
    assert not left_over, "tables that these records do not give"
    for path in paths:
        assert path.read_bytes() == (folder / "tables" / path.name).read_bytes(), path.name
