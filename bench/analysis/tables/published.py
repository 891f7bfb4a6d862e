"""Tables laid out as a paper's are, its published numbers beside ours and a verdict on each.

The numbers are in published.csv, each with its source and how it was checked: "full text", "repository", or "secondary
note" where only others' accounts of it were seen. Its columns our_* name the same setting in the words of this suite.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from bench.analysis.captions import enumerated
from bench.analysis.format import marks, plain
from bench.analysis.render.table import DAGGER, EMPTY, Table
from bench.analysis.stats import FEWEST, Interval
from bench.analysis.study import Study
from bench.analysis.summary import Row
from bench.analysis.tables import footnotes
from bench.core.errors import BadValue, counted, nearest
from bench.store.conditions import KEY, keyed, value_text
from bench.store.published import read_published

if TYPE_CHECKING:
    from bench.store.records import Results

PUBLISHED = Path(__file__).with_name("published.csv")
REPRODUCED, DIFFERS, NOT_RUN, OTHER = "reproduced", "differs", "not run", "other quantity"
TOO_FEW, ALIKE = f"fewer than {FEWEST} runs", "all runs equal"
PLACE = ["dataset", "model", "setting", "epochs"]
BETTER_OF_TWO = "better of 1x and 2x epochs, mean"
BEST_EPOCH = "best epoch on the test set"
PLAIN = {"label_noise": 0.0, "train_share": 1.0, "task.mixup": 0.0}  # unless a cell asks for something else


@dataclass(frozen=True)
class Cell:
    """One published number and ours.

    Attributes:
        published: its line of published.csv.
        row: our row of the same setting, None if there is none.
        ours: its interval, in the unit of the published number.
        verdict: "reproduced" if the intervals overlap, "differs" if they do not; "not run"; "fewer than 4 runs", and
            "all runs equal", of which no interval follows; "other quantity" where they report what we do not, such as
            the best epoch on the test set.
    """

    published: Mapping[str, Any]
    row: Row | None
    ours: Interval
    verdict: str


@cache
def published() -> pd.DataFrame:
    """Return every published number, with text columns as text."""
    return _frame(read_published(PUBLISHED))


def _frame(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    # A number that is not given is NaN; an empty text stays "", since settings are compared as text.
    frame = pd.DataFrame(lines)
    return frame.assign(**{name: pd.to_numeric(frame[name]) for name in ("epochs", "value", "n")})


def styles() -> list[str]:
    """Return the names of the published tables that the suite brings."""
    return list(dict.fromkeys(published()["style"]))


def own_styles(study: Study) -> list[str]:
    """Return the styles of the tables that the experiment's file names."""
    return list(dict.fromkeys(line["style"] for line in study.meta.get("published", [])))


def check_style(study: Study, name: str) -> None:
    """Raise BadValue, with the nearest valid name, if there is no such style."""
    known = [*styles(), *own_styles(study)]
    if name not in known:
        raise BadValue(f"--style {name}", [f"no such style; {nearest(name, known)}"])


def cells(study: Study, style: str) -> list[Cell]:
    """Return every number published under a style, with our row of the same data, model, setting and length.

    Ours is a chosen configuration, trained on all of the training data that is not held out. Where theirs is the better
    of a schedule and one of twice the length, so is ours, by validation. Raises BadValue for an unknown style.
    """
    check_style(study, style)
    results = study.results
    best = [row for row in study.chosen if row.done]
    # The last one counts: after tuning that is the row of `tried`, since final runs may train on validation data, too.
    held_out = {(row.condition, row.label): row.val_metric.mean for row in [*best, *study.tried] if row.chosen}
    settings = _settings(results)
    own = style in own_styles(study)
    known = _frame(study.meta["published"]) if own else published()
    # The papers' numbers are in percent, whatever unit our metric is shown in; a user's own are in that unit.
    scale = results.meta["metric"]["scale"] if own else 100
    lines: list[Any] = known[known["style"] == style].to_dict("records")
    compared = []
    for line in lines:
        candidates = [row for row in best if _same(line, row, settings[row.condition, row.label, row.config])]
        # Several rows may have the setting. Validation decides which is shown, never a number of the test set.
        row = max(candidates, key=lambda one: _rank(results, held_out, one), default=None)
        ours = _measured(results, line, row, scale)
        compared.append(Cell(line, row, ours, _verdict(line, ours)))
    return compared


