"""The atlas: which rows it has, what each says, and what is said of all."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from bench.analysis import render
from bench.analysis.atlas import atlas
from bench.analysis.atlas.answer import answer
from bench.analysis.atlas.figures import figures
from bench.analysis.atlas.points import Point, points
from bench.analysis.atlas.published import pairs
from bench.analysis.atlas.tables import tables
from bench.analysis.study import Study
from bench.cli import cli
from bench.core.errors import BenchError
from bench.store import records
from bench.store.records import Results

Make = Callable[..., Results]
ROOT = Path(__file__).parents[3]
RHO, LR = ("rho", (0.05, 0.1, 0.2)), ("lr", (0.05, 0.1, 0.2))
FEW = {
    "sgd": {"test": 0.92, "sweep": LR},
    "sgd-2x": {"test": 0.925, "epochs": 12, "sweep": LR},
    "sam": {"test": 0.94, "sweep": RHO},
}
PLAIN = {"sgd": {"test": 0.92}, "sgd-2x": {"test": 0.925, "epochs": 12}, "sam": {"test": 0.94}}
METHODS = {
    "sgd": ("sgd", np.nan),
    "sgd-2x": ("sgd", np.nan),
    "sam": ("sam", "sgd"),
    "asam": ("asam", "sgd"),
    "adam": ("adam", np.nan),
}


def named(frame: pd.DataFrame) -> pd.DataFrame:
    """Give every record its method and what that wraps."""
    method, base = (frame["optimizer"].map({label: both[place] for label, both in METHODS.items()}) for place in (0, 1))
    return frame.assign(method=method, base=base.astype(object))


def scores(**by_label: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        for label, values in by_label.items():
            frame.loc[frame["optimizer"] == label.replace("_", "-"), "test_acc"] = values
        return named(frame)

    return change


def one(make: Make, labels: Any = FEW, **settings: Any) -> Point:
    (found,) = points(Study(make(labels, **{"change": named, **settings})))
    return found


# ---- rows ----------------------------------------------------------------------------------------------------


def test_a_row_is_sam_minus_its_base_at_equal_epochs_and_at_equal_passes(make_results: Make) -> None:
    values = scores(sgd=[0.90, 0.91, 0.92, 0.93, 0.94], sgd_2x=[0.95] * 5, sam=[0.92, 0.93, 0.94, 0.95, 0.97])
    found = one(make_results, PLAIN, change=values)
    assert found.at_epochs.mean == pytest.approx(2.2)  # points
    assert found.at_passes.mean == pytest.approx(100 * (0.942 - 0.95))
    assert (found.base, found.twice, found.n) == ("sgd", "sgd-2x", 5)
    assert found.passes_ratio == pytest.approx(2)
    assert (found.task, found.model, found.label_noise, found.family) == ("digits", "resnet8", 0.2, "digits")
    assert found.examples == pytest.approx(960 / 6)


def test_a_metric_of_which_less_is_better_counts_the_other_way(make_results: Make) -> None:
    metric = {**Study(make_results()).meta["metric"], "higher_is_better": False, "unit": "", "scale": 1.0}
    up, down = one(make_results, PLAIN), one(make_results, PLAIN, metric=metric)
    assert down.at_epochs.mean == pytest.approx(-up.at_epochs.mean / 100)
    assert down.at_epochs.low == pytest.approx(-up.at_epochs.high / 100)
    assert not down.in_points


def test_conditions_have_a_row_each_with_their_own_noise(make_results: Make) -> None:
    found = points(Study(make_results(FEW, change=named, vary={"label_noise": [0.0, 0.4], "train_size": [500, 1000]})))
    assert [(row.label_noise, row.condition) for row in found] == [
        (0.0, "train size=500"), (0.0, "train size=1000"), (0.4, "train size=500"), (0.4, "train size=1000"),
    ]  # fmt: skip


def test_variants_of_sam_are_not_sam(make_results: Make) -> None:
    labels = {**PLAIN, "sam-norm-only": {"test": 0.5}, "asam": {"test": 0.5}}
    METHODS["sam-norm-only"] = ("sam", "sgd")
    study = Study(make_results(labels, change=named))
    assert [row.ours for row in points(study)] == ["sam"]
    assert [row.ours for row in points(study, "asam")] == ["asam"]


def test_sam_over_several_bases_has_a_row_for_each(make_results: Make) -> None:
    METHODS["sam-adam"] = ("sam", "adam")
    labels = {**FEW, "adam": {"sweep": LR}, "sam-adam": {"test": 0.93, "sweep": RHO}}
    found = points(Study(make_results(labels, change=named)))
    assert [row.base for row in found] == ["sgd", "adam"]
    assert "over adam" in found[1].name


def test_a_network_of_another_width_is_another_setting(make_results: Make) -> None:
    def wide(width: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
        return lambda frame: named(frame.assign(**{"model.width": width}))

    assert one(make_results, change=wide(12)).setting != one(make_results, change=wide(16)).setting
    assert one(make_results, change=wide(12)).setting == one(make_results, seeds=(0, 1), change=wide(12)).setting
    few = one(make_results, change=lambda frame: named(frame.assign(train_size=500)))
    assert few.setting != one(make_results).setting
    other = one(make_results, change=lambda frame: named(frame.assign(**{"model.heads": np.nan})))
    assert other.setting == one(make_results).setting, "a column of another model"


def test_the_base_is_what_sam_wraps_and_not_another_optimizer(make_results: Make) -> None:
    labels = {"adam": {"test": 0.99}, **FEW}
    assert one(make_results, labels, baseline="adam").base == "sgd"


def test_few_pairs_and_equal_pairs_are_shown_but_not_judged(make_results: Make) -> None:
    assert one(make_results, seeds=(0, 1, 2)).side("epochs") == "unjudged"
    assert one(make_results, change=scores(sgd=0.9, sam=0.92, sgd_2x=0.91)).side("epochs") == "unjudged"
    assert one(make_results).side("epochs") == "better"


def test_a_method_without_a_search_is_shown_but_not_judged(make_results: Make) -> None:
    untuned = one(make_results, {**FEW, "sam": {"test": 0.99}})
    assert (untuned.tuned, untuned.n, untuned.side("epochs")) == ("nothing", 5, "unjudged")
    alone = one(make_results, {**FEW, "sgd": {"test": 0.5}})
    assert (alone.tuned, alone.side("epochs")) == ("rho (3 trials); the base was not tuned", "unjudged")


def test_a_longer_base_without_a_search_is_not_judged_at_equal_passes(make_results: Make) -> None:
    found = one(make_results, {**FEW, "sgd-2x": {"test": 0.925, "epochs": 12}})
    assert (found.side("epochs"), found.side("passes")) == ("better", "unjudged")


def test_a_side_that_gives_one_answer_to_everything_is_not_judged(make_results: Make) -> None:
    def constant(label: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
        return lambda frame: named(frame).assign(test_constant=(frame["optimizer"] == label).astype(float))

    assert one(make_results, change=constant("sgd")).side("epochs") == "unjudged"
    assert one(make_results, change=constant("sam")).side("passes") == "unjudged"
    longer = one(make_results, change=constant("sgd-2x"))
    assert (longer.side("epochs"), longer.side("passes")) == ("better", "unjudged")
    made = atlas([Study(make_results(FEW, change=constant("sgd"))), family_of(make_results, "two", 0.03)])
    assert "or a side was not tuned or gives one answer to everything)" in answer(made)[0]
    (rows, *_) = tables(made)
    assert any("a side that was not tuned or gives one answer to everything" in note for note in rows.footnotes)


def test_sides_that_were_tuned_by_other_searches_are_said(make_results: Make) -> None:
    keys = one(make_results).marks
    assert "unequal searches (sam: 3 configurations of rho; sgd: 3 configurations of lr; sgd-2x" in keys
    wider = ("lr", (0.05, 0.1, 0.2, 0.4))
    alike = {label: {**entry, "sweep": wider} for label, entry in FEW.items()}
    assert "unequal" not in one(make_results, alike).marks
    other = one(make_results, {**alike, "sam": {"test": 0.94, "sweep": ("lr", (0.1, 0.2, 0.4, 0.8))}}).marks
    assert "unequal searches (sam: 4 configurations: lr 0.1, 0.2, 0.4, 0.8; sgd: 4 configurations: lr 0.05" in other


def test_what_speaks_against_a_row_is_said(make_results: Make) -> None:
    swept = {**PLAIN, "sam": {"test": 0.94, "sweep": RHO}}
    lost = {("sgd", "", 0): "failed"}
    found = one(make_results, swept, status=lost)
    assert "sgd: 4 of 5 runs finished" in found.marks
    assert found.tuned == "rho (3 trials); the base was not tuned"
    edge = {**PLAIN, "sam": {"test": 0.94, "sweep": ("rho", (0.1, 0.2))}}
    assert "rho tried was chosen" in one(make_results, edge).marks


def test_seconds_that_contradict_the_passes_are_left_out(make_results: Make) -> None:
    def slow(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[frame["optimizer"] == "sam", "train_seconds"] *= 3
        return named(frame)

    assert one(make_results).seconds_ratio == pytest.approx(2, rel=0.1)
    assert math.isnan(one(make_results, change=slow).seconds_ratio)


# ---- all of them ---------------------------------------------------------------------------------------------


def family_of(make: Make, name: str, better: float, **settings: Any) -> Study:
    labels = {**FEW, "sam": {"test": 0.92 + better, "sweep": RHO}}
    return Study(make(labels, change=named, name=name, **settings))


def test_the_answer_counts_what_helped_and_what_hurt(make_results: Make) -> None:
    studies = [family_of(make_results, f"set{number}", better) for number, better in enumerate((0.03, 0.02, -0.03))]
    (said,) = answer(atlas([*studies, family_of(make_results, "small", 0.03, seeds=(0, 1))]))
    assert said.startswith(
        "SAM helped in 0 of 1 setting (2 of 3 comparisons), hurt in 0 (1) and made no clear difference in 0 (0); "
        "in 1 the comparisons disagree at equal epochs (1 more comparisons have fewer than 4 pairs of seeds, or a side "
        "was not tuned)."
    )
    assert "costs 2.0 times its base's passes" in said
    assert "set0" in said.partition("the least")[0]
    assert "set2" in said.partition("the least")[2]


def test_a_difference_that_follows_the_noise_is_said_with_its_interval(make_results: Make) -> None:
    def family(number: int, better: float, task: str) -> Study:
        data = {"validation": 0.1, "label_noise": number / 20}
        return family_of(make_results, f"set{number}", better, data=data, task=task)

    order = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9]  # a perfect order would have no interval
    tasks = ["digits", "cifar10", "mnist1d"]
    many = [family(number, 0.01 * place, tasks[number % 3]) for number, place in enumerate(order)]
    assert "the share of wrong labels (rank correlation +0.9" in answer(atlas(many))[0]
    assert "follows" not in answer(atlas(many[:9]))[0], "nine rows are too few to say so"
    alike = [family(number, 0.01 * place, tasks[number % 2]) for number, place in enumerate(order)]
    assert "follows" not in answer(atlas(alike))[0], "between two tasks everything else differs as well"


def test_means_are_over_families_of_judged_rows(make_results: Make) -> None:
    noisy = {"validation": 0.1, "label_noise": 0.4}
    studies = [
        family_of(make_results, "one", 0.03),
        family_of(make_results, "two", 0.01, data=noisy),
        family_of(make_results, "small", -0.5, seeds=(0, 1)),
        family_of(make_results, "other", 0.03, task="cifar10"),
        family_of(make_results, "again", 0.03, task="cifar10"),
    ]
    made = atlas(studies)
    found = made.pooled["digits", "epochs"]
    assert found.k == 2
    low, high = sorted(point.at_epochs.mean for point in made.points if point.results in ("one", "two"))
    assert low < found.mean.mean < high
    assert ("CIFAR", "epochs") not in made.pooled, "one setting, twice"
    assert made.settings("epochs") == {"better": 3, "worse": 0, "open": 0, "mixed": 0}


def test_sets_of_two_protocols_and_a_set_twice_are_refused(make_results: Make) -> None:
    first, older = family_of(make_results, "one", 0.03), family_of(make_results, "old", 0.03, protocol=7)
    with pytest.raises(BenchError, match="one has 1, old has 7"):
        atlas([first, older])
    with pytest.raises(BenchError, match="was given one twice"):
        atlas([first, first])


def test_a_method_that_no_set_has_is_named_with_the_nearest(make_results: Make) -> None:
    with pytest.raises(BenchError, match=r'no finished run of samm .*did you mean "sam"'):
        atlas([family_of(make_results, "one", 0.03)], "samm")


# ---- published -----------------------------------------------------------------------------------------------


def test_published_errors_and_accuracies_are_differences_that_favour_the_better() -> None:
    found = {(pair.source, pair.dataset, pair.model, pair.setting, pair.base): pair for pair in pairs()}
    foret = "Foret et al. 2021 (arXiv:2010.01412)"
    noise = found[f"{foret}, Table 4", "CIFAR-10", "ResNet-32", "label noise 40%, 200 epochs", "SGD"]
    assert noise.difference.mean == pytest.approx(93.4 - 68.8)
    assert math.isnan(noise.difference.low)
    basic = found[f"{foret}, Table 1", "CIFAR-10", "WRN-28-10", "basic, 200 epochs", "SGD"]
    assert basic.difference.mean == pytest.approx(3.5 - 2.7)
    assert basic.difference.high == pytest.approx(0.8 + math.hypot(0.1, 0.1))
    adam = found["giung2 projects/sam README, README", "CIFAR-10", "ResNet-20x4", "basic", "Adam"]
    assert adam.difference.mean == pytest.approx(95.49 - 93.53)


def test_published_pairs_stand_beside_sam_only(make_results: Make) -> None:
    labels = {**FEW, "asam": {"test": 0.94}}
    study = Study(make_results(labels, change=named))
    assert len(atlas([study]).published) == len(pairs()) > 50
    assert atlas([study], "asam").published == []
    assert atlas([study], published=False).published == []


# ---- what is written -----------------------------------------------------------------------------------------


def test_tables_and_csv_have_a_line_per_row_with_the_same_numbers(make_results: Make) -> None:
    made = atlas([family_of(make_results, "one", 0.03), family_of(make_results, "two", 0.01, seeds=(0, 1))])
    rows, means, published = tables(made)
    assert len(rows.rows) == len(rows.numbers) == 2
    assert rows.numbers["at_equal_epochs_mean"].tolist() == [point.at_epochs.mean for point in made.points]
    assert "§" in rows.rows[1][3]
    assert "§" not in rows.rows[0][3]
    assert means.numbers["k_at_equal_epochs"].tolist() == [0]
    assert len(published.rows) == len(pairs())


def test_the_forest_draws_every_difference_and_its_csv_holds_them(make_results: Make) -> None:
    noisy = {"validation": 0.1, "label_noise": 0.4}
    made = atlas([family_of(make_results, "one", 0.03), family_of(make_results, "two", 0.01, data=noisy)])
    drawn = figures(made)
    frame = drawn["forest"].data
    assert (frame["kind"] == "row").sum() == 4
    assert (frame["kind"] == "published").sum() == len(pairs())
    names = [tick.get_text() for tick in drawn["forest"].figure.axes[0].get_yticklabels()]
    assert "mean of 2 judged rows" in names
    assert any(name.startswith("Foret et al. 2021, Table 4") for name in names)


@pytest.fixture
def two_sets(tmp_path: Path) -> Path:
    for name in ("digits_noise", "digits_tuned"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    return tmp_path / "results"


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def test_the_command_takes_all_sets_writes_everything_and_gives_the_same_bytes_twice(two_sets: Path) -> None:
    first = run("atlas", "--out", two_sets)
    assert first.exit_code == 0, first.output
    assert "SAM helped in 1 of 1 setting (2 of 2 comparisons)" in first.output
    folder = two_sets / "atlas"
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
    assert {"report.html", "tables/atlas.md", "tables/atlas.csv", "tables/families.tex", "figures/forest.pdf"} <= {
        str(path) for path in files
    }
    run("atlas", "--out", two_sets)
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} == files


def test_one_set_by_its_folder_goes_where_it_is_told(two_sets: Path, tmp_path: Path) -> None:
    done = run("atlas", two_sets / "digits_noise", "--into", tmp_path / "here", "--no-published")
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(tmp_path / "here" / "tables" / "atlas.csv")) == 1
    assert not (tmp_path / "here" / "tables" / "published.csv").exists()


def test_nothing_to_draw_and_unknown_sets_are_one_line_each(tmp_path: Path, two_sets: Path) -> None:
    empty = run("atlas", "--out", tmp_path / "none")
    assert isinstance(empty.exception, BenchError)
    assert "holds no results" in str(empty.exception)
    wrong = run("atlas", "digits_nois", "--out", two_sets)
    assert isinstance(wrong.exception, BenchError)
    assert not (two_sets / "atlas").exists()


def test_the_committed_atlas_is_made_from_the_committed_records(tmp_path: Path) -> None:
    kept = ROOT / "results" / "atlas" / "tables"
    sets = sorted(path.parent for path in (ROOT / "results").glob("*/experiment.json"))
    paths = render.write(tables(atlas([Study(records.read(folder)) for folder in sets])), tmp_path)
    assert {path.name for path in paths} == {path.name for path in kept.iterdir()}
    for path in paths:
        assert path.read_bytes() == (kept / path.name).read_bytes(), path.name
