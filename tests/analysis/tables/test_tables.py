"""What the tables show, mark and admit, in all their formats."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from bench.analysis import render, tables
from bench.analysis.render.latex import TEX
from bench.analysis.render.table import Table
from bench.analysis.render.terminal import show
from bench.analysis.study import Study
from bench.store.records import Results

Make = Callable[..., Results]
NAMES = ["budgets", "cost", "hyperparameters", "losses", "results", "statistics", "sweep", "target"]
LABELS = ["sgd", "sgd-2x", "adam", "sam", "asam"]
pytestmark = pytest.mark.filterwarnings("error")

LOST = {
    ("sgd", "", 4): "failed",
    ("sam", "rho=0.5", 0): "diverged",
    **{("adam", "", seed): "missing" for seed in range(5)},
}


def table(results: Results, name: str) -> Table:
    return next(table for table in tables.build(Study(results)) if table.name == name)


def row(found: Table, label: str) -> list[str]:
    return next(cells for cells in found.rows if cells[0].startswith(label))


def notes(found: Table) -> str:
    return "\n".join(found.footnotes)


def set_test_accuracy(records: pd.DataFrame) -> pd.DataFrame:
    for label, values in {"sgd": [0.90, 0.92, 0.94], "adam": [0.93, 0.93, 0.96]}.items():
        records.loc[records["optimizer"] == label, "test_acc"] = values
        records.loc[records["optimizer"] == label, "gap_acc"] = [0.01, 0.02, 0.03]
    return records


def test_results_cells_by_hand(make_results: Make) -> None:
    found = table(make_results({"sgd": {}, "adam": {}}, seeds=(0, 1, 2), change=set_test_accuracy), "results")
    assert found.columns[1:] == ["test accuracy (%)", "difference to sgd (points)", "p (Holm)", "gap (points)", "n"]
    # sd 2 and 1 points at n=3: half-widths 4.302653 * sd / sqrt(3) = 4.97 and 2.48; p as in test_summary.
    assert found.rows[0] == ["sgd", "92.00 ± 4.97", "–", "–", "2.00 ± 2.48", "3"]
    assert found.rows[1] == ["adam", "94.00 ± 4.30", "+2.00 [-0.48, +4.48]", "0.074", "2.00 ± 2.48", "3"]


def test_cost_cells_name_ratios_to_the_baseline(make_results: Make) -> None:
    cells = row(table(make_results(), "cost"), "sam")
    assert cells[3:] == ["132", "2.00×", "310", "0, 0"]
    assert re.fullmatch(r"\d\.\d\d×", cells[2])
    assert re.fullmatch(r"\d+\.\d+ ± \d+\.\d+", cells[1])


def test_losses_have_intervals(make_results: Make) -> None:
    for cells in table(make_results(), "losses").rows:
        assert cells[1].endswith(" (all equal)")
        assert all(re.fullmatch(r"-?\d\.\d{3} ± \d\.\d{3}", cell) for cell in cells[2:4])


def test_sweep_table_marks_one_choice_a_label_and_goes_without_a_sweep(make_results: Make) -> None:
    found = table(make_results(), "sweep")
    assert [cells[0].split()[0] for cells in found.rows if cells[-1] == "chosen"] == ["sam", "asam"]
    names = [found.name for found in tables.build(Study(make_results({"sgd": {}, "adam": {}})))]
    assert names == ["results", "losses", "cost", "budgets", "statistics", "target", "hyperparameters"]


def test_incomplete_rows_are_marked_and_told(make_results: Make) -> None:
    found = table(make_results(status=LOST), "results")
    assert row(found, "sgd")[0] == "sgd†"
    assert row(found, "sgd")[-1] == "4/5"
    assert row(found, "adam") == ["adam†", "–", "–", "–", "–", "0/5"]
    assert "† sgd: 4 of 5 runs finished (1 failed)" in notes(found)
    assert "† no run finished: adam (5 unfinished)." in notes(found)
    assert "sam: other configurations lack runs and rank behind complete ones: rho=0.5 (1 diverged)" in notes(found)
    assert "† sam (rho=0.5): 4 of 5 runs finished (1 diverged)" in notes(table(make_results(status=LOST), "sweep"))


def test_nothing_finished_is_still_a_table(make_results: Make) -> None:
    results = make_results(change=lambda records: records.assign(status="missing"))
    found = table(results, "results")
    assert [cells[1:] for cells in found.rows] == [["–", "–", "–", "–", "0/5"]] * len(LABELS)
    assert "No run has finished." in " ".join(found.caption)
    assert [len(render.render(each, "csv").splitlines()) for each in tables.build(Study(results))] == [6, 6, 6, 9, 6]


def test_one_seed_has_no_interval_no_test_and_says_so(make_results: Make) -> None:
    found = table(make_results(seeds=(0,)), "results")
    assert all("±" not in cell and "[" not in cell for cells in found.rows for cell in cells)
    assert row(found, "sgd")[1].endswith("(n=1)")
    assert row(found, "adam")[3] == "–"
    assert "one seed gives neither an interval nor a test" in notes(found)


@pytest.mark.parametrize(("n", "smallest"), [(3, "0.25"), (5, "0.0625"), (6, None)])
def test_few_seeds_bound_the_sign_flip_test(make_results: Make, n: int, smallest: str | None) -> None:
    text = notes(table(make_results(seeds=range(n)), "results"))
    assert (f"below p={smallest}" in text) if smallest else ("sign-flip" not in text)


def test_footnotes_on_edge_budget_and_mixture(make_results: Make) -> None:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        records.loc[records["config"] == "rho=0.5", "val_acc"] = 1.0
        records.loc[0, "torch"] = "2.12.0"
        return records

    found = table(make_results(change=change), "cost")
    assert "sam (rho=0.5) is the largest value of its sweep" in notes(found)
    assert "12 epochs: sgd-2x; 66 passes: sgd, adam; 132 passes: sgd-2x, sam, asam." in notes(found)
    assert "times are not comparable" in notes(found)
    assert "torch 2.11.0, 2.12.0" in " ".join(found.caption)
    same = table(make_results({"sgd": {}, "adam": {}}), "cost")
    assert same.footnotes == ["Every row has the same budget: 6 epochs, 66 passes."]


def test_captions_carry_definition_choice_and_origin(make_results: Make) -> None:
    caption = " ".join(table(make_results(), "results").caption)
    for part in (
        "largest logit",
        "95% Student-t",
        "16.7%",
        "never by the test set",
        "20% of the training labels",
    ):
        assert part in caption
    for part in (
        "AMD EPYC (2 threads, fp32)",
        "torch 2.11.0",
        "Python 3.11.9",
        "commit 0123456789",
        "seeds 0, 1, 2",
    ):
        assert part in caption


def test_formats_give_the_same_numbers(make_results: Make) -> None:
    for found in tables.build(Study(make_results(status=LOST))):
        markdown = re.sub(r"[|\s†:-]+", " ", render.render(found, "md").split("\n\n")[1])
        latex = render.render(found, "tex").replace("$-$", "-").replace("< ", "$<$")
        latex = re.sub(r"(?<!\$)\\pm", r"$\\pm$", latex)
        latex = latex.replace(r" {$^\dagger$}", r"$^\dagger$")  # what siunitx reads is text again
        for cells in found.rows:
            for cell in cells:
                assert re.sub(r"[|\s†:-]+", " ", cell).strip() in markdown
                assert cell.translate(TEX) in latex
    found = table(make_results(status=LOST), "results")
    numbers = pd.read_csv(io.StringIO(render.render(found, "csv")))
    for cells, mean in zip(found.rows, numbers["test_acc_mean [%]"], strict=True):
        assert cells[1].split()[0] == ("–" if pd.isna(mean) else f"{mean:.2f}")


def test_csv_is_unrounded(make_results: Make) -> None:
    results = make_results()
    numbers = pd.read_csv(io.StringIO(render.render(table(results, "results"), "csv")))
    records = results.records
    expected = 100 * records.loc[records["optimizer"] == "adam", "test_acc"].mean()
    assert numbers.loc[2, "test_acc_mean [%]"] == pytest.approx(expected, rel=1e-14)


def test_latex_is_balanced_and_escaped(make_results: Make) -> None:
    results = make_results(title="50% & more: a_b #1 {x} $y$ ~z^2 \\o <1>", status=LOST)
    for found in tables.build(Study(results)):
        text = render.render(found, "tex")
        for environment in re.findall(r"\\begin\{(\w+)\}", text):
            assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 1
        bare = re.sub(r"\\[_%&#${}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert r"50\% \& more: a\_b \#1 \{x\} \$y\$" in text
        start = r"\endfoot" if r"\endfoot" in bare else r"\toprule"
        body = bare.split(start)[1].split(r"\bottomrule")[0].split(r"\end{longtable}")[0].replace(r"\midrule", "")
        lines = [line for line in body.splitlines() if line.strip() and line.strip() != r"\addlinespace"]
        headings = [line for line in lines if line.lstrip().startswith(r"\multicolumn")]
        assert len(headings) == (len(found.blocks()) if found.keys else 0)
        assert {line.count("&") for line in lines if line not in headings} == {len(found.columns) - found.keys - 1}
        assert all(line.endswith(r" \\") for line in lines)
        caption = re.search(r"\\caption\[\{.*?\}\]\{(.*)\}(?=\\label|\n)", bare)
        assert caption is not None
        assert not re.search(r"[_%&#^~±×†]", caption[1])
        assert text.isascii()


def test_markdown_escapes_the_column_mark(make_results: Make) -> None:
    found = table(make_results({"sgd": {}, "a|b": {}}), "results")
    assert r"| a\|b " in render.render(found, "md")


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_is_wide_enough(make_results: Make, width: int) -> None:
    for found in tables.build(Study(make_results(status=LOST))):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        show([found], console)
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert "…" not in console.file.getvalue()
        side_by_side = found.name != "statistics"  # whose columns go on below
        for cells in found.rows:
            shown = cells[found.keys :]
            assert not side_by_side or any(all(cell in line for cell in shown) for line in lines)
            assert all(any(cell in line for line in lines) for cell in shown)


def test_unknown_formats_are_refused(make_results: Make) -> None:
    with pytest.raises(ValueError, match="expected one of md, tex, csv"):
        render.render(table(make_results(), "cost"), "html")


def test_written_twice_gives_the_same_bytes(make_results: Make, tmp_path: Path) -> None:
    first = {path: path.read_bytes() for path in render.write(tables.build(Study(make_results())), tmp_path)}
    assert sorted(path.name for path in first if path.parent == tmp_path / "tables") == [
        f"{name}.{form}" for name in NAMES for form in ("csv", "md", "tex")
    ]
    assert first == {path: path.read_bytes() for path in render.write(tables.build(Study(make_results())), tmp_path)}


def test_analysis_leaves_torch_and_pyplot_unimported() -> None:
    code = (
        "import sys, bench.analysis.tables; assert 'matplotlib' not in sys.modules;"
        "import bench.analysis.plots;"
        "assert not {'torch', 'sklearn', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


PACKAGES = {"booktabs", "siunitx", "adjustbox", "rotating", "longtable", "pdflscape"}
needs_tex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex (Debian: texlive-science)")


def compile_tables(built: list[Table], folder: Path) -> str:
    """What pdflatex says of the tables in an article, on the narrowest page there is; it must not fail."""
    render.write(built, folder)
    inputs = "\n".join(rf"\input{{tables/{found.name}}}" for found in built)
    write_paper(inputs, folder)
    return compiled(folder)


def write_paper(inputs: str, folder: Path, document: str = "article", *more: str) -> None:
    packages = ",".join([*sorted(PACKAGES), *more])
    # acmart cannot begin a page without a title.
    title = r"\title{On SAM}\maketitle " if document == "acmart" else ""
    begin = rf"\documentclass{{{document}}}\usepackage{{{packages}}}\begin{{document}}{title}"
    (folder / "paper.tex").write_text(rf"{begin}{inputs}\end{{document}}")


def compiled(folder: Path) -> str:
    """Return what pdflatex says; it must not fail."""
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@needs_tex
def test_latex_compiles_and_fits_the_page(make_results: Make, make_glue: Make, tmp_path: Path) -> None:
    labels = {"adamw": {}, "sgd": {}, "adam": {}, "adamw-2x": {"epochs": 12}, "sam": {"sweep": ("rho", (0.1, 0.2))}}
    vary = {"task.augment": ["basic", "cutout"], "task": ["cifar10", "cifar100"]}
    small, several = make_results(status=LOST, title="50% & a_b"), make_results(status=LOST, vary=vary)
    wide = make_glue(labels={**labels, "asam": {}}, seeds=(0, 1, 2))
    for name, results in {"small": small, "several": several, "wide": wide}.items():
        (tmp_path / name).mkdir()
        said = compile_tables(tables.build(Study(results)), tmp_path / name)
        too_wide = [float(points) for points in re.findall(r"Overfull \\hbox \((\S+)pt", said)]
        assert max(too_wide, default=0) < 5, name
        assert "Float too large" not in said, name
        assert "Package siunitx Warning" not in said


CLASSES = ("article", "IEEEtran", "acmart", "elsarticle", "llncs")
HAVE = [
    name
    for name in CLASSES
    if shutil.which("kpsewhich") and subprocess.run(["kpsewhich", f"{name}.cls"], capture_output=True).returncode == 0
]


@needs_tex
@pytest.mark.parametrize("document", HAVE)
def test_every_table_whole_and_bare_compiles_in_the_classes_of_venues(
    make_results: Make, tmp_path: Path, document: str
) -> None:
    built = tables.build(Study(make_results(status=LOST, title="50% & a_b")))
    # A longtable does not go into two columns, nor beside acmart's floats: what is one stands bare in such a class.
    apart = document in ("IEEEtran", "acmart")
    whole = [one for one in built if not (apart and "longtable" in render.render(one, "tex"))]
    assert len(whole) > 4
    bare = "\n\n".join(render.render(one, "tex", bare=True) for one in built)
    for one in built:
        text = render.render(one, "tex", bare=True)
        assert text.count(r"\begin{tabular}") == 1
        assert not {r"\caption", r"\label", r"\begin{table}", "adjustbox"} & {*re.findall(r"\\\w+(?:{\w+})?", text)}
    render.write(built, tmp_path)
    inputs = "\n".join(rf"\input{{tables/{one.name}}}" for one in whole)
    write_paper(inputs + r"\clearpage\tiny " + bare, tmp_path, document)
    compiled(tmp_path)


def test_a_short_caption_is_the_title(make_results: Make) -> None:
    results = table(make_results(), "results")
    short = render.render(replace(results, caption=[], answer=()), "tex")
    title = results.title.replace("%", r"\%")
    assert rf"\caption[{{{title}}}]{{\textbf{{{title}.}} }}" in short


def test_bare_markdown_is_the_grid(make_results: Make) -> None:
    results = table(make_results(), "results")
    text = render.render(results, "md", bare=True)
    assert {line[0] for line in text.splitlines()} == {"|"}
    assert text.strip() in render.render(results, "md")


def test_long_tables_break_and_wide_ones_are_turned(make_results: Make, make_glue: Make) -> None:
    noise = {"label_noise": [round(0.05 * step, 2) for step in range(12)]}
    sweep = render.render(table(make_results(vary=noise), "sweep"), "tex")
    assert r"\begin{longtable}" in sweep
    assert r"\endhead" in sweep
    assert r"\begin{table}" not in sweep
    labels: dict[str, Any] = {label: {} for label in ("adamw", "sgd", "adam", "sam", "asam", "lion", "lars")}
    by_task = render.render(table(make_glue(labels=labels, seeds=(0, 1, 2)), "tasks"), "tex")
    assert r"\begin{sidewaystable}" in by_task or r"\begin{landscape}" in by_task
    assert "table}" in render.render(table(make_results(), "losses"), "tex")


def test_the_first_line_names_the_packages_that_are_used(make_results: Make) -> None:
    uses = {"adjustbox": "adjustbox", "rotating": "sidewaystable", "longtable": "longtable", "pdflscape": "landscape"}
    for found in tables.build(Study(make_results())):
        first, *others = render.render(found, "tex").splitlines()
        used = {name for name, environment in uses.items() if any(f"{{{environment}}}" in line for line in others)}
        assert set(first.partition("{")[2].rstrip("}").split(",")) == {"booktabs", "siunitx"} | used


def test_numbers_are_aligned_and_everything_else_is_text(make_results: Make) -> None:
    latex = render.render(table(make_results(status=LOST), "results"), "tex")
    assert "S[table-format=2.2(" in latex
    assert re.search(r"^ +sgd\$\^\\dagger\$ & \d\d\.\d\d \\pm \d\.\d\d & -- & \{--\} & ", latex, flags=re.M)
    assert "{4/5}" not in latex, "a column of mixed cells is one of text"
