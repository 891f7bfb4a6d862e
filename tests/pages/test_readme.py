"""README does what it says: it is one page, its table and numbers are the committed ones, its code runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.analysis import render, tables
from bench.analysis.study import Study
from bench.store import records
from tests.pages.documents import ROOT, blocks, text
from tests.pages.readme_block import with_results

README = text("README.md")
NUMBER = re.compile(r"[+-]\d+\.\d\d points \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]|\d+\.\d\d ± \d+\.\d\d")


def test_it_is_one_page() -> None:
    assert len(README.splitlines()) <= 150


def test_the_table_is_the_committed_one() -> None:
    results = ["git", "-C", str(ROOT), "diff", "--quiet", "HEAD", "--", "results/digits_noise"]
    if subprocess.run(results, check=False).returncode:
        pytest.skip("results/digits_noise was made anew here, as `make quickstart` does")
    assert with_results(README) == README, "`make tables` writes the block anew"


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_claims_have_the_numbers_of_the_results_that_they_link_to(document: str) -> None:
    page = " ".join(re.sub(r"<!-- (results|atlas):begin.*?\1:end -->", "", text(document), flags=re.S).split())
    parts = re.split(r" (?=- \*\*)| (?=## )", page)
    claims = [part for part in parts if NUMBER.search(part)]
    assert len(claims) >= 3
    for claim in claims:
        path = re.search(r"results/\w+/tables/results\.md", claim)
        assert path, claim
        said = (ROOT / path[0]).read_text(encoding="utf-8")
        words = " ".join(said.replace(" |", "").split())
        for number in NUMBER.findall(claim):
            assert number in words or number.replace(" points", "") in words, f"{path[0]}: {number}"


def test_the_line_of_code_takes_a_step_of_sam() -> None:
    (code,) = blocks("README.md", "python")
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    passes: list[float] = []

    def closure() -> Tensor:
        names["optimizer"].zero_grad()
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        passes.append(loss.item())
        return loss  # type: ignore[no-any-return]

    names: dict[str, Any] = {"model": model, "closure": closure}
    exec(compile(code, "README", "exec"), names)
    assert len(passes) == 2
    assert passes[1] > passes[0] == names["loss"].item()


SETS = sorted(path.parent for path in ROOT.glob("results/*/experiment.json"))


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_committed_tables_are_made_from_the_committed_records(folder: Path, tmp_path: Path) -> None:
    paths = render.write(tables.build(Study(records.read(folder))), tmp_path)
    assert len(paths) >= 6
    left_over = {path.name for path in (folder / "tables").iterdir()} - {path.name for path in paths}
    assert not left_over, "tables that these records do not give"
    for path in paths:
        assert to_twelve_digits(path.read_text()) == to_twelve_digits((folder / "tables" / path.name).read_text()), path


def to_twelve_digits(text: str) -> str:
    """The text with its numbers rounded: the last digits of a sum depend on a processor's vector instructions."""
    return re.sub(r"-?\d+\.\d{9,}(e-?\d+)?", lambda number: f"{float(number[0]):.12g}", text)
