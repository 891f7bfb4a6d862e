"""The tables of an experiment: by task, results, losses, cost, budgets, statistics and every configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bench.analysis import budgets, by_task, footnotes, load, sharpness, statistics, target, tuning
from bench.analysis.answer import answer
from bench.analysis.cells import counted, marks, named, number, p_value, plain
from bench.analysis.contrasts import Contrast, contrasts, pairs
from bench.analysis.provenance import provenance
from bench.analysis.render import Table
from bench.analysis.searches import unequal
from bench.analysis.summary import Row, all_rows, comparison_frame, to_frame, tried_rows
from bench.analysis.words import Words
from bench.store.conditions import names, value_text
from bench.store.selection import phased

if TYPE_CHECKING:
    from bench.store.records import Results


def build(results: Results) -> list[Table]:
    """Return the tables of an experiment, in this order.

    "tasks" (of several tasks), "results", "losses", "cost", "budgets" and "statistics" (of several optimizers),
    "target" (if there is a target), "tuning" (if that was a phase of its own), "sweep" (if anything is swept) and
    "sharpness" (if it was measured).

    Unfinished experiments give tables of the finished runs: incomplete rows carry a dagger and a footnote.
    """
    rows = all_rows(results)
    words = Words(results.meta, provenance(results))
    best = [row for row in rows if row.chosen]
    tried = tried_rows(results)
    tables = [by_task.table(words, results, best, rows)] if len(words.varied.get("task", [])) > 1 else []
    compared = contrasts(results)
    searched = [note for note in [unequal(results, pairs(compared))] if note]
    tables += [
        replace(
            _results(words, best, rows, compared, [*tuning.notes_on(results.meta, tried), *searched]),
            answer=answer(results),
        ),
        _losses(words, best, rows),
        _cost(words, results, best, rows),
    ]
    if compared and any(row.done for row in best):
        tables += [budgets.table(words, results, best, rows)]
        tables += [statistics.table(words, results, compared, best, rows, searched)]
        tables += [one for one in [target.table(words, results, best, rows)] if one.rows]
    if phased(results.meta):
        tables.append(tuning.table(words, results, tried, best))
    if results.meta["sweeps"]:
        tables.append(_sweep(words, [row for row in tried if row.label in results.meta["sweeps"]]))
    return tables + sharpness.table(words, results, best)


def to_target(results: Results, shown: float) -> Table:
    """Return the table "target" for a user's own score, in the unit that tables show."""
    rows = all_rows(results)
    words = Words(results.meta, provenance(results))
    return target.table(words, results, [row for row in rows if row.chosen], rows, shown / words.scale)


# ---- one configuration a row ---------------------------------------------------------------------------------


def _results(words: Words, best: list[Row], rows: list[Row], compared: list[Contrast], of_tuning: list[str]) -> Table:
    holm = {(one.condition, one.ours.label): one.p for one in compared if one.theirs.label == words.baseline}
    p = [holm.get((row.condition, row.label), np.nan) for row in best]
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": named,
        f"test {words.metric}{words.brackets}": lambda row: words.mean(row.test_metric),
        f"difference to {words.baseline}{words.points}": words.difference,
        "p (Holm)": lambda row: p_value(holm.get((row.condition, row.label), np.nan)),
        f"gap{words.points}": lambda row: words.mean(row.gap_metric),
        "n": counted,
    }
    paired = (
        f"Difference: test {words.metric} minus that of {words.baseline}{words.within()}, paired by seed, with its "
        f"95% t interval; p: two-sided paired t test, corrected by Holm's method over the rows. "
        f"{words.gap()}"
    )
    notes = [
        *footnotes.choices(best, rows),
        *of_tuning,
        *footnotes.significance(best),
        *footnotes.budget(best),
        *words.cut(),
        *footnotes.mixed(words.source),
    ]
    fields = ["test_metric", "selected_metric", "val_metric", "train_metric", "noisy_metric", "gap_metric"]
    numbers = to_frame(best, fields, words.meta["metric"]).join(comparison_frame(best, words.meta["metric"]))
    numbers["p_holm"] = p
    numbers["degenerate"] = [row.degenerate for row in best]
    return _table(words, "results", "results", [words.measured(), paired], cells, best, notes, numbers)


