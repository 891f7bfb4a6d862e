"""The rows of the atlas: SAM minus the optimizer that it wraps, under one condition of one result set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis.contrasts import Contrast, composition
from bench.analysis.load import contradict
from bench.analysis.pairings import Pairing, pairings
from bench.analysis.searches import Search, searches
from bench.analysis.stats import FEWEST, Interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.core.errors import BenchError
from bench.store.conditions import keyed, names, value_text

if TYPE_CHECKING:
    from bench.store.records import Results

FAMILIES = {
    "digits": "digits",
    "mnist1d": "MNIST-1D",
    "fashion_mnist": "Fashion-MNIST",
    "cifar": "CIFAR",
    "glue": "GLUE",
}
"""Families of tasks, by how the name of a built-in task begins; any other task is a family of its own."""

NOT_COMPARED = Interval(0, np.nan, np.nan, np.nan)
OF_SETTING = ("model", "train_size", "train_share")
TOLD = ("task", "model", "label_noise")  # varied settings that have a column of their own


@dataclass(frozen=True)
class Point:
    """A method against its base under one condition.

    Differences are in the unit shown, in points for scores in percent; positive where the method is better.

    Attributes:
        results: name of the result set.
        condition: what is varied besides task, model and label noise, e.g. "train_size=500"; "" if nothing is.
        base: label of the optimizer with equal epochs.
        ours: label of the method, with its configuration.
        at_epochs, at_passes: paired differences to the base with equal epochs and with equal passes; n = 0 if there is
            no such run.
        twice: label of the base with equal passes; "" if there is none.
        in_points: whether differences are in points of a score that ends at 100, which can be pooled.
        passes_ratio, seconds_ratio: to the base with equal epochs; the latter is NaN where
            hardware is mixed, or where it differs by more than a third from the former: the machine was busy.
        setting: what two comparisons have in common that differ in their searches alone: task, model with its settings,
            condition and base.
        tuned: the search of the method in words, and a remark if the base was not tuned.
        fair: the budgets, "epochs" and "passes", at which both sides were tuned.
        degenerate: those at which a side gives one answer to everything.
        gap: train minus test score of the base, in the unit shown: how much it overfits.
        examples: training examples per epoch; NaN if not recorded.
        marks: why the row is to be read with care; "" if nothing is known against it.
    """

    results: str
    family: str
    task: str
    model: str
    condition: str
    label_noise: float
    base: str
    ours: str
    at_epochs: Interval
    at_passes: Interval
    twice: str
    setting: tuple[str, ...]
    in_points: bool
    passes_ratio: float
    seconds_ratio: float
    tuned: str
    fair: tuple[str, ...]
    degenerate: tuple[str, ...]
    gap: float
    examples: float
    marks: str

    def difference(self, budget: str) -> Interval:
        """Return the difference at equal "epochs" or at equal "passes"."""
        return self.at_epochs if budget == "epochs" else self.at_passes

    def counts(self, budget: str) -> bool:
        """Return whether a difference can be judged and pooled: fair, not degenerate, enough pairs, with a spread."""
        one = self.difference(budget)
        fit = budget in self.fair and budget not in self.degenerate
        return fit and one.n >= FEWEST and one.known

    def side(self, budget: str) -> str:
        """Return "better" or "worse" if the interval is on one side of zero, "open" if not, "unjudged" if it is not."""
        one = self.difference(budget)
        if not self.counts(budget):
            return "unjudged"
        return "better" if one.low > 0 else "worse" if one.high < 0 else "open"

    @property
    def n(self) -> int:
        """Return the number of pairs of seeds at equal epochs."""
        return self.at_epochs.n

    @property
    def name(self) -> str:
        """Return task, model, condition and base (if not sgd) in one line, e.g. "digits, resnet8, 20% label noise"."""
        noise = f"{100 * self.label_noise:g}% label noise" if self.label_noise else ""
        over = "" if self.base == "sgd" else f"over {self.base}"
        return ", ".join(filter(None, (self.task, self.model, noise, self.condition, over)))


def points(study: Study, method: str = "sam") -> list[Point]:
    """Return one row per condition and base of an experiment; none if it has no finished run of the method.

    Of several labels of the method around one base, which differ in its arguments, the one that is named after the
    method is taken or, for lack of such a label, the first.
    """
    settings = composition(study.results)
    mine: dict[str, str] = {}
    for label, (name, base) in settings.items():
        if name == method and base and (base not in mine or label == method):
            mine[base] = label
    found = searches(study.results)
    ours = [one for one in pairings(study) if one.ours.label in mine.values()]
    return [_point(study, one, found) for one in ours]


def wrapping(study: Study) -> set[str]:
    """Return the methods of an experiment that wrap an optimizer."""
    return {name for name, base in composition(study.results).values() if base}


def family(task: str) -> str:
    """Return the family of a task; a task that is not built in is a family of its own."""
    return next((words for start, words in FAMILIES.items() if task.startswith(start)), task)


def checked(studies: Sequence[Study]) -> Sequence[Study]:
    """Return the studies.

    Raises:
        BenchError: two have one name, or their protocols differ, so that their numbers must not stand side by side.
    """
    labels = [study.meta["name"] for study in studies]
    twice = sorted({name for name in labels if labels.count(name) > 1})
    if twice:
        raise BenchError(f"the atlas was given {', '.join(twice)} twice; give every result set once")
    protocols = {study.meta["name"]: study.meta["protocol"] for study in studies}
    if len({*protocols.values()}) > 1:
        told = ", ".join(f"{name} has {protocol}" for name, protocol in protocols.items())
        raise BenchError(
            f"result sets of different protocols cannot stand in one atlas: {told}; run the older ones again"
        )
    return studies


# ---- the parts -----------------------------------------------------------------------------------------------


def _point(study: Study, one: Pairing, found: Mapping[str, Search]) -> Point:
    row, theirs, passes = one.ours, one.base, one.passes
    metric, varied = study.meta["metric"], row.varied
    noise = varied.get("label_noise", study.meta["data"].get("label_noise", 0.0))
    others = {name: value for name, value in varied.items() if name not in TOLD}
    task = str(varied.get("task", study.meta["task"]))
    scale = float(metric["scale"])
    passes_ratio, seconds = row.passes / theirs.passes, row.train_seconds.mean / theirs.train_seconds.mean
    if study.source.mixed or contradict(seconds, passes_ratio):
        seconds = np.nan
    at = {"epochs": one.epochs} | ({"passes": passes} if passes else {})
    return Point(
        results=study.meta["name"],
        family=family(task),
        task=task,
        model=str(varied.get("model", study.meta["model"])),
        condition=", ".join(
            f"{name}={value_text(value)}" for name, value in zip(names(others), others.values(), strict=True)
        ),
        label_noise=float(noise),
        base=theirs.label,
        ours=row.title,
        at_epochs=_towards_better(one.epochs, scale),
        at_passes=_towards_better(passes, scale) if passes else NOT_COMPARED,
        twice=passes.theirs.label if passes else "",
        setting=_setting(study.results, theirs, task, noise, others),
        in_points=scale == 100,
        passes_ratio=passes_ratio,
        seconds_ratio=float(seconds),
        tuned=_tuned(found[row.label], found[theirs.label]),
        fair=tuple(budget for budget, each in at.items() if _are_tuned(each, found)),
        degenerate=tuple(budget for budget, each in at.items() if each.degenerate),
        gap=theirs.gap_metric.mean * scale,
        examples=_examples(study.results, theirs),
        marks="; ".join([*_marks(row, *(each.theirs for each in at.values())), *_unequal(at.values(), found)]),
    )


def _towards_better(one: Contrast, scale: float) -> Interval:
    """Return the difference in the unit shown, with its sign turned for metrics of which less is better."""
    scaled = one.test.difference.scaled(scale)
    return scaled if one.higher_is_better else Interval(scaled.n, -scaled.mean, -scaled.high, -scaled.low)


def _tuned(ours: Search, theirs: Search) -> str:
    keys = [key for key, _ in ours.space]
    if ours.trials <= 1:
        return "nothing"
    told = f"{', '.join(keys)} ({ours.trials} trials)"
    return told if theirs.trials > 1 else f"{told}; the base was not tuned"


def _setting(results: Results, base: Row, task: str, noise: float, others: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what makes a setting: other data or a wider network are another one, a search over other values is not."""
    # A column that is empty for this run is another model's or another task's.
    first = _runs(results, base).iloc[0].dropna()
    own = [name for name in first.index if name in OF_SETTING or name.startswith(("task.", "model."))]
    kept = [f"{name}={value_text(value)}" for name, value in others.items()]
    return task, *(f"{name}={first[name]}" for name in own), f"label_noise={noise:g}", *kept, str(first["method"])