def _settings(results: Results) -> dict[Any, dict[str, Any]]:
    """Return the settings that every configuration was run with, by (condition, label, config)."""
    return {key: dict(line) for key, line in keyed(results.records).groupby(KEY, sort=False).first().iterrows()}


def _same(line: Mapping[str, Any], row: Row, settings: Mapping[str, Any]) -> bool:
    """Return whether a row has the setting of a published number."""
    asked = dict(part.split("=") for part in line["our_settings"].split("; ") if part)
    named = {"task": "our_task", "model": "our_model", "method": "our_method", "base": "our_base"}
    # The better of two schedules may be the longer one, theirs as well as ours.
    lengths = {line["epochs"], (2 if line["reported"] == BETTER_OF_TWO else 1) * line["epochs"]}
    return (
        bool(line["our_task"])
        and all(_text(settings.get(column)) == line[ours] for column, ours in named.items())
        and all(_equal(settings.get(key, PLAIN.get(key)), value) for key, value in asked.items())
        # What the cell does not ask for must be plain: no replaced labels, all data, no mixup.
        and all(_equal(settings.get(key), str(value)) for key, value in PLAIN.items() if key not in asked)
        and ("train_size" in asked or _text(settings.get("train_size")) == "")
        # A number published without its epochs fits a run of any length.
        and (pd.isna(line["epochs"]) or row.epochs in lengths)
    )


def _text(value: Any) -> str:
    return "" if value is None or pd.isna(value) else value_text(value)


def _equal(value: Any, asked: str) -> bool:
    """Return whether two settings are equal, numbers by value and all else as text; nothing means the plain setting."""
    if _text(value) == "":
        return asked in {str(plain) for plain in PLAIN.values()}
    try:
        return float(value) == float(asked)
    except ValueError:
        return str(value) == asked


def _rank(results: Results, held_out: Mapping[tuple[str, str], float], row: Row) -> float:
    value = held_out.get((row.condition, row.label), np.nan)
    better = value if results.meta["metric"]["higher_is_better"] else -value
    # A row without a validation score comes after all that have one.
    return -np.inf if np.isnan(better) else better


def _measured(results: Results, line: Mapping[str, Any], row: Row | None, scale: float) -> Interval:
    """Return our number in the published unit: errors and accuracies in %, differences of scores times 100."""
    if row is None:
        return Interval(0, np.nan, np.nan, np.nan)
    if "difference" in line["metric"]:
        difference = row.difference.difference if row.difference else Interval(0, np.nan, np.nan, np.nan)
        return difference.scaled(results.meta["metric"]["scale"])
    ours = row.test_metric.scaled(scale)
    # 100 minus accuracy turns the interval round: the lowest error is that of the highest accuracy.
    return Interval(ours.n, 100 - ours.mean, 100 - ours.high, 100 - ours.low) if "error" in line["metric"] else ours


def _verdict(line: Mapping[str, Any], ours: Interval) -> str:
    if ours.n == 0:
        return NOT_RUN
    if line["reported"] == BEST_EPOCH:
        return OTHER
    if ours.n < FEWEST:
        return TOO_FEW
    if ours.alike:
        return ALIKE
    # A number published without an interval is a point, which ours has to hold.
    half = float(line["ci95"].removeprefix("<")) if line["ci95"] else 0.0
    overlap = ours.low <= line["value"] + half and ours.high >= line["value"] - half
    return REPRODUCED if overlap else DIFFERS


# ---- the table -----------------------------------------------------------------------------------------------


def own_tables(study: Study) -> list[Table]:
    """Return the tables that the experiment's file names, each beside our numbers."""
    # By a name that no other table has.
    return [replace(table(study, style), name=f"published-{style}") for style in own_styles(study)]


def table(study: Study, style: str) -> Table:
    """Return the published table with our results: a row per data set, model and setting, three columns per optimizer.

    Raises BadValue for an unknown style.
    """
    compared, captions = cells(study, style), study.captions
    optimizers = list(dict.fromkeys(cell.published["optimizer"] for cell in compared))
    places = [name for name in PLACE[1:] if any(_text(cell.published[name]) for cell in compared)]
    rows: dict[tuple[str, ...], dict[str, Cell]] = {}
    for cell in compared:
        place = tuple(_text(cell.published[name]) or EMPTY for name in ("dataset", *places))
        rows.setdefault(place, {})[cell.published["optimizer"]] = cell
    # The lines of a data set stand together, in the published order: `sorted` is stable.
    order = {dataset: number for number, dataset in enumerate(dict.fromkeys(place[0] for place in rows))}
    text = [
        [*place, *(part for optimizer in optimizers for part in _three(rows[place].get(optimizer)))]
        for place in sorted(rows, key=lambda place: order[place[0]])
    ]
    columns = ["data", *places]
    columns += [name for optimizer in optimizers for name in (f"{optimizer}, here", "published", "verdict")]
    first = compared[0].published
    source = ", ".join([first["source"], first["table"]][: 2 if first["table"] else 1])
    # What ends in the name of a file needs no comma behind it.
    title = f"{source}{',' * bool(first['table'])} beside {captions.meta['title']}"
    caption = [*_caption(compared), *captions.closing()]
    return Table(
        captions.meta["name"], style, title, caption, columns, text, list(_notes(compared)), _numbers(compared), keys=1
    )


