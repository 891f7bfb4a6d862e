"""docs/methods.md has every registered method, with its passes and its figure."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from bench.core import registry
from bench.core.registry import optimizers
from tests.pages.documents import ROOT, text
from tests.pages.test_documents import resolved

registry.load_builtins()
FIGURES = runpy.run_path(str(ROOT / "docs/methods/figures.py"))
PAGE = text("docs/methods.md")
NAMES = [entry.name for entry in optimizers if entry.factory.__module__.startswith("bench.")]


def section(name: str) -> str:
    return PAGE.partition(f"\n## {name}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_its_place(name: str) -> None:
    part = section(name)
    assert (f"](methods/{name}.svg)" in part) == (name not in FIGURES["WITHOUT"])
    assert re.search(r"^    \S", part, flags=re.M), "no formula"
    assert re.findall(r"^- (\w+):", part, flags=re.M) == ["Cost", "Trap", "Source"]


@pytest.mark.parametrize("name", NAMES)
def test_the_passes_are_those_of_the_code(name: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith("| [") and f"(#{name})" in line]
    entry: dict[str, Any] = {name: {"base": "sgd", "lr": 0.1} if optimizers[name].wraps_base else {"lr": 0.1}}
    entry[name]["train"] = dict(optimizers[name].needs)
    if name == "sgd":
        entry = {}
    (planned,) = {
        run.spec.optimizer.name: run.spec.optimizer for run in resolved({"optimizers": entry}).runs if run.label == name
    }.values()
    assert float(row.strip("| ").rpartition("|")[2]) == pytest.approx(optimizers[name].passes(planned.params), abs=5e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FIGURES["WITHOUT"]])
def test_a_method_has_a_small_figure(name: str) -> None:
    file = ROOT / f"docs/methods/{name}.svg"
    assert "<svg" in file.read_text(encoding="utf-8")
    assert file.stat().st_size < 40_000


def test_figures_are_those_of_the_optimizers(tmp_path: Path) -> None:
    """The paths are made anew; how matplotlib writes them is its own affair."""
    assert {*FIGURES["SETTINGS"], *FIGURES["WITHOUT"]} == {*NAMES}
    steps, _ = FIGURES["path"]("sam")
    first = steps[0]
    (w, _), (moved, _) = first.evaluated
    assert sum((a - b) ** 2 for a, b in zip(moved, w, strict=True)) ** 0.5 == pytest.approx(0.3, rel=1e-4)
    assert w == pytest.approx(FIGURES["START"])
