"""The tuning phase in results: the table "tuning", and the sentences of captions about the choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from bench.analysis import footnotes
from bench.analysis.render import EMPTY, SECTION, Table
from bench.analysis.searches import spelled
from bench.analysis.summary import Row
from bench.store import selection as choice
from bench.store.conditions import conditions, keyed, merged, names, value_text

if TYPE_CHECKING:
    from bench.analysis.words import Words
    from bench.store.records import Results

UNTUNED = "not tuned"


def table(words: Words, results: Results, tried: Sequence[Row], best: Sequence[Row]) -> Table:
    """Return the table of every optimizer's tuning budget, its choice, and the choice's place in the searched space.

    Args:
        tried: every configuration over the runs used for choosing.
        best: the chosen rows, including those of untuned optimizers.
    """
    tune = choice.phased(words.meta)["tune"]
    chosen = {(row.condition, row.label): row for row in tried if row.chosen}
    passes = _passes(results)
    text, numbers = [], []
    for final in best:
        row = chosen.get((final.condition, final.label))
        trials = tune["trials"].get(final.label, 0)
        spent = passes.get((final.condition, final.label), 0)
        space = tune["spaces"].get(final.label, {})
        where = {key: _where(value, space[key]) for key, value in row.swept.items()} if row else {}
        held = row.val_metric if row else final.val_metric
        cells = [final.label, str(trials), f"{spent:,.0f}"]
        if row is None:
            cells += [UNTUNED, EMPTY, EMPTY]
        elif not row.done:
            cells += [EMPTY, EMPTY, EMPTY]
        else:
            cells += [
                row.config + SECTION * bool(row.degenerate),
                words.mean(row.val_metric),
                _in_words(where, row.edges),
            ]
        text.append([*map(value_text, final.varied.values()), *cells])
        numbers.append(
            {
                **final.varied,
                "optimizer": final.label,
                "trials": trials,
                "seeds": len(tune["seeds"]) if row else 0,
                "passes": spent,
                "config": row.config if row else "",
                f"val_{words.meta['metric']['key']}_mean{f' [{words.unit}]' * bool(words.unit)}": held.mean
                * words.scale,
                "edges": "; ".join(f"{key} {end}" for key, end in row.edges.items()) if row else "",
            }
        )
    columns = [
        *names(words.varied),
        *("optimizer", "trials", "passes", "chosen", f"validation {words.metric}{words.brackets}", "place"),
    ]
    tuning_seeds = ", ".join(map(str, tune["seeds"]))
    caption = [
        f"Each trial is a configuration, run with seeds {tuning_seeds}; none of these runs was measured on the test "
        "set. Passes: forward-backward passes of all of them. Place: where the choice lies in what was searched, from "
        "0% (low end) to 100% (high end) on the scale of the search; of a list, which of its values.",
        *words.closing(),
    ]
    notes = [
        *notes_on(words.meta, tried),
        *footnotes.edges([row for row in tried if row.chosen]),
        *footnotes.degenerate([row for row in tried if row.chosen]),
        *_searched({label: tune["spaces"][label] for label in results.meta["labels"] if label in tune["spaces"]}),
    ]
    title = f"{words.meta['title']}: tuning"
    return Table(
        words.meta["name"], "tuning", title, caption, columns, text, notes, pd.DataFrame(numbers), len(words.varied)
    )


def sentence(meta: Mapping[str, Any], metric: str, held_out: str, each: str) -> str:
    """Return the sentence of a caption about the choice.

    Args:
        held_out: the held-out share of the training data, in brackets.
        each: ", for each condition by itself" or "".
    """
    phases = choice.phased(meta)
    tune, final = phases["tune"], phases["final"]
    counts = sorted(set(tune["trials"].values()))
    trials = f"{counts[0]} trials" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} trials"
    budget = f"{trials} for every optimizer" if tune["budget"] == "trials" else f"{trials}, of equal passes in all"
    refit = ", trained on training and validation data together" if final["refit"] else ""
    return (
        f"Hyperparameters were chosen{each} by mean validation {metric} {held_out} over {len(tune['seeds'])} "
        f"{'seeds' if len(tune['seeds']) > 1 else 'seed'} ({tune['search']} search, {budget}), never by the test set; "
        f"the numbers are of what was chosen, on fresh seeds{refit}."
    )


def notes_on(meta: Mapping[str, Any], tried: Sequence[Row]) -> Iterator[str]:
    """Yield the notes under every table: optimizers that were not tuned, unfinished tuning, changed choices."""
    phases = choice.phased(meta)
    if not phases:
        return
    if phases["untuned"]:
        yield f"Not tuned, at its fixed setting: {', '.join(phases['untuned'])}."
    done: dict[tuple[str, str], list[int]] = {}
    for row in tried:
        counted = done.setdefault((row.condition, row.label), [0, 0, 0])
        counted[0] += row.planned - row.unfinished
        counted[1] += row.planned
        counted[2] += row.failed + row.diverged
    open_ = [
        (condition, f"{label} ({over} of {planned} runs)", "")
        for (condition, label), (over, planned, _) in done.items()
        if over < planned
    ]
    if open_:
        yield f"Tuning is not finished, so nothing is chosen yet: {', '.join(merged(open_, conditions(meta)))}."
    failed = [(condition, f"{label} ({lost})", "") for (condition, label), (_, _, lost) in done.items() if lost]
    if failed:
        lost = ", ".join(merged(failed, conditions(meta)))
        yield f"Runs of tuning that failed or diverged, whose configurations rank last: {lost}."
    for earlier in phases.get("superseded", []):
        yield (
            f"{_named(earlier)}: {earlier['config']} had been chosen before, from fewer or other runs of tuning; its "
            f"{earlier['finished']} final runs are not among these."
        )


def _named(earlier: Mapping[str, Any]) -> str:
    return f"{earlier['label']} ({earlier['condition']})" if earlier["condition"] else str(earlier["label"])


def _passes(results: Results) -> dict[tuple[str, str], float]:
    """Return the passes of the finished tuning runs, by condition and label."""
    records = keyed(choice.tuning(results.records))
    sums = records.groupby(["condition", "optimizer"], sort=False)["passes"].sum()
    return {key: float(value) for key, value in sums.items()}  # type: ignore[misc]


def _where(value: Any, space: Any) -> str:
    if isinstance(space, Mapping):
        return f"{100 * choice.place(value, space):.0f}%"
    return f"{space.index(value) + 1} of {len(space)}" if value in space else EMPTY


def _in_words(where: Mapping[str, str], edges: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {place}{' (edge)' * (key in edges)}" for key, place in where.items())


def _searched(spaces: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the searched lists and ranges, each with the labels that searched it."""
    found: dict[str, list[str]] = {}
    for label, space in spaces.items():
        for key, values in space.items():
            found.setdefault(f"{key} {spelled(values)}", []).append(label)
    if found:
        each = (f"{what} ({', '.join(labels)})" for what, labels in found.items())
        yield f"Searched: {'; '.join(each)}."
