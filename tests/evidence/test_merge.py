"""`bench merge`: parts of an experiment put together are what one machine would have; what does not fit is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest

from bench.analysis import render, tables
from bench.analysis.study import Study
from bench.config.file import load
from bench.core.errors import BadValue
from bench.core.experiment import Experiment, PlannedRun
from bench.evidence.merge import NOWHERE, merge
from bench.launch import run as launch
from bench.launch.outcome import Outcome
from bench.launch.plan import make_plan
from bench.launch.shard import Shard
from bench.store import records
from bench.store.records import Results
from bench.store.run_folder import Store
from tests.run_folders import finish

Bench = Callable[..., Any]
Write = Callable[..., Path]
Tiny = Callable[..., dict[str, Any]]
Make = Callable[..., Results]


@pytest.fixture
def part(tmp_path: Path) -> Make:
    """part("a", experiment, runs): the results of a machine that has done these runs, in the folder a/tiny."""

    def make(
        name: str, experiment: Experiment, runs: Iterable[PlannedRun], among: Iterable[PlannedRun] | None = None
    ) -> Results:
        store = Store(tmp_path / name / "tiny")
        finish(store, runs, among or experiment.runs)
        launch.collect(make_plan(experiment, store), Outcome())
        return records.read(store.folder)

    return make


def rendered(results: Results) -> dict[str, str]:
    built = tables.build(Study(results))
    return {f"{table.name}.{form}": render.render(table, form) for table in built for form in ("md", "csv")}


def change(results: Results, which: Any, **values: Any) -> Results:
    """Results in which some rows of the records have other cells."""
    frame = results.records.copy()
    for name, value in values.items():
        frame[name] = frame[name].astype(object) if isinstance(value, str) else frame[name]
        frame.loc[which(frame), name] = value
    return Results(results.meta, frame, results.curves, results.measures, results.directions)


def first(frame: pd.DataFrame) -> Any:
    return frame.index == 0


def refused(*parts: Results) -> str:
    with pytest.raises(BadValue) as caught:
        merge(list(zip("abcdef", parts, strict=False)))
    return str(caught.value)


# ---- three machines are as good as one -----------------------------------------------------------------------


@pytest.mark.usefixtures("without_report")
def test_three_machines_one_of_them_killed_give_the_tables_of_one(
    write_experiment: Write, tiny: Tiny, part: Make, tmp_path: Path, bench: Bench
) -> None:
    experiment = load(write_experiment(tiny({"seeds": 5})))
    alone = part("alone", experiment, experiment.runs)
    for number, name in enumerate("abc", start=1):
        store = Store(tmp_path / name / "tiny")
        mine = make_plan(experiment, store, shard=Shard(number, 3))
        share = mine.to_do if name != "b" else mine.to_do[:2]
        finish(store, share, experiment.runs)
        if name == "b":  # killed after it has collected two runs, in the middle of a third
            store.run(mine.to_do[2].spec.run_id).write_start("{}", {})
        launch.collect(mine, Outcome())
        shutil.rmtree(store.folder / "runs")
    said = bench("merge", tmp_path / "whole" / "tiny", *(tmp_path / name / "tiny" for name in "abc"))
    assert said.status == 0, said.err
    half = records.read(tmp_path / "whole" / "tiny")
    assert half.records.status.value_counts().to_dict() == {"done": 12, "missing": 3}
    assert sum(one["runs"] for one in half.meta["parts"]) == 12
    store = Store(tmp_path / "whole" / "tiny")
    plan = make_plan(experiment, store)
    assert len(plan.to_do) == 3, "what the machine that was killed had not collected"
    finish(store, plan.to_do, experiment.runs)
    launch.collect(plan, Outcome())
    whole = records.read(store.folder)
    assert rendered(whole) == rendered(alone)
    pd.testing.assert_frame_equal(whole.records, alone.records, check_exact=True)
    pd.testing.assert_frame_equal(whole.curves, alone.curves, check_exact=True)
    assert {path.suffix for path in (store.folder / "tables").iterdir()} == {".md", ".tex", ".csv"}
    assert (store.folder / "report.html").is_file()


def test_merging_all_parts_is_collecting_them_byte_for_byte(write_experiment: Write, tiny: Tiny, part: Make) -> None:
    experiment = load(write_experiment(tiny({"seeds": 3, "vary": {"data": {"label_noise": [0.0, 0.2]}}})))
    alone = part("alone", experiment, experiment.runs)
    halves = [part(name, experiment, experiment.runs[start::2]) for start, name in enumerate("ab")]
    merged = merge(list(zip("ab", halves, strict=True)))
    assert merged.taken == {"a": 9, "b": 9}
    for name in ("records", "curves"):
        assert getattr(merged.results, name).to_csv() == getattr(alone, name).to_csv()


def test_seeds_optimizers_and_conditions_of_each_are_in_the_whole(
    write_experiment: Write, tiny: Tiny, part: Make, tmp_path: Path
) -> None:
    few = load(write_experiment(tiny({"seeds": 2})))
    a = part("a", few, few.runs)
    more = load(write_experiment(tiny({"seeds": [2, 3], "optimizers.adam": {"lr": 0.01}})))
    b = part("b", more, more.runs)
    results = merge([("a", a), ("b", b)]).results
    assert results.meta["seeds"] == [0, 1, 2, 3]
    assert results.meta["labels"] == ["sgd", "sam", "adam"]
    missing = results.records[results.records.status == "missing"]
    assert [*zip(missing.optimizer, missing.seed, missing.run_id, strict=True)] == [
        ("adam", 0, NOWHERE),
        ("adam", 1, NOWHERE),
    ]
    folder = tmp_path / "whole"
    records.publish(results, folder)
    assert tables.build(Study(records.read(folder)))
    both = load(write_experiment(tiny({"seeds": 4, "optimizers.adam": {"lr": 0.01}})))
    assert len(make_plan(both, Store(folder)).to_do) == 2


def test_an_optimizer_that_one_condition_lacks_has_missing_rows_there(
    write_experiment: Write, tiny: Tiny, part: Make, tmp_path: Path
) -> None:
    vary = {"vary": {"data": {"label_noise": [0.0]}}}
    one = load(write_experiment(tiny(vary)))
    a = part("a", one, one.runs)
    other = load(write_experiment(tiny({"vary": {"data": {"label_noise": [0.2]}}, "optimizers.adam": {"lr": 0.01}})))
    b = part("b", other, other.runs)
    results = merge([("a", a), ("b", b)]).results
    records.publish(results, tmp_path / "whole")
    assert records.read(tmp_path / "whole").meta["conditions"] == ["label_noise=0", "label_noise=0.2"]
    gone = results.records[results.records.status == "missing"]
    assert set(zip(gone.condition, gone.optimizer, gone.label_noise, strict=True)) == {("label_noise=0", "adam", 0.0)}


def test_tuning_and_final_runs_come_together(write_experiment: Write, tiny: Tiny, tmp_path: Path) -> None:
    phases = {"seeds": ..., "tune": {"seeds": 2, "trials": 2}, "final": {"seeds": 2}}
    experiment = load(write_experiment(tiny({**phases, "optimizers.sgd": {"sweep": {"lr": [0.1, 0.2]}}})))

    def store(name: str) -> Store:
        return Store(tmp_path / name / "tiny")

    for name, runs in (("a", experiment.tuning[::2]), ("b", experiment.tuning[1::2])):
        finish(store(name), runs, experiment.tuning)
        launch.collect(make_plan(experiment, store(name)), Outcome())
    tuned = merge([(name, records.read(store(name).folder)) for name in "ab"]).results
    records.publish(tuned, store("whole").folder)
    plan = make_plan(experiment, store("whole"))
    assert {run.phase for run in plan.to_do} == {"final"}, "the choice is made from the merged records alone"
    shutil.copytree(store("whole").folder, store("c").folder)
    finish(store("c"), plan.to_do, plan.experiment.runs)
    launch.collect(make_plan(experiment, store("c")), Outcome())
    c = records.read(store("c").folder)
    results = merge([("whole", records.read(store("whole").folder)), ("c", c)]).results
    assert list(results.records.status) == ["done"] * 12
    assert results.records.drop(columns="experiment").to_csv() == c.records.drop(columns="experiment").to_csv()


# ---- the same run twice --------------------------------------------------------------------------------------


def test_the_same_run_twice_with_the_same_numbers_counts_once(write_experiment: Write, tiny: Tiny, part: Make) -> None:
    experiment = load(write_experiment(tiny()))
    a, b = (part(name, experiment, runs) for name, runs in (("a", experiment.runs[:4]), ("b", experiment.runs[2:])))
    b = change(b, lambda frame: frame.index >= 0, train_seconds=9.0)
    merged = merge([("a", a), ("b", b)])
    assert (merged.taken, merged.twice) == ({"a": 4, "b": 2}, 2)
    assert list(merged.results.records.train_seconds) == [2.0] * 4 + [9.0] * 2


def test_other_bits_on_the_same_machine_are_refused_and_within_tolerance_on_another_one_taken(
    write_experiment: Write, tiny: Tiny, part: Make
) -> None:
    experiment = load(write_experiment(tiny()))
    a, b = (part(name, experiment, experiment.runs) for name in "ab")
    run_id = a.records.run_id[0]
    said = refused(a, change(b, first, test_acc=0.999))
    assert f"run {run_id} (sgd, seed 0) differs between a and b" in said
    assert "test_acc" in said
    bits = {"device": "another CPU", "weights_sha256": "f" * 16}
    assert merge([("a", a), ("b", change(b, first, **bits))]).twice == 6
    assert "test_acc: recorded" in refused(a, change(b, first, **bits, test_acc=0.999))
    curves = b.curves.assign(val_loss=b.curves["val_loss"].where(b.curves.index > 0, 0.123))
    assert "curve: from epoch 1 on" in refused(a, Results(b.meta, b.records, curves))


# ---- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("protocol", 1, "protocol is 2 in a, 1 in b"),
        ("baseline", "sam", "baseline is sgd in a, sam in b"),
        ("overrides", ["train.epochs=3"], "overrides is [] in a, ['train.epochs=3'] in b"),
        ("vary", {"label_noise": [0.0]}, "vary: nothing is varied in a, label_noise in b"),
        ("sweeps", {"sam": ["lr"]}, "sam: ['rho'] is swept in a, ['lr'] in b"),
        ("metric", {"key": "r2", "name": "R2"}, "metric is accuracy in a, R2 in b"),
        ("phases", {"tune": {}, "final": {}}, "phases: only b has [tune] and [final]"),
    ],
)
def test_what_is_of_another_experiment_is_refused(
    write_experiment: Write, tiny: Tiny, part: Make, key: str, value: Any, said: str
) -> None:
    experiment = load(write_experiment(tiny()))
    a, b = (part(name, experiment, experiment.runs) for name in "ab")
    assert said in refused(a, Results(cast(Any, {**b.meta, key: value}), b.records, b.curves))


def test_other_settings_and_other_data_are_refused(write_experiment: Write, tiny: Tiny, part: Make) -> None:
    experiment = load(write_experiment(tiny({"seeds": 2})))
    a = part("a", experiment, experiment.runs)
    other = load(write_experiment(tiny({"seeds": [5], "optimizers.sgd.lr": 0.2})))
    assert "sgd: lr is 0.1 in a, 0.2 in b" in refused(a, part("b", other, other.runs))
    later = load(write_experiment(tiny({"seeds": [5]})))
    c = part("c", later, later.runs)
    prints = [change(one, lambda frame: frame.index >= 0, data_fingerprint=text) for one, text in ((a, "1"), (c, "2"))]
    assert "task digits: the data differ: fingerprint 1 in a, 2 in b" in refused(*prints)
    assert "is run" in refused(a, change(a, first, run_id="0" * 12))


def test_a_damaged_half_is_refused_and_nothing_is_written(
    write_experiment: Write, tiny: Tiny, part: Make, tmp_path: Path, bench: Bench
) -> None:
    experiment = load(write_experiment(tiny()))
    part("a", experiment, experiment.runs[:3])
    part("b", experiment, experiment.runs[3:])
    path = tmp_path / "b" / "tiny" / "records.csv"
    path.write_text(path.read_text().replace("0.3", "0.9", 1))
    before = records.files(tmp_path / "a" / "tiny")
    said = bench("merge", tmp_path / "a" / "tiny", tmp_path / "b" / "tiny")
    assert said.status == 2
    assert "records.csv is not as it was written" in said.err
    assert records.files(tmp_path / "a" / "tiny") == before
    assert bench("merge", "new", tmp_path / "b" / "tiny").status == 2
    assert not (tmp_path / "cwd" / "results" / "new" / "records.csv").exists()
    assert "the same results twice" in bench("merge", tmp_path / "a" / "tiny", tmp_path / "a" / "tiny").err
