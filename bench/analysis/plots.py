"""The figures of an experiment: curves, generalization gap, sweep and cost, as PNG and PDF for a paper."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import Bbox

from bench.analysis.stats import Interval, half_width
from bench.analysis.summary import Row, all_rows, provenance
from bench.errors import BenchError
from bench.store import write_atomic

if TYPE_CHECKING:
    from bench.records import Results

Style = dict[str, Any]

WIDTH = 6.9  # inches: the text width of two columns
PANEL_HEIGHT = 2.3
LEGEND_COLUMNS = 6
START = 0.3  # share of an optimizer's epochs that may run out of the panel: where curves begin says little
BASELINE_COLOUR = "#000000"
# Okabe & Ito, Color Universal Design (2008), without the yellow that vanishes on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)))
VALIDATION: Style = {"markersize": 3, "markerfacecolor": "white"}
CHOSEN: Style = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.1}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RC: Any = {  # Any: matplotlib types its parameters by 300 literal names
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # TrueType, embedded: editable, and what publishers accept
    "savefig.dpi": 200,
}


def build(results: Results, folder: Path) -> list[Path]:
    """Draw every figure into <folder>/figures/<name>.{png,pdf}, atomically; gives the paths written.

    Figures: "curves" and "gap" over training (mean and 95% t band over the finished seeds of the
    configuration chosen on validation data), "cost" (test metric against seconds of training) and, where
    a label sweeps one number, "sweep". One seed draws without bands. The same results give the same bytes.

    Raises:
        BenchError: the experiment has no finished run.
    """
    rows = all_rows(results)
    if not any(row.done for row in rows):
        raise BenchError(f"{results.meta['name']}: no finished run to draw; `bench status` tells where they stand")
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user must not change the figures
        matplotlib.rcParams.update(RC)
        figures = _figures(results, rows)
        return [path for name, figure in figures.items() for path in _save(figure, folder / "figures" / name)]


def _figures(results: Results, rows: list[Row]) -> dict[str, Figure]:
    meta = results.meta
    styles = label_styles(meta["labels"], meta["baseline"])
    best = [row for row in rows if row.chosen and row.done]
    curves = _chosen_curves(results, best)
    figures = {}
    if not curves.empty:
        figures["curves"] = _curves(meta, curves, best, styles)
        figures["gap"] = _gap(meta, curves, best, styles)
    sweeps = [row for row in rows if row.label in meta["sweeps"] and row.sweep_point and row.done]
    if sweeps:
        figures["sweep"] = _sweep(meta, sweeps, best, styles)
    figures["cost"] = _cost(meta, best, styles, mixed=provenance(results).mixed)
    return figures


def label_styles(labels: Sequence[str], baseline: str) -> dict[str, Style]:
    """Colour, dash and marker of each label, the same in every figure; the baseline is black and solid."""
    others = [label for label in labels if label != baseline]
    looks = zip(cycle(COLOURS), cycle(DASHES[1:] + DASHES[:1]), cycle(MARKERS[1:] + MARKERS[:1]), strict=False)
    styles: dict[str, Style] = {
        label: {"color": colour, "linestyle": dash, "marker": marker}
        for label, (colour, dash, marker) in zip(others, looks, strict=False)
    }
    styles[baseline] = {"color": BASELINE_COLOUR, "linestyle": DASHES[0], "marker": MARKERS[0]}
    return styles


# ---- over training -------------------------------------------------------------------------------------------


def _curves(meta: Mapping[str, Any], curves: pd.DataFrame, best: list[Row], styles: Mapping[str, Style]) -> Figure:
    """Test and train metric against epochs and, where epochs differ in cost, against passes."""
    name, unit = _metric(meta)
    columns = {"test_metric": f"test {name}{unit}", "train_metric": f"train {name}, true labels{unit}"}
    costs = (curves["passes"] / curves["epoch"]).groupby(curves["optimizer"]).mean()
    axes_of = {"epoch": "epoch", "passes": "forward-backward passes"}
    if costs.max() < 1.001 * costs.min():
        del axes_of["passes"]
    return _grid_of_curves(curves, best, styles, axes_of, columns)


def _gap(meta: Mapping[str, Any], curves: pd.DataFrame, best: list[Row], styles: Mapping[str, Style]) -> Figure:
    name, _ = _metric(meta)
    columns = {
        "gap_loss": "test − train loss (nats)",
        "gap_metric": f"train − test {name}{_points(meta)}",
    }
    return _grid_of_curves(curves, best, styles, {"epoch": "epoch"}, columns)


def _grid_of_curves(
    curves: pd.DataFrame,
    best: list[Row],
    styles: Mapping[str, Style],
    horizontal: Mapping[str, str],
    vertical: Mapping[str, str],
) -> Figure:
    """A row of panels for each horizontal column, a column of panels for each vertical one."""
    figure, axes = _panels(len(horizontal), len(vertical), sharey="col")
    for (y, title), column in zip(vertical.items(), axes.T, strict=True):
        means = _mean_curves(curves, y)
        for (x, label), ax in zip(horizontal.items(), column, strict=True):
            for row in best:
                _line(ax, means[means["optimizer"] == row.label], x, styles[row.label])
            ax.set(xlabel=label, ylabel=title, ylim=_limits(means))
            ax.set_xlim(left=0)
            ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _legend(figure, [_handle(row, styles) for row in best])
    return figure


def _line(ax: Axes, mean: pd.DataFrame, x: str, style: Style) -> None:
    plain = {"color": style["color"], "linestyle": style["linestyle"]}
    marker = style["marker"] if len(mean) == 1 else None  # a line of one point would not be seen
    ax.plot(mean[x], mean["mean"], marker=marker, **plain)
    ax.fill_between(mean[x], mean["low"], mean["high"], color=style["color"], alpha=0.15, linewidth=0)


def _chosen_curves(results: Results, best: list[Row]) -> pd.DataFrame:
    """Curves of the finished runs of the chosen configurations, with gaps, metrics in the unit shown."""
    records, metric = results.records, results.meta["metric"]
    wanted = pd.MultiIndex.from_tuples([(row.label, row.config) for row in best])
    config = records["config"].astype(object).where(records["config"].notna(), "")
    chosen = pd.MultiIndex.from_arrays([records["optimizer"], config]).isin(wanted)
    runs = records.loc[chosen & (records["status"] == "done"), "run_id"]
    curves = results.curves[results.curves["run_id"].isin(runs)]
    test = metric["scale"] * curves[f"test_{metric['key']}"]
    train = metric["scale"] * curves[f"train_clean_{metric['key']}"]
    gaps = {"gap_loss": curves["test_loss"] - curves["train_clean_loss"], "gap_metric": train - test}
    return curves.assign(test_metric=test, train_metric=train, **gaps)


def _mean_curves(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean and t bounds of a column over the seeds, one line for each label and epoch."""
    groups = curves.groupby(["optimizer", "epoch"], sort=True)
    means = groups[column].agg(["count", "mean", "std"]).join(groups["passes"].mean())
    half = half_width(means["count"], means["std"])
    bounded: pd.DataFrame = means.assign(low=means["mean"] - half, high=means["mean"] + half)
    return bounded.reset_index()


