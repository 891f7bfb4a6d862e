"""The tables of one chosen configuration per line: results, losses and cost; and that of all swept ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from bench.analysis import load, numbers
from bench.analysis.format import counted, marks, named, number, p_value, plain
from bench.analysis.render.table import Table
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import column, footnotes, tuning
from bench.analysis.tables.column import Column, hidden
from bench.store.selection import phased

SPREAD = "Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."


def results(study: Study) -> Table:
    """Return the table "results": test metric, difference to the baseline with its p, and gap."""
    metric = study.meta["metric"]
    of = partial(numbers.measured, metric)
    captions = study.captions
    # p against the baseline alone; those against other competitors are in the table "statistics".
    holm = {(one.condition, one.ours.label): one.p for one in study.contrasts if one.theirs.label == captions.baseline}

    def p(row: Row) -> float:
        return holm.get((row.condition, row.label), np.nan)

    columns: list[Column[Row]] = [
        _optimizer(),
        Column(
            f"test {captions.metric}{captions.brackets}",
            lambda row: captions.mean(row.test_metric),
            of("test_metric"),
        ),
        # Too many columns for a page; the CSV has them for further use.
        *(hidden(of(f"{which}_metric")) for which in ("selected", "val", "train", "noisy", "gap")),
        Column(
            f"difference to {captions.baseline}{captions.points}",
            captions.difference,
            numbers.compared(metric),
        ),
        Column("p (Holm)", lambda row: p_value(p(row)), lambda row: {"p_holm": p(row)}),
        # Text alone: its numbers are among the hidden columns above.
        Column(f"gap{captions.points}", lambda row: captions.mean(row.gap_metric)),
        Column("n", counted),
        hidden(lambda row: {"degenerate": row.degenerate}),
    ]
    paired = (
        f"Difference: test {captions.metric} minus that of {captions.baseline}{captions.within()}, paired by seed, "
        "with its 95% t interval; p: two-sided paired t test, corrected by Holm's method over the rows. "
        f"{captions.gap()}"
    )
    notes = [
        *footnotes.choices(study),
        *tuning.notes_on(study.meta, study.tried),
        *study.unequal_searches,
        *footnotes.significance(study.chosen),
        *footnotes.budget(study.chosen),
        *captions.cut(),
        *footnotes.mixed(study.source),
    ]
    caption = [captions.measured(), paired]
    return _of_rows(study, "results", "results", columns, study.chosen, caption, notes)


def losses(study: Study) -> Table:
    """Return the table "losses": loss on the training and the test set, and their gap."""
    of = partial(numbers.measured, study.meta["metric"])
    captions, kinds = study.captions, study.captions.losses()
    unit = "" if kinds else " (nats)"
    each = "; ".join(f"{loss} for {tasks}" for loss, tasks in kinds.items())
    what = (
        f"loss after the last epoch: {each}. Train loss" if kinds else "cross-entropy after the last epoch, train loss"
    )

    def loss(head: str, field: str) -> Column[Row]:
        return Column(
            f"{head}{unit}",
            lambda row: plain(getattr(row, field), ".3f"),
            of(field),
        )

    columns: list[Column[Row]] = [
        _optimizer(),
        loss("train loss", "train_loss"),
        loss("test loss", "test_loss"),
        hidden(of("val_loss")),
        loss("gap", "gap_loss"),
        Column("n", counted),
    ]
    about = (
        f"Mean {what} {'on true labels ' * bool(captions.true_labels)}without augmentation; gap: test minus train. "
        f"{SPREAD}"
    )
    notes = [*footnotes.choices(study), *footnotes.budget(study.chosen)]
    return _of_rows(study, "losses", "losses", columns, study.chosen, [about], notes)


def cost(study: Study) -> Table:
    """Return the table "cost": training time, passes, memory, and runs that were lost."""
    of = partial(numbers.measured, study.meta["metric"])
    captions = study.captions
    # 0.0 stands in if no time is known: nanmax warns if all values are NaN.
    longest = np.nanmax([0.0, *(row.train_seconds.mean for row in study.chosen)])
    # The same decimals in the whole column, by its longest time.
    digits = 2 if longest < 10 else 1 if longest < 1000 else 0

    def figure(head: str, field: str, form: str, unit: str = "") -> Column[Row]:
        return Column(head, lambda row: number(getattr(row, field), form, unit), of(field))

    # NaN, of runs without text, is not above 0.
    texts = any(row.tokens_per_second > 0 for row in study.chosen)
    columns: list[Column[Row]] = [
        _optimizer(),
        Column(
            "time (s)",
            lambda row: plain(row.train_seconds, f",.{digits}f"),
            of("train_seconds"),
        ),
        figure("time ratio", "seconds_ratio", ".2f", "×"),
        figure("passes", "passes", ",.0f"),
        figure("passes ratio", "passes_ratio", ".2f", "×"),
        figure("peak (MB)", "peak_memory_mb", ",.0f"),
        *([figure("tokens/s", "tokens_per_second", ",.0f")] if texts else []),
        Column("diverged, failed", lambda row: f"{row.diverged}, {row.failed}"),
    ]
    caption = [
        "Means over the finished runs. Time: training only, without set-up and evaluation, mean ± half-width of the "
        "95% Student-t interval. Passes: forward-backward passes over a batch. "
        f"Ratios are to {captions.baseline}{captions.within()}, over the seeds both finished. Peak: largest memory in "
        "use."
    ]
    if texts:
        caption.append(
            "Tokens/s: training tokens a second of this time, without padding, each batch once whatever its passes."
        )
    notes = [*footnotes.choices(study), *footnotes.budget(study.chosen), *footnotes.mixed(study.source)]
    notes += load.notes(study)
    return _of_rows(study, "cost", "cost", columns, study.chosen, caption, notes)


def sweep(study: Study) -> Table:
    """Return the table "sweep", of validation alone if tuning is a phase of its own, without test numbers."""
    metric = study.meta["metric"]
    of = partial(numbers.measured, metric)
    # `tried`, not `rows`: all lines of the table are then over runs of one kind, those for choosing.
    captions, rows = study.captions, [row for row in study.tried if row.label in study.meta["sweeps"]]
    # Runs of a phase of tuning are never measured on the test set: there are no test columns to show.
    apart = bool(phased(study.meta))
    of_test = [
        Column[Row](
            f"test {captions.metric}{captions.brackets}",
            lambda row: captions.mean(row.test_metric),
            of("test_metric"),
        ),
        Column[Row](
            f"gap{captions.points}",
            lambda row: captions.mean(row.gap_metric),
            of("gap_metric"),
        ),
    ]
    columns: list[Column[Row]] = [
        _optimizer(lambda row: row.title + marks(row)),
        Column(
            f"validation {captions.metric}{captions.brackets}",
            lambda row: captions.mean(row.val_metric),
            of("val_metric"),
        ),
        *([hidden(of("train_metric"))] if apart else of_test),
        hidden(of("val_loss")),
        Column("n", counted),
        # Where no run has finished, the first configuration is flagged, but nothing has been chosen by a score.
        Column("chosen", lambda row: "chosen" if row.chosen and row.done else "", lambda row: {"chosen": row.chosen}),
        *([] if apart else [hidden(numbers.compared(metric))]),
        hidden(lambda row: {"degenerate": row.degenerate}),
    ]
    notes = [
        *footnotes.gone(rows),
        *footnotes.edges([row for row in rows if row.chosen]),
        *footnotes.degenerate(rows),
        *footnotes.mixed(study.source),
    ]
    caption = [captions.measured("Validation" if apart else "Test")]
    return _of_rows(study, "sweep", "all swept configurations", columns, rows, caption, notes)


def _optimizer(cell: Callable[[Row], str] = named) -> Column[Row]:
    return Column("optimizer", cell, numbers.identity)


def _of_rows(
    study: Study,
    name: str,
    title: str,
    columns: Sequence[Column[Row]],
    rows: Sequence[Row],
    caption: Sequence[str],
    notes: Sequence[str],
) -> Table:
    return column.build(study, name, title, columns, rows, caption=caption, notes=notes, row=lambda row: row)
