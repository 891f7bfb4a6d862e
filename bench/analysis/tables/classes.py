"""The table "classes": a row for each class or label that a task reports, a column for each optimizer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from bench.analysis.format import marks, plain
from bench.analysis.render.table import EMPTY, Table
from bench.analysis.stats import Interval, mean_interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.store import selection
from bench.store.conditions import KEY, keyed, names, value_text

BY_CLASS = re.compile(r"test_(recall|f1)\.(.+)")
WORDS = {
    "recall": "Recall: share of the test examples of a class that are found",
    "f1": "F1: of the test examples, for each label by itself, at probability 0.5",
}


def tables(study: Study) -> list[Table]:
    """Return the table, or nothing where no task has reported scores by class (`report = ["per_class"]`)."""
    columns = [name for name in study.results.records.columns if BY_CLASS.fullmatch(name)]
    return [_table(study, columns)] if columns else []


def _table(study: Study, columns: list[str]) -> Table:
    captions, labels = study.captions, study.meta["labels"]
    axes = list(captions.varied)
    records = keyed(selection.reported(study.results.records))
    groups = dict(list(records[records["status"] == "done"].groupby(KEY, sort=False)))
    rows, numbers = [], []
    for chosen in _blocks(study):
        values = next(iter(chosen.values())).varied
        for column in columns:
            cells = {label: _measured(groups, row, column) for label, row in chosen.items()}
            # A class of another condition's task has no value here.
            if not any(cell.n for cell in cells.values()):
                continue
            kind, name = _parts(column)
            texts = [_cell(cells[label], chosen[label]) if label in cells else EMPTY for label in labels]
            rows.append([*(value_text(values[axis]) for axis in axes), name, *texts])
            for label, cell in cells.items():
                bounds = {f"{kind}_{part} [%]": getattr(cell, part) for part in ("mean", "low", "high")}
                numbers.append({**values, "class": name, "optimizer": label, "n": cell.n, **bounds})
    kinds = dict.fromkeys(_parts(column)[0] for column in columns)
    caption = [
        f"{'; '.join(WORDS[kind] for kind in kinds)}, in %. Mean over seeds \u00b1 half-width of the 95% Student-t "
        "interval, of the chosen configurations; nothing was chosen by these numbers.",
        *captions.closing(),
    ]
    heads = [*names(captions.varied), "class", *labels]
    frame = pd.DataFrame(numbers)
    title = f"{study.meta['title']}: by class"
    return Table(study.meta["name"], "classes", title, caption, heads, rows, [], frame, keys=len(axes))


def _blocks(study: Study) -> Iterator[dict[str, Row]]:
    """Yield the chosen rows of each condition, by label."""
    blocks: dict[str, dict[str, Row]] = {}
    for row in study.chosen:
        blocks.setdefault(row.condition, {})[row.label] = row
    yield from blocks.values()


def _measured(groups: Mapping[Any, pd.DataFrame], row: Row, column: str) -> Interval:
    runs = groups.get((row.condition, row.label, row.config))
    return mean_interval([] if runs is None else runs[column].astype(float).to_numpy()).within(0.0, 1.0).scaled(100)


def _cell(interval: Interval, row: Row) -> str:
    return plain(interval, ".1f") + marks(row) if interval.n else EMPTY


def _parts(column: str) -> tuple[str, str]:
    found = BY_CLASS.fullmatch(column)
    assert found
    return found[1], found[2]
