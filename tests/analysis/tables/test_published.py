"""Published tables beside ours: which run stands beside which number, and what verdict it gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.analysis import render, tables
from bench.analysis.study import Study
from bench.analysis.tables.published import Cell, cells, check_style, own_styles, published, styles, table
from bench.cli import cli
from bench.config.file import load
from bench.core import registry
from bench.core.errors import BadValue
from bench.store import records
from bench.store.columns import CIRCUMSTANCES, COSTS, metric_columns
from bench.store.published import read_published
from bench.store.records import Results

ROOT = Path(__file__).parents[3]
Make = Callable[..., Results]
PLAN: dict[str, Any] = {
    "sgd": {"epochs": 200},
    "sgd-2x": {"epochs": 400},
    "sam": {"epochs": 200, "sweep": ("rho", (0.05, 0.1))},
}
SPREAD = np.array([-0.001, -0.0005, 0.0, 0.0005, 0.001])


@pytest.fixture(scope="module")
def table1(request: pytest.FixtureRequest) -> Callable[..., Results]:
    """Made-up results of the very plan of paper_foret_table1: SAM as published, SGD at 5 and at 3.5 % error."""
    experiment = load(ROOT / "experiments/paper_foret_table1.toml")
    cell = published()[(published()["style"] == "foret-table1") & (published()["optimizer"] == "SAM")]
    cell = cell[(cell["model"] == "WRN-28-10") & (cell["epochs"] == 200)]
    sam = {(line["our_task"], line["setting"]): 1 - line["value"] / 100 for line in cell.to_dict("records")}

    def make(change: Callable[[pd.DataFrame], pd.DataFrame] = lambda frame: frame, **meta: Any) -> Results:
        rows = []
        for run in experiment.runs:
            settings = run.spec.hyperparameters()
            good = sam[run.spec.task.name, settings["task.augment"]] if run.label == "sam" else 0.95
            good = 0.965 if run.label == "sgd-2x" else good
            value = good + SPREAD[run.spec.seed] - (0.01 if settings.get("rho") == 0.1 else 0.0)
            row: dict[str, Any] = {"condition": run.condition_text, "optimizer": run.label, "config": run.config_text}
            row |= {"task": run.spec.task.name, "model": run.spec.model.name, "seed": run.spec.seed}
            row |= {"run_id": run.spec.run_id, "status": "done", "passes": settings["epochs"], "train_seconds": 1.0}
            rows.append({**row, **settings, "test_acc": value, "val_acc": value, "val_loss": 1 - value})
        columns = [*metric_columns("acc"), *COSTS, *CIRCUMSTANCES]
        frame = pd.DataFrame(rows)
        frame = frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame)])
        curves = frame.iloc[:0].assign(epoch=[], batch_loss=[])
        return Results(cast(Any, {**experiment.meta(), **meta}), change(frame), curves)

    return make


def of(found: list[Cell], **wanted: Any) -> Cell:
    (cell,) = (one for one in found if all(one.published[name] == value for name, value in wanted.items()))
    return cell


WIDE: dict[str, Any] = {"model": "WRN-28-10", "epochs": 200}


def test_each_number_meets_the_run_of_its_setting(table1: Make) -> None:
    found = cells(Study(table1()), "foret-table1")
    for dataset, task in (("CIFAR-10", "cifar10"), ("CIFAR-100", "cifar100")):
        for setting in ("basic", "cutout", "autoaugment"):
            cell = of(found, dataset=dataset, setting=setting, optimizer="SAM", **WIDE)
            assert cell.row is not None
            assert cell.row.varied == {"task": task, "task.augment": setting}
            assert cell.row.config == "rho=0.05"
            assert cell.verdict == "reproduced"
            assert cell.ours.mean == pytest.approx(cell.published["value"])


def test_what_was_not_run_is_said(table1: Make) -> None:
    found = cells(Study(table1()), "foret-table1")
    missing = [cell for cell in found if cell.verdict == "not run"]
    assert len(missing) == len(found) - 12
    assert {cell.published["model"] for cell in missing} == set(published()["model"][:60])
    assert of(found, dataset="CIFAR-10", setting="basic", optimizer="SAM", model="WRN-28-10", epochs=1800).row is None


def test_theirs_is_the_better_of_two_lengths_and_so_is_ours_by_validation(table1: Make) -> None:
    place = {"dataset": "CIFAR-10", "setting": "basic", "optimizer": "SGD", **WIDE}
    cell = of(cells(Study(table1()), "foret-table1"), **place)
    assert cell.row is not None
    assert (cell.row.label, cell.verdict) == ("sgd-2x", "reproduced")

    def worse_on_validation(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(val_acc=frame["val_acc"] - 0.5 * (frame["optimizer"] == "sgd-2x"))

    cell = of(cells(Study(table1(worse_on_validation)), "foret-table1"), **place)
    assert cell.row is not None
    assert (cell.row.label, cell.verdict) == ("sgd", "differs"), "the test set has no say"
    assert cell.ours.mean == pytest.approx(5.0)


def test_errors_turn_the_interval_round(table1: Make) -> None:
    ours = of(cells(Study(table1()), "foret-table1"), dataset="CIFAR-10", setting="basic", optimizer="SGD", **WIDE).ours
    half = 2.776445 * SPREAD.std(ddof=1) / np.sqrt(5) * 100
    assert (ours.low, ours.high) == pytest.approx((3.5 - half, 3.5 + half))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("model", "resnet20"), ("epochs", 100), ("train_size", 2000), ("train_share", 0.5), ("task.mixup", 1.0)),
        *(("label_noise", 0.2), ("task.augment", "none"), ("base", "adamw"), ("method", "asam")),
    ],
)
def test_other_settings_are_not_compared(table1: Make, column: str, value: Any) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(**{column: value})

    assert {cell.verdict for cell in cells(Study(table1(change)), "foret-table1")} == {"not run"}


def test_verdicts_at_the_edge(table1: Make) -> None:
    half = 2.776445 * SPREAD.std(ddof=1) / np.sqrt(5)

    def off(by: float) -> Callable[[pd.DataFrame], pd.DataFrame]:
        return lambda frame: frame.assign(test_acc=frame["test_acc"] - by)

    place = {"dataset": "CIFAR-10", "setting": "basic", "optimizer": "SAM", **WIDE}  # 2.7 ± 0.1
    for by, verdict in ((half + 0.00099, "reproduced"), (half + 0.00101, "differs")):
        assert of(cells(Study(table1(off(by))), "foret-table1"), **place).verdict == verdict


def test_one_seed_and_another_quantity_get_no_verdict(table1: Make) -> None:
    one = cells(Study(table1(lambda frame: frame[frame["seed"] == 0].reset_index(drop=True))), "foret-table1")
    assert of(one, dataset="CIFAR-10", setting="basic", optimizer="SAM", **WIDE).verdict == "fewer than 4 runs"

    def kwon(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(model="resnet32", label_noise=0.2, **{"task.augment": "basic"})

    found = cells(Study(table1(kwon)), "kwon-label-noise")
    assert of(found, setting="label noise 20%", optimizer="SAM").verdict == "other quantity"
    assert any("was not seen" in note for note in table(Study(table1(kwon)), "kwon-label-noise").footnotes)


def test_differences_are_compared_as_differences(make_glue: Make) -> None:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        sam = frame["optimizer"] == "sam"
        frame["model"], frame["model.checkpoint"], frame["label_noise"] = "encoder", "roberta-base", np.nan
        frame["method"], frame["base"] = np.where(sam, "sam", "adamw"), pd.Series("adamw", frame.index).where(sam)
        frame["test_score"] = 0.8 + np.where(sam, 0.007 + SPREAD[frame["seed"]], 0.0)
        return frame

    results = make_glue(("glue/rte",), {"adamw": {}, "sam": {}}, change=change)
    cell = of(cells(Study(results), "kaddour-glue"), dataset="RTE")
    assert cell.ours.mean == pytest.approx(0.7)
    assert cell.verdict == "reproduced"


def test_the_table_in_all_formats(table1: Make) -> None:
    found = table(Study(table1()), "foret-table1")
    assert [name for name, _ in found.blocks()] == ["data=CIFAR-10", "data=CIFAR-100"]
    assert found.columns[1:4] == ["model", "setting", "epochs"]
    (cells_,) = (row for row in found.rows if row[:4] == ["CIFAR-10", "WRN-28-10", "basic", "200"])
    assert cells_[4:] == ["2.70 ± 0.10", "2.7 ± 0.1", "reproduced", "3.50 ± 0.10", "3.5 ± 0.1", "reproduced"]
    assert "Of 60 numbers: 7 reproduced, 5 differ, 48 not run." in found.footnotes
    assert "| WRN-28-10" in render.render(found, "md")
    assert len(render.render(found, "csv").splitlines()) == 1 + 60
    latex = render.render(found, "tex")
    assert latex.isascii()
    assert r"2.70 \pm 0.10 & 2.7 $\pm$ 0.1 & reproduced" in latex


@pytest.mark.parametrize("style", styles())
def test_every_style_is_a_table(make_results: Make, style: str) -> None:
    found = table(Study(make_results({"sgd": {}, "sam": {}})), style)
    assert {cell for row in found.rows for cell in row if cell == "not run"}
    assert sum(row.count("not run") for row in found.rows) == len(found.numbers)


def test_our_names_exist_and_every_number_has_its_source() -> None:
    registry.load_builtins()
    here = published()
    for line in here[here["our_task"] != ""].to_dict("records"):
        assert line["our_task"] in {name for entry in registry.tasks for name in entry.names()}
        assert line["our_model"] in registry.models
        assert line["our_method"] in registry.optimizers
        assert not line["our_base"] or line["our_base"] in registry.optimizers
    assert (here[["source", "table", "verified", "metric"]] != "").all(axis=None)
    assert here["value"].notna().all()
    assert not here.duplicated(["style", "dataset", "model", "setting", "epochs", "optimizer"]).any()
    assert set(here["verified"]) == {"full text", "repository", "secondary note"}


def test_unknown_styles_name_the_nearest(make_results: Make) -> None:
    with pytest.raises(BadValue, match='did you mean "foret-table1"'):
        check_style(Study(make_results()), "foret-tabel1")


# ---- a user's own table --------------------------------------------------------------------------------------

OWN = """dataset,model,optimizer,metric,value,ci95,our_task,our_model,our_method,our_base,our_settings
CIFAR-10,WRN,SAM,test error %,2.8,0.1,cifar10,wrn28_10,sam,sgd,task.augment=basic
CIFAR-10,WRN,SGD,test accuracy %,99.1,,cifar10,wrn28_10,sgd,,task.augment=basic
"""


def test_a_users_own_table_stands_beside_our_numbers_with_verdicts(table1: Make, tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text(OWN)
    study = Study(table1(published=read_published(path)))
    assert own_styles(study) == ["theirs"]
    assert [cell.verdict for cell in cells(study, "theirs")] == ["reproduced", "differs"]
    (found,) = [one for one in tables.build(study) if one.name.startswith("published")]
    assert found.name == "published-theirs"
    assert found.title.startswith("theirs.csv beside ")
    assert found.rows[0][2:5] == ["2.70 ± 0.10", "2.8 ± 0.1", "reproduced"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("dataset,", "data,", "no column dataset"),
        ("ci95", "ci", "unknown column 'ci'; did you mean \"ci95\"?"),
        ("2.8", "low", "line 2: value must be a number, got 'low'"),
        (",,cifar10", ",+-1,cifar10", "line 3: ci95 must be a number or empty, got '+-1'"),
        ("sgd,task.augment=basic", "sgd", "line 2 has not 11 cells"),
        ("task.augment=basic", "basic", "line 2: our_settings must be \"key=value; key=value\", got 'basic'"),
        (OWN[OWN.index("\n") :], "", "has no lines"),
    ],
)
def test_a_wrong_table_says_where_it_is_wrong(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "theirs.csv"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(BadValue) as error:
        read_published(path)
    assert said in str(error.value)
    with pytest.raises(BadValue, match="cannot be read"):
        read_published(tmp_path / "none.csv")


def test_the_command_prints_a_table_by_its_name(tmp_path: Path, table1: Make) -> None:
    records.publish(table1(), tmp_path / "mine")
    command = ["table", "mine", "--out", str(tmp_path)]
    done = CliRunner().invoke(cli, [*command, "cost", "--format", "md", "--caption", "short"], catch_exceptions=False)
    # The title, the grid and the footnotes; nothing between them.
    title, *blocks = done.output.strip().split("\n\n")
    assert title.endswith("WRN-28-10 on CIFAR: cost**")
    assert [block[0] for block in blocks] == ["|", "-"]
    bare = CliRunner().invoke(cli, [*command, "cost", "--format", "tex", "--bare"], catch_exceptions=False)
    assert bare.output.startswith(r"% needs \usepackage{booktabs,siunitx}")
    wrong = CliRunner().invoke(cli, [*command, "csot"])
    assert 'has no table "csot"; did you mean "cost"?' in str(wrong.exception)
    assert not (tmp_path / "mine" / "tables").exists()


def test_the_command_prints_one_table_and_writes_nothing(tmp_path: Path, table1: Make) -> None:
    records.publish(table1(), tmp_path / "mine")
    options = ["table", "mine", "--out", str(tmp_path), "--style", "foret-table1", "--format", "md"]
    done = CliRunner().invoke(cli, options, catch_exceptions=False)
    assert done.output.startswith("**Foret et al. 2021 (arXiv:2010.01412), Table 1, beside Foret et al. 2021, table 1")
    assert not (tmp_path / "mine" / "tables").exists()


def test_one_answer_to_everything_is_marked_beside_what_was_published(table1: Make) -> None:
    def constant(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(test_constant=(frame["optimizer"] == "sam").astype(float))

    found = table(Study(table1(constant)), "foret-table1")
    assert any("§" in cell for row in found.rows for cell in row)
    assert any(note.startswith("§ sam") and "is degenerate" in note for note in found.footnotes)
    assert not any("§" in cell for row in table(Study(table1()), "foret-table1").rows for cell in row)
