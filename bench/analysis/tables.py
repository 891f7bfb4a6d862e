"""The tables of an experiment: results, losses, cost and, where something is swept, every swept configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis.render import DAGGER, EMPTY, Table
from bench.analysis.stats import Interval, smallest_sign_flip_p
from bench.analysis.summary import Provenance, Row, all_rows, comparison_frame, provenance, to_frame

if TYPE_CHECKING:
    from bench.records import Results

FEW_SEEDS = 5  # up to here the sign-flip test cannot reach 0.05, so it has to be said


class Words:
    """How this experiment's numbers are put into words: units, decimals and what the captions repeat."""

    def __init__(self, meta: Mapping[str, Any], source: Provenance) -> None:
        self.meta, self.source = meta, source
        self.metric, self.baseline = meta["metric"]["name"], meta["baseline"]
        self.scale, self.unit = float(meta["metric"]["scale"]), meta["metric"]["unit"]
        self.digits = 2 if self.scale > 1 else 4
        self.brackets = f" ({self.unit})" if self.unit else ""
        self.points = {"%": " (points)", "": ""}.get(self.unit, self.brackets)

    def mean(self, interval: Interval) -> str:
        """Metric as mean ± half-width; the mean alone where there is no interval."""
        shown = interval.scaled(self.scale)
        if shown.n < 2:
            return EMPTY if shown.n == 0 else f"{shown.mean:z.{self.digits}f} (n=1)"
        return f"{shown.mean:z.{self.digits}f} ± {shown.half_width:.{self.digits}f}"

    def difference(self, row: Row) -> str:
        """Paired difference of the metric with its bounds, e.g. "+0.82 [+0.31, +1.33]"."""
        if row.difference is None or row.difference.difference.n == 0:
            return EMPTY
        shown = row.difference.difference.scaled(self.scale)
        mean, low, high = (f"{value:+z.{self.digits}f}" for value in (shown.mean, shown.low, shown.high))
        return f"{mean} [{low}, {high}]" if shown.n > 1 else f"{mean} (n=1)"

    def measured(self) -> str:
        """What the metric is and how its spread is given."""
        better = "higher" if self.meta["metric"]["higher_is_better"] else "lower"
        definition = self.meta["metric"]["definition"]
        return (
            f"Test {self.metric}{self.brackets} after the last epoch: {definition}; {better} is better. "
            "Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."
        )

    def chosen(self) -> str:
        """How swept values were chosen; nothing to say where nothing is swept."""
        held_out = f"{100 * self.meta['data']['validation']:.3g}% of the training data"
        return (
            f"Swept values were chosen by mean validation {self.metric} ({held_out}, held out), never by the test set."
            if self.meta["sweeps"]
            else ""
        )

    def origin(self) -> str:
        """Task, seeds, hardware, versions and commits behind the numbers."""
        noise = self.meta["data"].get("label_noise") or 0
        noisy = f" with {100 * noise:.3g}% of the training labels replaced" if noise else ""
        seeds = f"seed{'s' * (len(self.meta['seeds']) > 1)} {', '.join(map(str, self.meta['seeds']))}"
        found = self.source
        made = (
            f"Hardware: {'; '.join(found.devices)}. torch {', '.join(found.torch)}, "
            f"Python {', '.join(found.python)}, commit {', '.join(found.commits) or 'unknown'}."
            if found.devices
            else "No run has finished."
        )
        return f"Task {self.meta['task']}{noisy}, model {self.meta['model']}, {seeds}. {made}"


def build(results: Results) -> list[Table]:
    """The tables "results", "losses", "cost" and, if the experiment sweeps anything, "sweep", in this order.

    Unfinished experiments are tabulated as far as they are: incomplete rows carry a dagger and a footnote.
    """
    rows = all_rows(results)
    words = Words(results.meta, provenance(results))
    best = [row for row in rows if row.chosen]
    tables = [_results(words, best, rows), _losses(words, best, rows), _cost(words, best, rows)]
    if results.meta["sweeps"]:
        tables.append(_sweep(words, [row for row in rows if row.label in results.meta["sweeps"]]))
    return tables


# ---- the three tables ----------------------------------------------------------------------------------------