def _three(cell: Cell | None) -> list[str]:
    if cell is None:
        return [EMPTY] * 3
    line, ours, decimals = cell.published, cell.ours, _decimals(cell.published)
    mark = marks(cell.row) if cell.row else ""
    here = plain(ours, f".{decimals}f")
    width = f" ± {line['ci95']}" if line["ci95"] else ""
    return [here + mark, f"{line['value']:.{decimals - 1}f}{width}", cell.verdict]


def _decimals(line: Mapping[str, Any]) -> int:
    """Return the number of decimals: one more than published, at least two."""
    exact = f"{line['value']:g}"
    given = max(len(exact.partition(".")[2]), len(line["ci95"].partition(".")[2]), 1)
    return given + 1


def _caption(compared: Sequence[Cell]) -> Iterator[str]:
    metrics = enumerated(list(dict.fromkeys(cell.published["metric"] for cell in compared)))
    reported: dict[str, dict[str, None]] = {}
    for cell in compared:
        if cell.published["reported"]:
            reported.setdefault(cell.published["reported"], {})[cell.published["optimizer"]] = None
    what = "; ".join(f"{enumerated(list(labels))}: {how}" for how, labels in reported.items())
    yield f"{metrics.capitalize()}, mean ± half-width of the 95% interval; here after the last epoch, over seeds."
    if what:
        yield f"As published: {what}."
    yield (
        f"Verdict: {REPRODUCED} if the two intervals overlap (or ours holds a number published without one), {DIFFERS} "
        f"if not; of fewer than {FEWEST} runs none is given. Data, model, augmentation, label noise and, where "
        "they are published, epochs agree; the card that opens the experiment's file says what else does."
    )


def _notes(compared: Sequence[Cell]) -> Iterator[str]:
    said = {name: name for name in (REPRODUCED, DIFFERS, NOT_RUN, TOO_FEW, ALIKE, OTHER)} | {DIFFERS: "differ"}
    tally = {words: sum(cell.verdict == verdict for cell in compared) for verdict, words in said.items()}
    yield f"Of {len(compared)} numbers: {', '.join(f'{count} {words}' for words, count in tally.items() if count)}."
    if any(cell.published["ci95"].startswith("<") for cell in compared):
        yield "Of an interval published as below a bound, the bound is taken."
    if any(cell.verdict == OTHER for cell in compared):
        yield (
            f"Other quantity: the paper reports the {BEST_EPOCH}, so its epoch was chosen by test data. Our numbers "
            "are those of the last epoch."
        )
    if any(cell.published["verified"] == "secondary note" for cell in compared):
        yield "The published numbers are as others tell them; the paper itself was not seen."
    short = [cell.row for cell in compared if cell.row and not cell.row.complete]
    if short:
        each = dict.fromkeys(f"{row.name} ({row.done} of {counted(row.planned, 'run')})" for row in short)
        yield f"{DAGGER} not all runs finished: {', '.join(each)}."
    # By identity: a row stands beside several published numbers.
    yield from footnotes.degenerate(list({id(cell.row): cell.row for cell in compared if cell.row}.values()))


def _numbers(compared: Sequence[Cell]) -> pd.DataFrame:
    data = [
        {
            **{name: cell.published[name] for name in ("style", *PLACE, "optimizer", "metric", "value", "ci95")},
            "published_n": cell.published["n"],
            "our_optimizer": cell.row.label if cell.row else "",
            "our_config": cell.row.config if cell.row else "",
            "our_n": cell.ours.n,
            **{f"our_{part}": getattr(cell.ours, part) for part in ("mean", "low", "high")},
            "verdict": cell.verdict,
            **{name: cell.published[name] for name in ("source", "table", "verified")},
        }
        for cell in compared
    ]
    return pd.DataFrame(data)
