"""The table "hyperparameters", for an appendix: the settings of every optimizer, searched and fixed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import pandas as pd

from bench.analysis.render.table import EMPTY, Table
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import tuning
from bench.analysis.tables.column import Column, build, hidden
from bench.store.columns import TEXT_SETTINGS, setting_columns
from bench.store.conditions import KEY, keyed, value_text, varied
from bench.store.selection import phased

UNSEEN = {"eval_every", "eval_train", "compile", "cuda_graphs", "deterministic"}
"""Settings that change no weight of a run."""

SEARCHED = "What was searched and chosen on validation has a column of its own; there, in brackets, what was fixed."

Settings = Mapping[tuple[str, str, str], Mapping[str, Any]]
"""By condition, label and configuration."""


def table(study: Study) -> Table:
    """Return the table of the settings that the chosen configurations were run with.

    Searched ones have a column each. The others are in a footnote; those that are the same everywhere, in the caption.
    """
    settings = _settings(study)
    names = [name for name in setting_columns(study.results.records.columns) if name not in UNSEEN]
    # What varies between conditions stands in front of the rows already; method and base have a column of their own.
    names = [name for name in names if name not in {*varied(study.meta), *TEXT_SETTINGS}]
    # By text, since NaN is not equal to itself.
    texts = {name: {_text(settings.get(_key(row), {}).get(name)) for row in study.chosen} for name in names}
    common = [f"{name}={text}" for name in names for text in texts[name] - {EMPTY} if len(texts[name]) == 1]
    searched = [name for name in names if any(name in row.swept for row in study.chosen)]
    fixed = [name for name in names if len(texts[name]) > 1 and name not in searched]
    columns: list[Column[Row]] = [
        Column("optimizer", lambda row: row.label, lambda row: {"optimizer": row.label, "config": row.config}),
        Column(
            "method",
            partial(_method, settings),
            lambda row: {name: _value(settings, name, row) for name in TEXT_SETTINGS},
        ),
        *(_searched(settings, name) for name in searched),
        hidden(lambda row: {name: _value(settings, name, row) for name in fixed}),
    ]
    caption = [
        "Settings of the chosen configurations.",
        *([SEARCHED] if searched else []),
        *([f"The same for all: {', '.join(common)}."] if common else []),
    ]
    spaces = phased(study.meta).get("tune", {}).get("spaces", {})
    notes = [*_fixed(study, settings, fixed)]
    notes += tuning.searched({label: spaces[label] for label in study.meta["labels"] if label in spaces})
    return build(
        study, "hyperparameters", "settings", columns, study.chosen, caption=caption, notes=notes, row=lambda row: row
    )


def _method(settings: Settings, row: Row) -> str:
    method, base = (_text(_value(settings, name, row)) for name in ("method", "base"))
    return method if base == EMPTY else f"{method} over {base}"


def _searched(settings: Settings, name: str) -> Column[Row]:
    def shown(row: Row) -> str:
        text = _text(_value(settings, name, row))
        # In the column of a search a value that was not searched is told by its brackets.
        return text if name in row.swept or text == EMPTY else f"({text})"

    return Column(name.replace("_", " "), shown, lambda row: {name: _value(settings, name, row)})


def _fixed(study: Study, settings: Settings, names: Sequence[str]) -> Iterator[str]:
    """Yield one sentence on settings that were not searched, those of the same optimizers together."""
    labels_of: dict[str, dict[str, None]] = {}
    for name, row in product(names, study.chosen):
        if (text := _text(_value(settings, name, row))) != EMPTY:
            labels_of.setdefault(f"{name}={text}", {})[row.label] = None
    together: dict[tuple[str, ...], list[str]] = {}
    for text, labels in labels_of.items():
        together.setdefault(tuple(labels), []).append(text)
    if together:
        each = (f"{', '.join(texts)} ({', '.join(labels)})" for labels, texts in together.items())
        yield f"Fixed: {'; '.join(each)}."


def _value(settings: Settings, name: str, row: Row) -> Any:
    return settings.get(_key(row), {}).get(name)


def _settings(study: Study) -> Settings:
    return {_triple(key): dict(line) for key, line in keyed(study.results.records).groupby(KEY).first().iterrows()}


def _triple(key: Any) -> tuple[str, str, str]:
    condition, label, config = key
    return condition, label, config


def _key(row: Row) -> tuple[str, str, str]:
    return row.condition, row.label, row.config


def _text(value: Any) -> str:
    return EMPTY if value is None or pd.isna(value) else value_text(value)
