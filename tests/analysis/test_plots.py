"""That the figures are drawn, complete, the same twice, and honest about what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bench.analysis import plots
from bench.analysis.summary import all_rows
from bench.errors import BenchError
from bench.records import Results

Make = Callable[..., Results]
LABELS = ["sgd", "sgd-2x", "adam", "sam", "asam"]
pytestmark = pytest.mark.filterwarnings("error")


def figures(results: Results) -> dict[str, Figure]:
    return plots._figures(results, all_rows(results))


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_every_figure_is_written_as_png_and_pdf_alike_whatever_the_users_style(
    make_results: Make, tmp_path: Path
) -> None:
    results = make_results({"sgd": {}, "sam": {"sweep": ("rho", (0.1, 0.2))}})
    paths = plots.build(results, tmp_path)
    names = ["cost", "curves", "gap", "sweep"]
    assert sorted(path.name for path in paths) == [f"{name}.{form}" for name in names for form in ("pdf", "png")]
    first = {path: path.read_bytes() for path in paths}
    assert all(path.parent == tmp_path / "figures" for path in paths)
    assert first[tmp_path / "figures" / "cost.png"].startswith(b"\x89PNG")
    assert b"CreationDate" not in first[tmp_path / "figures" / "cost.pdf"]
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # as a user's matplotlibrc might
        assert first == {path: path.read_bytes() for path in plots.build(results, tmp_path)}
        assert matplotlib.rcParams["font.size"] == 20


def test_nothing_finished_is_an_error(make_results: Make, tmp_path: Path) -> None:
    results = make_results(change=lambda records: records.assign(status="missing"))
    with pytest.raises(BenchError, match="digits_noise: no finished run"):
        plots.build(results, tmp_path)
    assert not list(tmp_path.iterdir())


def test_passes_have_their_own_panels_only_where_they_differ(make_results: Make) -> None:
    both = figures(make_results())["curves"]
    assert [ax.get_xlabel() for ax in both.axes] == ["epoch"] * 2 + ["forward-backward passes"] * 2
    alike = figures(make_results({"sgd": {}, "adam": {}}))
    assert [ax.get_xlabel() for ax in alike["curves"].axes] == ["epoch"] * 2
    assert "sweep" not in alike


def test_curves_are_means_over_finished_runs_of_the_chosen_configuration(make_results: Make) -> None:
    results = make_results(status={("sgd", "", 0): "diverged"})
    axes = figures(results)["curves"].axes[0]
    curves, records = results.curves, results.records
    runs = records.loc[(records["optimizer"] == "sgd") & (records["status"] == "done"), "run_id"]
    expected = 100 * curves[curves["run_id"].isin(runs)].groupby("epoch")["test_acc"].mean()
    assert axes.lines[0].get_ydata() == pytest.approx(expected.to_numpy())
    assert len(axes.lines) == len(LABELS)
    assert legend(figures(results)["curves"])[0] == "sgd, 4 of 5 seeds"


def test_a_label_looks_the_same_in_every_figure(make_results: Make) -> None:
    styles = plots.label_styles(LABELS, "sgd")
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles.values()}) == len(LABELS)
    found = figures(make_results())
    for name in ("curves", "gap"):
        drawn = [to_hex(line.get_color()).upper() for line in found[name].axes[0].lines]
        assert drawn == [styles[label]["color"] for label in LABELS]


def test_many_labels_stay_distinct() -> None:
    styles = plots.label_styles([f"o{i}" for i in range(40)], "o0")
    assert len({(style["color"], style["marker"], style["linestyle"]) for style in styles.values()}) == 40


def test_one_seed_and_missing_labels_are_drawn_as_far_as_they_go(make_results: Make, tmp_path: Path) -> None:
    lost = {("adam", "", 0): "failed", ("sam", "rho=0.5", 0): "diverged"}
    assert len(plots.build(make_results(seeds=(0,), status=lost), tmp_path)) == 8


def test_names_in_the_cost_figure_do_not_overlap(make_results: Make) -> None:
    figure = figures(make_results())["cost"]
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == len(LABELS)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_sweep_has_ticks_at_the_values_and_a_row_for_each_key(make_results: Make) -> None:
    sweep = {
        "adam": {"sweep": ("lr", (1e-4, 1e-3, 1e-2))},
        "sgd": {},
        "sam": {"sweep": ("rho", (0.1, 0.2))},
    }
    axes = figures(make_results(sweep))["sweep"].axes
    assert [ax.get_xlabel() for ax in axes] == ["lr", "lr", "rho", "rho"]
    assert [ax.get_xscale() for ax in axes] == ["log", "log", "linear", "linear"]
    assert list(axes[0].get_xticks()) == [1e-4, 1e-3, 1e-2]