def _limits(means: pd.DataFrame) -> tuple[float, float]:
    """Vertical limits around the curves past their first epochs, so that the ends can be told apart."""
    last = means.groupby("optimizer")["epoch"].transform("max")
    late = means[means["epoch"] > START * last]
    return _with_margin(late[["mean", "low", "high"]].to_numpy())


# ---- over swept values ---------------------------------------------------------------------------------------


def _sweep(meta: Mapping[str, Any], sweeps: list[Row], best: list[Row], styles: Mapping[str, Style]) -> Figure:
    """Metric and gap against the swept value, a row of panels for each swept hyperparameter."""
    keys = sorted({row.sweep_point[0] for row in sweeps if row.sweep_point})
    figure, axes = _panels(len(keys), 2)
    name, unit = _metric(meta)
    titles = (f"{name}{unit}", f"train − test {name}{_points(meta)}")
    baseline = next((row for row in best if row.label == meta["baseline"]), None)
    for key, line in zip(keys, axes, strict=True):
        rows = [row for row in sweeps if row.sweep_point and row.sweep_point[0] == key]
        for ax, title, field in zip(line, titles, ("test_metric", "gap_metric"), strict=True):
            if baseline:
                _band(ax, getattr(baseline, field).scaled(meta["metric"]["scale"]), styles[baseline.label])
            _sweep_panel(ax, meta, rows, field, styles)
            ax.set(xlabel=key, ylabel=title)
            _value_axis(ax, sorted({row.sweep_point[1] for row in rows if row.sweep_point}))
    _legend(figure, _sweep_handles(sweeps, baseline, styles))
    return figure


