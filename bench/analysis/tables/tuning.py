"""The tuning phase in results: the table "tuning", and notes on the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.analysis.render.table import EMPTY, SECTION, Table
from bench.analysis.searches import spelled
from bench.analysis.stats import Interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import footnotes
from bench.analysis.tables.column import Column, build
from bench.core.meta import Meta
from bench.store import selection
from bench.store.conditions import conditions, keyed, merged

if TYPE_CHECKING:
    from bench.store.records import Results

UNTUNED = "not tuned"


@dataclass(frozen=True)
class Tuned:
    """The result of tuning one optimizer under one condition.

    Attributes:
        final: the row that is reported.
        row: the choice over the runs that it was chosen by; None for an optimizer that was not tuned.
        space: what was searched, by hyperparameter.
        trials: the number of configurations.
        passes: of all finished runs of tuning.
        seeds: of tuning.
    """

    final: Row
    row: Row | None
    space: Mapping[str, Any]
    trials: int
    passes: float
    seeds: int

    @property
    def validation(self) -> Interval:
        """Return the validation metric of the choice, or of the fixed setting."""
        return (self.row or self.final).val_metric

    @property
    def choice(self) -> str:
        """Return the chosen configuration as the table shows it."""
        if self.row is None:
            return UNTUNED
        # As long as no run has finished, the flagged configuration was chosen by no score.
        return self.row.config + SECTION * bool(self.row.degenerate) if self.row.done else EMPTY

    @property
    def place(self) -> str:
        """Return the position of the choice in the searched list or range."""
        if self.row is None or not self.row.done:
            return EMPTY
        # Only swept keys have a place: a fixed setting was not searched.
        where = {key: _where(value, self.space[key]) for key, value in self.row.swept.items()}
        return ", ".join(f"{key} {place}{' (edge)' * (key in self.row.edges)}" for key, place in where.items())


def table(study: Study) -> Table:
    """Return the table of every optimizer's tuning budget, its choice, and the choice's place in the searched space."""
    captions, tune = study.captions, selection.phased(study.meta)["tune"]
    chosen = [row for row in study.tried if row.chosen]
    seeds = ", ".join(map(str, tune["seeds"]))
    caption = [
        f"Each trial is a configuration, run with seeds {seeds}; none of these runs was measured on the test "
        "set. Passes: forward-backward passes of all of them. Place: where the choice lies in what was searched, from "
        "0% (low end) to 100% (high end) on the scale of the search; of a list, which of its values.",
    ]
    notes = [
        *notes_on(study.meta, study.tried),
        *footnotes.edges(chosen),
        *footnotes.degenerate(chosen),
        *searched({label: tune["spaces"][label] for label in study.meta["labels"] if label in tune["spaces"]}),
    ]
    unit = f" [{captions.unit}]" if captions.unit else ""
    columns: list[Column[Tuned]] = [
        Column("optimizer", lambda one: one.final.label, lambda one: {"optimizer": one.final.label}),
        Column("trials", lambda one: str(one.trials), lambda one: {"trials": one.trials, "seeds": one.seeds}),
        Column("passes", lambda one: f"{one.passes:,.0f}", lambda one: {"passes": one.passes}),
        Column("chosen", lambda one: one.choice, lambda one: {"config": one.row.config if one.row else ""}),
        Column(
            f"validation {captions.metric}{captions.brackets}",
            # The text leaves out settings that were not tuned; the CSV has their validation, if final runs have one.
            lambda one: captions.mean(one.validation) if one.row and one.row.done else EMPTY,
            lambda one: {f"val_{study.meta['metric']['key']}_mean{unit}": one.validation.mean * captions.scale},
        ),
        Column(
            "place",
            lambda one: one.place,
            lambda one: {"edges": "; ".join(f"{key} {end}" for key, end in (one.row.edges if one.row else {}).items())},
        ),
    ]
    return build(
        study,
        "tuning",
        "tuning",
        columns,
        list(_tuned(study)),
        caption=caption,
        notes=notes,
        row=lambda one: one.final,
        condition_in_numbers=False,
    )


def _tuned(study: Study) -> Iterator[Tuned]:
    tune = selection.phased(study.meta)["tune"]
    chosen = {(row.condition, row.label): row for row in study.tried if row.chosen}
    passes = _passes(study.results)
    for final in study.chosen:
        key = (final.condition, final.label)
        # None for a label that was not tuned: it has final runs only.
        row = chosen.get(key)
        yield Tuned(
            final,
            row,
            tune["spaces"].get(final.label, {}),
            tune["trials"].get(final.label, 0),
            passes.get(key, 0),
            len(tune["seeds"]) if row else 0,
        )


def notes_on(meta: Meta, tried: Sequence[Row]) -> Iterator[str]:
    """Yield the notes under every table: optimizers that were not tuned, unfinished tuning, changed choices."""
    phases = selection.phased(meta)
    if not phases:
        return
    if phases["untuned"]:
        yield f"Not tuned, at its fixed setting: {', '.join(phases['untuned'])}."
    done: dict[tuple[str, str], list[int]] = {}
    for row in tried:
        # Runs that ended, runs planned, and runs that failed or diverged, over all configurations of the label.
        counted = done.setdefault((row.condition, row.label), [0, 0, 0])
        counted[0] += row.planned - row.unfinished
        counted[1] += row.planned
        counted[2] += row.failed + row.diverged
    open_ = [
        (condition, f"{label} ({over} of {planned} runs)", "")
        for (condition, label), (over, planned, _) in done.items()
        if over < planned
    ]
    # A choice before all runs have ended could still change.
    if open_:
        yield f"Tuning is not finished, so nothing is chosen yet: {', '.join(merged(open_, conditions(meta)))}."
    failed = [(condition, f"{label} ({lost})", "") for (condition, label), (_, _, lost) in done.items() if lost]
    if failed:
        lost = ", ".join(merged(failed, conditions(meta)))
        yield f"Runs of tuning that failed or diverged, whose configurations rank last: {lost}."
    # The choice has changed since: final runs of the earlier one exist, and are in no number.
    for earlier in phases.get("superseded", []):
        yield (
            f"{_named(earlier)}: {earlier['config']} had been chosen before, from fewer or other runs of tuning; its "
            f"{earlier['finished']} final runs are not among these."
        )


def _named(earlier: Mapping[str, Any]) -> str:
    return f"{earlier['label']} ({earlier['condition']})" if earlier["condition"] else str(earlier["label"])


def _passes(results: Results) -> dict[tuple[str, str], float]:
    """Return the passes of the finished tuning runs, by condition and label."""
    records = keyed(selection.tuning(results.records))
    # Runs without a number of passes, as unfinished ones, add nothing to the sum.
    sums = records.groupby(["condition", "optimizer"], sort=False)["passes"].sum()
    return {key: float(value) for key, value in sums.items()}  # type: ignore[misc]


def _where(value: Any, space: Any) -> str:
    if isinstance(space, Mapping):
        # A range is searched on its own scale, so the place is measured on that scale, too.
        return f"{100 * selection.place(value, space):.0f}%"
    return f"{space.index(value) + 1} of {len(space)}" if value in space else EMPTY


def searched(spaces: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the searched lists and ranges, each with the labels that searched it."""
    labels_of: dict[str, list[str]] = {}
    for label, space in spaces.items():
        for key, values in space.items():
            labels_of.setdefault(f"{key} {spelled(values)}", []).append(label)
    if labels_of:
        each = (f"{what} ({', '.join(labels)})" for what, labels in labels_of.items())
        yield f"Searched: {'; '.join(each)}."
