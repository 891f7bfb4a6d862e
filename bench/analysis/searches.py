"""Whether the optimizers that are compared were searched alike: over the same keys and values, as many times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from bench.analysis import choice
from bench.analysis.conditions import keyed, value_text

if TYPE_CHECKING:
    from bench.records import Results

NONE = "not searched"


def searches(results: Results) -> dict[str, str]:
    """Return the search of every label, in words that are the same for equal searches.

    Example:
        {"sgd": "not searched", "sam": "2 configurations: rho 0.1, 0.2"}
    """
    tune = choice.phased(results.meta).get("tune")
    records = keyed(choice.tuning(results.records))
    found = {}
    for label in results.meta["labels"]:
        if tune:
            space, trials = tune["spaces"].get(label, {}), tune["trials"].get(label, 0)
        else:
            mine = records[records["optimizer"] == label]
            space = {key: list(mine[key].dropna().unique()) for key in results.meta["sweeps"].get(label, [])}
            trials = mine["config"].nunique()
        each = [f"{key} {spelled(values)}" for key, values in sorted(space.items())]
        found[label] = f"{trials} configurations: {' and '.join(each)}" if trials > 1 else NONE
    return found


def unequal(results: Results, pairs: Iterable[tuple[str, str]]) -> str:
    """Return a sentence on the searches of the compared labels whose searches differ; "" where none do."""
    of_label = searches(results)
    named = {label for pair in pairs for label in pair if of_label[pair[0]] != of_label[pair[1]]}
    alike: dict[str, list[str]] = {}
    for label, search in of_label.items():
        if label in named:
            alike.setdefault(search, []).append(label)
    if not alike:
        return ""
    each = "; ".join(f"{', '.join(labels)}: {search}" for search, labels in alike.items())
    return f"Unequal searches ({each}): a wider or longer search is more likely to find a good setting."


def spelled(values: Any) -> str:
    """Return a list or a range of a search in words."""
    if isinstance(values, Mapping):
        return f"from {values['low']:g} to {values['high']:g}{' on a log scale' * bool(values.get('log'))}"
    numbers = all(isinstance(value, int | float) for value in values)
    return ", ".join(map(value_text, sorted(values) if numbers else values))