def _runs(results: Results, row: Row) -> pd.DataFrame:
    """Return the records of a row's finished runs."""
    records = keyed(results.records)
    here = (records["condition"] == row.condition) & (records["optimizer"] == row.label)
    here &= (records["config"] == row.config) & (records["status"] == "done")
    return records[here & (records["phase"] == row.phase)] if row.phase else records[here]


def _examples(results: Results, row: Row) -> float:
    """Return the examples per epoch of a row's finished runs: those of the training set that fill whole batches."""
    mine = _runs(results, row)
    return float((mine["examples"] / mine["epochs"]).mean()) if "examples" in mine and len(mine) else math.nan


def _are_tuned(one: Contrast, found: Mapping[str, Search]) -> bool:
    return all(found[row.label].trials > 1 for row in (one.ours, one.theirs))


def _unequal(compared: Iterable[Contrast], found: Mapping[str, Search]) -> Iterator[str]:
    """Yield a remark on tuned sides whose search is not that of the method; of sides that were not, `_tuned` tells."""
    told: dict[str, Search] = {}
    for one in compared:
        ours, theirs = found[one.ours.label], found[one.theirs.label]
        if _are_tuned(one, found) and ours != theirs:
            told |= {one.ours.label: ours, one.theirs.label: theirs}
    if told:
        # Values are written where keys and numbers of trials alone would read the same.
        short = len({search.short for search in told.values()}) > 1
        each = [f"{label}: {search.short if short else search}" for label, search in told.items()]
        yield f"unequal searches ({'; '.join(each)})"


def _marks(*rows: Row) -> list[str]:
    said: dict[str, None] = {}
    for row in rows:
        if not row.complete:
            said[f"{row.label}: {row.done} of {row.planned} runs finished"] = None
        if row.degenerate:
            said[f"{row.label}: {row.degenerate}"] = None
        for key, end in row.edges.items():
            said[f"{row.label}: the {end} {key} tried was chosen"] = None
    return list(said)