def _results(words: Words, best: list[Row], rows: list[Row]) -> Table:
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": _name,
        f"test {words.metric}{words.brackets}": lambda row: words.mean(row.test_metric),
        f"difference to {words.baseline}{words.points}": words.difference,
        "p": lambda row: EMPTY if row.difference is None else _p(row.difference.p_t),
        f"gap{words.points}": lambda row: words.mean(row.gap_metric),
        "n": _n,
    }
    compared = (
        f"Difference: test {words.metric} minus that of {words.baseline}, paired by seed, with its 95% t "
        f"interval; p: two-sided paired t test. Gap: train {words.metric} (true labels, no augmentation) "
        "minus test."
    )
    caption = [words.measured(), compared, words.chosen(), words.origin()]
    notes = [
        *_gone(best),
        *_gone_elsewhere(rows),
        *_edges(best),
        *_tests(best),
        *_budget(best),
        *_mixed(words),
    ]
    fields = ["test_metric", "selected_metric", "val_metric", "train_metric", "noisy_metric", "gap_metric"]
    numbers = to_frame(best, fields, words.meta["metric"]).join(comparison_frame(best, words.meta["metric"]))
    return _table(words, "results", "results", caption, cells, best, notes, numbers)


def _losses(words: Words, best: list[Row], rows: list[Row]) -> Table:
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": _name,
        "train loss (nats)": lambda row: _plain(row.train_loss, ".3f"),
        "test loss (nats)": lambda row: _plain(row.test_loss, ".3f"),
        "gap (nats)": lambda row: _plain(row.gap_loss, ".3f"),
        "n": _n,
    }
    about = (
        "Mean cross-entropy after the last epoch, train loss on true labels without augmentation; gap: test minus "
        "train. Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."
    )
    notes = [*_gone(best), *_gone_elsewhere(rows), *_edges(best), *_budget(best)]
    numbers = to_frame(best, ["train_loss", "test_loss", "val_loss", "gap_loss"], words.meta["metric"])
    return _table(words, "losses", "losses", [about, words.chosen(), words.origin()], cells, best, notes, numbers)


def _cost(words: Words, best: list[Row], rows: list[Row]) -> Table:
    longest = np.nanmax([0.0, *(row.train_seconds.mean for row in best)])
    digits = 2 if longest < 10 else 1 if longest < 1000 else 0
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": _name,
        "time (s)": lambda row: _plain(row.train_seconds, f",.{digits}f"),
        "time ratio": lambda row: _number(row.seconds_ratio, ".2f", "×"),
        "passes": lambda row: _number(row.passes, ",.0f"),
        "passes ratio": lambda row: _number(row.passes_ratio, ".2f", "×"),
        "peak (MB)": lambda row: _number(row.peak_memory_mb, ",.0f"),
        "diverged, failed": lambda row: f"{row.diverged}, {row.failed}",
    }
    about = (
        "Means over the finished runs. Time: training only, without set-up and evaluation, mean ± half-width of the "
        "95% Student-t interval. Passes: forward-backward passes over a batch. "
        f"Ratios are to {words.baseline}, over the seeds both finished. Peak: largest memory in use."
    )
    notes = [*_gone(best), *_gone_elsewhere(rows), *_edges(best), *_budget(best), *_mixed(words)]
    fields = ["train_seconds", "seconds_ratio", "passes", "passes_ratio", "peak_memory_mb"]
    numbers = to_frame(best, fields, words.meta["metric"])
    return _table(words, "cost", "cost", [about, words.chosen(), words.origin()], cells, best, notes, numbers)


def _sweep(words: Words, rows: list[Row]) -> Table:
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": lambda row: row.title if row.complete else row.title + DAGGER,
        f"validation {words.metric}{words.brackets}": lambda row: words.mean(row.val_metric),
        f"test {words.metric}{words.brackets}": lambda row: words.mean(row.test_metric),
        f"gap{words.points}": lambda row: words.mean(row.gap_metric),
        "n": _n,
        "chosen": lambda row: "chosen" if row.chosen and row.done else "",
    }
    caption = [words.measured(), words.chosen(), words.origin()]
    notes = [*_gone(rows), *_edges([row for row in rows if row.chosen]), *_mixed(words)]
    fields = ["val_metric", "test_metric", "gap_metric", "val_loss", "chosen"]
    numbers = to_frame(rows, fields, words.meta["metric"]).join(comparison_frame(rows, words.meta["metric"]))
    return _table(words, "sweep", "all swept configurations", caption, cells, rows, notes, numbers)


