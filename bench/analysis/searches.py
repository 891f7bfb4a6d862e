"""A check that compared optimizers were searched alike: the same keys and values, the same number of trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.store import selection
from bench.store.conditions import keyed, value_text

if TYPE_CHECKING:
    from bench.store.records import Results

NONE = "not searched"

FEW = 3
"""Largest number of different searches whose values are listed; more are described without their values."""


@dataclass(frozen=True)
class Search:
    """A label's search in words: the number of configurations and the values of its hyperparameters."""

    trials: int
    space: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        each = " and ".join(f"{key} {values}" for key, values in self.space)
        return f"{self.trials} configurations: {each}" if self.trials > 1 else NONE

    @property
    def short(self) -> str:
        """Return the search without its values."""
        keys = " and ".join(key for key, _ in self.space)
        return f"{self.trials} configurations of {keys}" if self.trials > 1 else NONE


def searches(results: Results) -> dict[str, Search]:
    """Return the search of every label."""
    tune = selection.phased(results.meta).get("tune")
    records = keyed(selection.tuning(results.records))
    of_label = {}
    for label in results.meta["labels"]:
        # A phase of tuning wrote down what it searched; of a sweep it is read from the values that runs have.
        if tune:
            space, trials = tune["spaces"].get(label, {}), tune["trials"].get(label, 0)
        else:
            mine = records[records["optimizer"] == label]
            space = {key: list(mine[key].dropna().unique()) for key in results.meta["sweeps"].get(label, [])}
            trials = mine["config"].nunique()
        # Sorted by key, so that files that list their keys in another order are equal.
        of_label[label] = Search(trials, tuple((key, spelled(values)) for key, values in sorted(space.items())))
    return of_label


def unequal(results: Results, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a sentence on compared labels whose searches differ; "" if none do."""
    # One configuration is no search: labels with a fixed setting are equal, whatever the setting.
    of_label = {label: search if search.trials > 1 else None for label, search in searches(results).items()}
    named = {label for pair in pairs for label in pair if of_label[pair[0]] != of_label[pair[1]]}
    if not named:
        return ""
    told = {label: str(search or NONE) for label, search in of_label.items() if label in named}
    where = ""
    # Counted by text: labels that were searched alike share a sentence.
    if len(set(told.values())) > FEW:
        told = {label: search.short if (search := of_label[label]) else NONE for label in told}
        where = "; the values are in experiment.json"
    alike: dict[str, list[str]] = {}
    for label, text in told.items():
        alike.setdefault(text, []).append(label)
    each = "; ".join(f"{', '.join(labels)}: {text}" for text, labels in alike.items())
    return f"Unequal searches ({each}{where}): a wider or longer search is more likely to find a good setting."


def spelled(values: Any) -> str:
    """Return a list or a range of a search in words."""
    if isinstance(values, Mapping):
        return f"from {values['low']:g} to {values['high']:g}{' on a log scale' * bool(values.get('log'))}"
    numbers = all(isinstance(value, int | float) for value in values)
    # Numbers are sorted, so that one list in two orders reads the same.
    return ", ".join(map(value_text, sorted(values) if numbers else values))