def _losses(words: Words, best: list[Row], rows: list[Row]) -> Table:
    kinds = words.losses()
    unit = "" if kinds else " (nats)"
    each = "; ".join(f"{loss} for {tasks}" for loss, tasks in kinds.items())
    what = (
        f"loss after the last epoch: {each}. Train loss" if kinds else "cross-entropy after the last epoch, train loss"
    )
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": named,
        f"train loss{unit}": lambda row: plain(row.train_loss, ".3f"),
        f"test loss{unit}": lambda row: plain(row.test_loss, ".3f"),
        f"gap{unit}": lambda row: plain(row.gap_loss, ".3f"),
        "n": counted,
    }
    about = (
        f"Mean {what} {'on true labels ' * bool(words.true_labels)}without augmentation; gap: test minus train. "
        "Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."
    )
    notes = [*footnotes.choices(best, rows), *footnotes.budget(best)]
    numbers = to_frame(best, ["train_loss", "test_loss", "val_loss", "gap_loss"], words.meta["metric"])
    return _table(words, "losses", "losses", [about], cells, best, notes, numbers)


def _cost(words: Words, results: Results, best: list[Row], rows: list[Row]) -> Table:
    longest = np.nanmax([0.0, *(row.train_seconds.mean for row in best)])
    digits = 2 if longest < 10 else 1 if longest < 1000 else 0
    texts = any(row.tokens_per_second > 0 for row in best)
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": named,
        "time (s)": lambda row: plain(row.train_seconds, f",.{digits}f"),
        "time ratio": lambda row: number(row.seconds_ratio, ".2f", "×"),
        "passes": lambda row: number(row.passes, ",.0f"),
        "passes ratio": lambda row: number(row.passes_ratio, ".2f", "×"),
        "peak (MB)": lambda row: number(row.peak_memory_mb, ",.0f"),
        **({"tokens/s": lambda row: number(row.tokens_per_second, ",.0f")} if texts else {}),
        "diverged, failed": lambda row: f"{row.diverged}, {row.failed}",
    }
    about = (
        "Means over the finished runs. Time: training only, without set-up and evaluation, mean ± half-width of the "
        "95% Student-t interval. Passes: forward-backward passes over a batch. "
        f"Ratios are to {words.baseline}{words.within()}, over the seeds both finished. Peak: largest memory in use."
    )
    notes = [*footnotes.choices(best, rows), *footnotes.budget(best), *footnotes.mixed(words.source)]
    notes += load.notes(best, results, words.source)
    speed = "Tokens/s: training tokens a second of this time, without padding, each batch once whatever its passes."
    caption = [about, speed] if texts else [about]
    fields = ["train_seconds", "seconds_ratio", "passes", "passes_ratio", "peak_memory_mb"]
    fields += ["tokens_per_second"] if texts else []
    numbers = to_frame(best, fields, words.meta["metric"])
    return _table(words, "cost", "cost", caption, cells, best, notes, numbers)


def _sweep(words: Words, rows: list[Row]) -> Table:
    """Return the table of the sweep, of validation alone if tuning is a phase of its own, without test numbers."""
    apart = bool(phased(words.meta))
    of_test: dict[str, Callable[[Row], str]] = {
        f"test {words.metric}{words.brackets}": lambda row: words.mean(row.test_metric),
        f"gap{words.points}": lambda row: words.mean(row.gap_metric),
    }
    cells: dict[str, Callable[[Row], str]] = {
        "optimizer": lambda row: row.title + marks(row),
        f"validation {words.metric}{words.brackets}": lambda row: words.mean(row.val_metric),
        **({} if apart else of_test),
        "n": counted,
        "chosen": lambda row: "chosen" if row.chosen and row.done else "",
    }
    notes = [
        *footnotes.gone(rows),
        *footnotes.edges([row for row in rows if row.chosen]),
        *footnotes.degenerate(rows),
        *footnotes.mixed(words.source),
    ]
    fields = ["val_metric", "test_metric", "gap_metric", "val_loss", "chosen"]
    if apart:
        fields = ["val_metric", "train_metric", "val_loss", "chosen"]
    numbers = to_frame(rows, fields, words.meta["metric"])
    if not apart:
        numbers = numbers.join(comparison_frame(rows, words.meta["metric"]))
    numbers["degenerate"] = [row.degenerate for row in rows]
    measured = words.measured("Validation" if apart else "Test")
    return _table(words, "sweep", "all swept configurations", [measured], cells, rows, notes, numbers)


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
    columns = [*names(words.varied), *cells]
    text = [[*map(value_text, row.varied.values()), *(cell(row) for cell in cells.values())] for row in rows]
    title = f"{words.meta['title']}: {title}"
    return Table(
        words.meta["name"], name, title, [*caption, *words.closing()], columns, text, notes, numbers, len(words.varied)
    )