def _sweep_panel(ax: Axes, meta: Mapping[str, Any], rows: list[Row], field: str, styles: Mapping[str, Style]) -> None:
    scale = meta["metric"]["scale"]
    for label in dict.fromkeys(row.label for row in rows):
        points = {row.sweep_point[1]: row for row in rows if row.label == label and row.sweep_point}
        x = sorted(points)
        found = [getattr(points[value], field).scaled(scale) for value in x]
        style = styles[label]
        ax.plot(x, [interval.mean for interval in found], **style)
        low, high = [interval.low for interval in found], [interval.high for interval in found]
        ax.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        if field == "test_metric":
            validation = [points[value].val_metric.mean * scale for value in x]
            ax.plot(x, validation, **{**style, "linewidth": 0.7, **VALIDATION})
        for value, interval in zip(x, found, strict=True):
            if points[value].chosen:
                ax.plot(value, interval.mean, color=style["color"], marker="o", **CHOSEN)


def _band(ax: Axes, interval: Interval, style: Style) -> None:
    ax.axhline(interval.mean, color=style["color"], linewidth=0.9)
    if interval.n > 1:
        ax.axhspan(interval.low, interval.high, color=style["color"], alpha=0.08, linewidth=0)


def _value_axis(ax: Axes, values: list[float]) -> None:
    """Ticks at the swept values themselves, on a log axis where they span a decade or more."""
    if values[0] > 0 and values[-1] > 9.99 * values[0]:
        ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(values))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _sweep_handles(sweeps: list[Row], baseline: Row | None, styles: Mapping[str, Style]) -> list[Artist]:
    labels = dict.fromkeys(row.label for row in sweeps)
    handles = [Line2D([], [], label=label, **styles[label]) for label in labels]
    if baseline:
        handles.append(Line2D([], [], color=styles[baseline.label]["color"], label=baseline.name, linewidth=0.9))
    for label, look in (("test", {}), ("validation", VALIDATION), ("chosen on validation", CHOSEN)):
        handles.append(Line2D([], [], color="#555555", linestyle="none", marker="o", label=label, **look))
    return list(handles)


# ---- against time --------------------------------------------------------------------------------------------


def _cost(meta: Mapping[str, Any], best: list[Row], styles: Mapping[str, Style], mixed: bool) -> Figure:
    """Test metric against seconds of training, with 95% t intervals, a labelled point an optimizer."""
    figure = Figure(figsize=(0.62 * WIDTH, 2.9), layout="constrained")
    ax = figure.add_subplot()
    points = [(row, row.train_seconds, row.test_metric.scaled(meta["metric"]["scale"])) for row in best]
    for row, x, y in points:
        style = styles[row.label]
        ax.plot(_bounds(x), [y.mean, y.mean], color=style["color"], linewidth=0.9)
        ax.plot([x.mean, x.mean], _bounds(y), color=style["color"], linewidth=0.9)
        ax.plot(x.mean, y.mean, color=style["color"], marker=style["marker"])
    name, unit = _metric(meta)
    caution = ", on different hardware or versions" if mixed else ""
    ax.set(xlabel=f"training time (s{caution})", ylabel=f"test {name}{unit}")
    ax.set_xlim(0, 1.12 * max(_bounds(x)[1] for _, x, _ in points))
    ax.margins(y=0.15)
    _label_points(figure, ax, points, styles)
    return figure


