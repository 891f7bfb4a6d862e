"""The report as a file: it loads nothing, says everything, takes no text for markup, and is the same twice."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import report, tables
from bench.analysis.headline import headline
from bench.analysis.report import embedding
from bench.analysis.report.runs import LEVELS, POINTS, data
from bench.analysis.study import Study
from bench.cli import cli
from bench.store.records import Results

Make = Callable[..., Results]
ROOT = Path(__file__).parents[3]
FEW = {"sgd": {"test": 0.92}, "sam": {"test": 0.937, "sweep": ("rho", (0.1, 0.2))}}
HOSTILE = """</script><script>document.title = "owned"</script><img src=x onerror="document.title = 'owned'">&amp;"""


class Parsed(HTMLParser):
    """The elements of a page with their attributes, and what stands in style and script elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.inline: list[tuple[str, dict[str, str], str]] = []
        self.text, self.within = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within in ("style", "script"):
            self.inline.append((*self.elements[-1], data))
        else:
            self.text += f"{data} "


def page(results: Results) -> str:
    return report.page(Study(results), tables.build(Study(results)), {})


def embedded(html: str) -> dict[str, Any]:
    (found,) = (text for _, attributes, text in Parsed(html).inline if attributes.get("id") == "data")
    read: dict[str, Any] = json.loads(found)
    return read


