"""Figures for a venue: its text width, its type size, and PGF that LaTeX typesets in the document's font."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.text import Text

from bench.analysis import plots
from bench.analysis.plots.style import RC
from bench.analysis.study import Study
from bench.core.errors import BenchError
from bench.store.records import Results

Make = Callable[..., Results]
LABELS = {"sgd": {}, "sam_50%": {"sweep": ("rho", (0.1, 0.2))}, "a & b": {}}
needs_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-pictures)")


def sizes(results: Results, size: float) -> set[float]:
    """Return the sizes of all texts of the figures, as multiples of the type's size."""
    return {
        round(float(text.get_fontsize()) / size, 4)
        for drawing in plots.draw(Study(results), 5.5, ["paired", "sweep", "curves"], size).values()
        for text in drawing.figure.findobj(Text)
        if isinstance(text, Text) and text.get_text()
    }


def test_all_type_grows_together(make_results: Make) -> None:
    usual = {round(value / RC["font.size"], 4) for name, value in RC.items() if name.endswith(("size", "fontsize"))}
    assert sizes(make_results(), 8) == sizes(make_results(), 10) <= usual | {round(6.5 / 8, 4), round(7 / 8, 4), 1.0}


def test_a_width_in_inches_has_a_folder_of_its_own(make_results: Make, tmp_path: Path) -> None:
    paths = plots.build(Study(make_results({"sgd": {}, "sam": {}})), tmp_path, "5.5", ["svg"], 10)
    assert {path.parent for path in paths} == {tmp_path / "figures" / "5.5in-10pt"}
    assert {path.suffix for path in paths} == {".svg", ".csv"}
    # 72 points per inch, in the first lines of an SVG.
    svg = next(path for path in paths if path.name == "cost.svg").read_text()
    assert f'width="{5.5 * 72:g}pt"' in svg
    assert plots.build(Study(make_results({"sgd": {}, "sam": {}})), tmp_path, "column")[0].parent.name == "column"


@needs_tex
def test_pgf_is_typeset_by_latex(make_results: Make, tmp_path: Path) -> None:
    results = make_results(LABELS, title="50% & a_b", seeds=(0, 1, 2))
    written = plots.build(Study(results), tmp_path, "5.5", ["pgf"])
    figures = [path for path in written if path.suffix == ".pgf"]
    assert {path.stem for path in figures} >= {"curves", "paired", "sweep", "cost"}
    # PNG beside it: texts are changed for LaTeX after all other forms are written.
    both = plots.rendered(Study(results), 5.5, ("pgf", "png"))
    assert both["paired"].content["png"] == plots.rendered(Study(results), 5.5, ("png",))["paired"].content["png"]
    inputs = "\n".join(rf"\begin{{figure}}\input{{{path}}}\end{{figure}}" for path in figures)
    preamble = r"\documentclass{article}\usepackage{pgf,textcomp,times}"
    (tmp_path / "paper.tex").write_text(rf"{preamble}\begin{{document}}{inputs}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "DejaVu" not in (tmp_path / "figures" / "5.5in" / "paired.pgf").read_text(), "the type is the document's"


def test_pgf_without_latex_says_what_to_install(
    make_results: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError, match="--format pgf needs pdflatex, which is not installed"):
        plots.build(Study(make_results()), tmp_path, forms=["pgf"])
    assert not list(tmp_path.iterdir())