def _bounds(interval: Interval) -> tuple[float, float]:
    """The bounds of an interval, both the mean where it has none."""
    return (interval.low, interval.high) if interval.n > 1 else (interval.mean, interval.mean)


def _label_points(
    figure: Figure, ax: Axes, points: Sequence[tuple[Row, Interval, Interval]], styles: Mapping[str, Style]
) -> None:
    """Write each name beside its point, at the first place around it that covers nothing, or the least."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # fixes the layout, without which no text has a size
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame = ax.get_window_extent(renderer)
    taken = []
    for _, x, y in points:
        for across, up in ((_bounds(x), (y.mean, y.mean)), ((x.mean, x.mean), _bounds(y))):
            taken.append(Bbox(ax.transData.transform(np.column_stack([across, up]))).padded(4))
    for row, x, y in points:
        text = ax.annotate(row.name, (x.mean, y.mean), xytext=(0, 0), textcoords="offset points")
        text.set(color=styles[row.label]["color"], fontsize=7.5, verticalalignment="center")
        tried = []
        for *offset, side in _places():
            text.set(position=offset, horizontalalignment=side)
            box = text.get_window_extent(renderer)
            tried.append((_crowding(box, taken, frame), box, {"position": offset, "ha": side}))
        _, box, place = min(tried, key=lambda attempt: attempt[0])
        text.set(**place)
        taken.append(box)


def _places() -> Iterable[tuple[float, float, str]]:
    """Offsets from a point, in points, nearest first: diagonal places, then above, below and beside."""
    for distance in (6, 10, 15, 21, 28):
        for dy in (0.9, -0.9):
            yield distance, dy * distance, "left"
            yield -distance, dy * distance, "right"
        yield 0, 1.6 * distance, "center"
        yield 0, -1.6 * distance, "center"
        yield 1.3 * distance, 0, "left"
        yield -1.3 * distance, 0, "right"


def _crowding(box: Bbox, taken: list[Bbox], frame: Bbox) -> float:
    """Area in square pixels that a box shares with others or has outside the frame; 0 is a free place."""
    inside = _shared(box, frame)
    return sum(_shared(box, other) for other in taken) + box.width * box.height - inside


def _shared(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return both.width * both.height if both else 0.0


# ---- common to all -------------------------------------------------------------------------------------------


def _metric(meta: Mapping[str, Any]) -> tuple[str, str]:
    """Name of the metric and its unit in brackets, e.g. ("accuracy", " (%)")."""
    unit = meta["metric"]["unit"]
    return meta["metric"]["name"], f" ({unit})" if unit else ""


def _points(meta: Mapping[str, Any]) -> str:
    """Unit of a difference of two metrics in brackets: percentages differ by points."""
    return " (points)" if meta["metric"]["unit"] == "%" else _metric(meta)[1]


def _panels(rows: int, columns: int, **sharing: Any) -> tuple[Figure, np.ndarray[Any, Any]]:
    figure = Figure(figsize=(WIDTH, PANEL_HEIGHT * rows + 0.35), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False, **sharing))


def _handle(row: Row, styles: Mapping[str, Style]) -> Line2D:
    """Legend entry of a label; an incomplete one says over how many seeds it is."""
    style = styles[row.label]
    seeds = "" if row.complete else f", {row.done} of {row.planned} seeds"
    return Line2D([], [], color=style["color"], linestyle=style["linestyle"], label=row.name + seeds)


def _legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """One legend for all panels, below them."""
    lines = math.ceil(len(handles) / LEGEND_COLUMNS)
    columns = math.ceil(len(handles) / lines)
    figure.legend(handles=list(handles), loc="outside lower center", ncols=columns, handlelength=2.6)


def _with_margin(values: Any) -> tuple[float, float]:
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _save(figure: Figure, stem: Path) -> list[Path]:
    """Write <stem>.png and <stem>.pdf, without the time of writing in them."""
    paths = []
    for form, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=form, metadata=metadata)
        path = stem.with_name(f"{stem.name}.{form}")
        write_atomic(path, buffer.getvalue())
        paths.append(path)
    return paths