def column(read: dict[str, Any], name: str) -> list[Any]:
    """As the page's script reads it."""
    held = read["columns"][name]
    if "all" in held:
        return [held["all"]] * read["count"]
    return [held["texts"][place] for place in held["of"]] if "texts" in held else held["values"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a committed result set, with the report that `bench report` makes of it."""
    out = tmp_path_factory.mktemp("report")
    folder = out / "glue_smoke"
    folder.mkdir()
    for name in ("experiment.json", "records.csv", "curves.csv"):
        shutil.copy(ROOT / "results" / "glue_smoke" / name, folder)
    cli.main(["report", "glue_smoke", "--out", str(out)], standalone_mode=False)
    return folder


def test_report_writes_page_tables_and_figures_the_same_twice(
    written: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()}
    assert {path.parent.name for path in files} == {"glue_smoke", "tables", "figures"}
    cli.main(["report", str(written)], standalone_mode=False)
    assert capsys.readouterr().out.strip() == str(written / "report.html")
    assert {path: path.read_bytes() for path in sorted(written.rglob("*")) if path.is_file()} == files


def test_the_page_loads_nothing(written: Path) -> None:
    found = Parsed((written / "report.html").read_text())
    assert {tag for tag, _ in found.elements}.isdisjoint(
        {"link", "iframe", "object", "embed", "base", "video", "audio"}
    )
    sources = [attributes[name] for _, attributes in found.elements for name in ("src", "srcset") if name in attributes]
    assert sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    links = [attributes["href"] for tag, attributes in found.elements if tag == "a"]
    assert links
    for link in links:  # a page that was mailed has nothing beside it
        assert link.startswith(("#", "data:text/")), link
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    css = next(text for tag, _, text in found.inline if tag == "style")
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_allows_what_is_inside_and_nothing_else(written: Path) -> None:
    found = Parsed((written / "report.html").read_text())
    policies = [attributes for _, attributes in found.elements if attributes.get("http-equiv")]
    assert [one["http-equiv"] for one in policies] == ["Content-Security-Policy"]
    policy = policies[0]["content"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for tag, attributes, text in found.inline:
        if "type" not in attributes:
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not any(
        "style" in attributes or any(name.startswith("on") for name in attributes) for _, attributes in found.elements
    )


def test_every_table_and_figure_is_there(written: Path) -> None:
    html = (written / "report.html").read_text()
    for path in (written / "tables").glob("*.md"):
        assert f'id="table-{path.stem}"' in html
    for path in (written / "figures").glob("*.png"):
        assert f'id="figure-{path.stem}"' in html


def test_files_are_inside_byte_for_byte(written: Path) -> None:
    found = Parsed((written / "report.html").read_text())
    files = {one["download"]: one["href"] for tag, one in found.elements if tag == "a" and "download" in one}
    inside = {name: base64.b64decode(link.partition(",")[2]) for name, link in files.items()}
    beside = {f"glue_smoke-table-{path.name}": path for path in written.glob("tables/*")}
    beside |= {f"glue_smoke-figure-{path.name}": path for path in written.glob("figures/*.csv")}
    assert inside == {name: path.read_bytes() for name, path in beside.items()}


def test_a_file_that_is_too_large_is_named_only(make_results: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "LARGEST", 10)
    html = page(make_results(FEW))
    assert "download=" not in html
    assert "<code>digits_noise-table-results.csv</code>" in html


def test_the_first_line_is_the_answer_and_the_forest_is_below_it(make_results: Make) -> None:
    results = make_results(FEW)
    html = page(results)
    body = html[html.index("<main") :]
    assert body.index("<h1") < body.index('class="forest"') < body.index('class="answer"')
    assert f">{headline(Study(results)).split(' ')[0]}" in body[: body.index("</h1>")]
    assert "<dt>Measured</dt>" not in html
    dated = make_results(FEW, change=lambda records: records.assign(finished_at="2026-03-01T10:00:00+00:00"))
    assert "<dt>Measured</dt><dd>2026-03-01</dd>" in page(dated)


# ---- data ----------------------------------------------------------------------------------------------------


def test_the_data_are_the_records(make_results: Make) -> None:
    results = make_results(FEW, status={("sam", "rho=0.2", 3): "failed", ("sgd", "", 1): "diverged"})
    read = embedded(page(results))
    records = results.records
    assert read["count"] == len(records)
    assert set(read["columns"]) == set(records.columns) - {"experiment"}
    for name in read["columns"]:
        expected = [None if pd.isna(value) else value for value in records[name]]
        if name in ("condition", "config"):
            expected = [value or "" for value in expected]
        for one, other in zip(column(read, name), expected, strict=True):
            if isinstance(other, bool):
                assert one == str(other).lower()
            else:
                assert one == (pytest.approx(other, rel=1e-5) if isinstance(other, float) else other), name
    chosen = {(row.label, row.config) for row in Study(results).rows if row.chosen and row.config}
    marked = column({"columns": {"chosen": read["chosen"]}, "count": read["count"]}, "chosen")
    expected = [key in chosen for key in records[["optimizer", "config"]].itertuples(index=False, name=None)]
    assert [mark == "chosen" for mark in marked] == expected
    assert any(expected)
    groups = read["groups"]
    assert {"lr", "momentum", "rho", "epochs"} <= set(groups["hyperparameters"])
    assert {"test_acc", "gap_loss"} <= set(groups["measured"])
    assert {"train_seconds", "passes"} <= set(groups["cost"])
    assert {"device", "weights_sha256"} <= set(groups["circumstances"])


def test_curves_are_as_measured_but_for_their_thickness(make_results: Make) -> None:
    long = {"sgd": {"epochs": 100}, "sam": {"test": 0.937, "epochs": 7}}
    results = make_results(long, status={("sam", "", 2): "failed"})
    curves = data(Study(results))["curves"]
    assert curves["series"] == ["train", "val", "test"]
    span = curves["high"] - curves["low"]
    lengths = set()
    for place, run_id in enumerate(results.records["run_id"]):
        drawn = [series[place] for series in curves["drawn"]]
        if curves["of"][place] is None:
            assert run_id == "sam--2"
            assert drawn == [[], [], []]
            continue
        epochs = curves["epochs"][curves["of"][place]]
        lengths.add(len(epochs))
        mine = results.curves[results.curves["run_id"] == run_id].set_index("epoch")
        assert {epochs[0], epochs[-1]} == {1, len(mine)}
        for levels, name in zip(drawn, ("train_clean_acc", "val_acc", "test_acc"), strict=True):
            heights = curves["low"] + span * np.array(levels) / LEVELS
            assert heights == pytest.approx(mine.loc[epochs, name].to_numpy(), abs=0.51 * span / LEVELS + 1e-6)
    assert lengths == {POINTS, 7}


def test_what_is_not_measured_in_a_curve_is_left_out(make_results: Make) -> None:
    results = make_results({"sgd": {}}, seeds=(0,))
    results.curves.loc[2, "test_acc"] = np.nan
    results.curves["val_acc"] = np.nan
    curves = data(Study(results))["curves"]
    assert curves["series"] == ["train", "test"]
    assert curves["drawn"][1][0][2] is None
    assert None not in curves["drawn"][0][0]


def test_the_page_stays_small_for_many_runs(make_results: Make) -> None:
    few, many = (page(make_results({"sgd": {}, "sam": {}}, seeds=range(count))) for count in (10, 60))
    assert (len(many) - len(few)) / 100 < 700, "bytes a run"


# ---- texts ---------------------------------------------------------------------------------------------------


def test_no_text_becomes_markup(make_results: Make) -> None:
    label = 'sam"><b id=x>'
    results = make_results(
        {"sgd": {}, label: {}},
        status={(label, "", 0): "failed"},
        title=HOSTILE,
        name="a<i>b",
        change=lambda records: records.assign(error=records["error"].where(records["status"] != "failed", HOSTILE)),
    )
    html = page(results)
    found = Parsed(html)
    assert sum(tag == "script" for tag, _ in found.elements) == 2
    assert {tag for tag, _ in found.elements}.isdisjoint({"b", "i"})
    assert not any(attributes.get("src") == "x" for _, attributes in found.elements)
    assert HOSTILE in found.text
    read = embedded(html)
    assert HOSTILE in column(read, "error")
    assert label in column(read, "optimizer")


def test_failures_are_told_with_their_reasons(make_results: Make) -> None:
    lost = {("sam", "rho=0.1", seed): "failed" for seed in range(5)} | {("sam", "rho=0.2", 0): "failed"}
    text = " ".join(Parsed(page(make_results(FEW, status={**lost, ("sgd", "", 1): "diverged"}))).text.split())
    assert "failed 6 runs: RuntimeError: out of memory" in text
    assert "sam, rho=0.1, seed 0; " in text
    assert "; and others" in text
    assert "diverged 1 run: the training loss was not finite" in text
    assert "Failures" not in page(make_results(FEW))


@pytest.mark.parametrize(("commit", "shown"), [(np.nan, "unknown"), ("0123456789abcdef", "0123456789 + uncommitted")])
def test_the_environment_is_told_with_or_without_a_commit(make_results: Make, commit: Any, shown: str) -> None:
    results = make_results(FEW, change=lambda frame: frame.assign(commit=commit, dirty=True))
    text = " ".join(Parsed(page(results)).text.split())
    assert f"AMD EPYC 2 fp32 2.11.0 3.11.9 {shown}" in text


def test_nothing_finished_gives_a_page_all_the_same(make_results: Make, tmp_path: Path) -> None:
    results = make_results(FEW, change=lambda frame: frame.assign(status="failed", error="OSError: no space"))
    paths = report.build(Study(results), tables.build(Study(results)), tmp_path)
    assert not (tmp_path / "figures").exists()
    text = " ".join(Parsed(paths[-1].read_text()).text.split())
    assert "No run has finished: there is no answer yet." in text
    assert "failed 15 runs" in text


def test_a_caution_stands_at_the_top(make_results: Make) -> None:
    html = page(make_results(FEW, change=lambda records: records.assign(data_verified=False)))
    assert html.index('role="note"') < html.index('id="tables"')
    assert "not their publisher" in html