def _table(
    words: Words,
    name: str,
    title: str,
    caption: list[str],
    cells: Mapping[str, Callable[[Row], str]],
    rows: list[Row],
    notes: list[str],
    numbers: pd.DataFrame,
) -> Table:
    text = [[cell(row) for cell in cells.values()] for row in rows]
    title = f"{words.meta['title']}: {title}"
    sentences = [sentence for sentence in caption if sentence]
    return Table(words.meta["name"], name, title, sentences, list(cells), text, notes, numbers)


# ---- cells ---------------------------------------------------------------------------------------------------


def _name(row: Row) -> str:
    return row.name if row.complete else row.name + DAGGER


def _n(row: Row) -> str:
    return str(row.done) if row.complete else f"{row.done}/{row.planned}"


def _plain(interval: Interval, form: str) -> str:
    """An interval in its own unit, as mean ± half-width; the mean alone where there is no interval."""
    mean = _number(interval.mean, form)
    return mean if interval.n < 2 else f"{mean} ± {interval.half_width:{form}}"


def _number(value: float, form: str, unit: str = "") -> str:
    return EMPTY if np.isnan(value) else f"{value:z{form}}{unit}"


def _p(value: float) -> str:
    return EMPTY if np.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


# ---- footnotes -----------------------------------------------------------------------------------------------


def _lost(row: Row) -> str:
    kinds = {"diverged": row.diverged, "failed": row.failed, "unfinished": row.unfinished}
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)


def _gone(rows: list[Row]) -> Iterator[str]:
    """The daggers explained: a note for every row that lacks runs, one for all that have none."""
    empty = defaultdict(list)
    for row in rows:
        if not row.done:
            empty[f"{row.label} ({_lost(row)})"].append(row)
        elif not row.complete:
            runs = f"{row.done} of {row.planned} runs finished ({_lost(row)})"
            yield f"{DAGGER} {row.title}: {runs}; its numbers are over those."
    if empty:
        each = [lost if len(found) == 1 else f"{lost[:-1]} each of {len(found)})" for lost, found in empty.items()]
        yield f"{DAGGER} no run finished: {', '.join(each)}."


def _gone_elsewhere(rows: list[Row]) -> Iterator[str]:
    """One note for every sweep with incomplete configurations that the table does not show."""
    lost = defaultdict(list)
    numbered = {row.label for row in rows if row.done}
    for row in rows:
        if not (row.complete or row.chosen) and row.label in numbered:
            lost[row.label].append(f"{row.config} ({_lost(row)})")
    for label, configs in lost.items():
        yield f"{label}: other configurations lack runs and rank behind complete ones: {'; '.join(configs)}."


def _edges(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        if row.edge:
            yield f"{row.name} is the {row.edge} value of its sweep: the best may lie beyond it."


def _tests(rows: list[Row]) -> Iterator[str]:
    """What the p values cannot say: few seeds, and several comparisons at once."""
    sizes = [row.difference.difference.n for row in rows if row.difference]
    n = max(sizes, default=0)
    if n == 1:
        yield "n=1: one seed gives neither an interval nor a test."
    elif 1 < n <= FEW_SEEDS:
        floor = f"p={smallest_sign_flip_p(n):g}"
        yield f"With n={n} pairs an exact sign-flip test cannot get below {floor} on any data: no stars."
    if sum(size > 1 for size in sizes) > 1:
        yield "p values are not corrected for the number of comparisons."


def _budget(rows: list[Row]) -> Iterator[str]:
    """Which labels compare at equal epochs and which at equal passes."""
    epochs, passes = defaultdict(list), defaultdict(list)
    for row in rows:
        epochs[f"{row.epochs:g} epochs"].append(row.label)
        if row.done:
            passes[f"{row.passes:,.0f} passes"].append(row.label)
    if len(epochs) == 1 and len(passes) <= 1:
        yield f"Every row has the same budget: {', '.join([*epochs, *passes])}."
        return
    budgets = [f"{budget}: {', '.join(labels)}" for kind in (epochs, passes) for budget, labels in kind.items()]
    yield f"Budgets differ: compare rows of equal epochs or rows of equal passes. {'; '.join(budgets)}."


def _mixed(words: Words) -> Iterator[str]:
    if words.source.mixed:
        yield "The runs mix hardware, versions or commits (all listed above): times are not comparable."
