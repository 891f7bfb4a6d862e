"""Published pairs of SAM and what it wraps, from published.csv, as differences in points."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.analysis.stats import Interval
from bench.analysis.tables import published

PLACE = ["style", "source", "table", "dataset", "model", "setting", "epochs", "reported_on"]
DIFFERENCE = re.compile(r"SAM - (\w+)")
SAM = re.compile(r"SAM(?:\((\w+)\))?")
BASES = ("SGD", "Adam", "AdamW")


@dataclass(frozen=True)
class Pair:
    """A published difference of SAM to its base, in points; positive where SAM is better.

    Attributes:
        source: paper and table.
        verified: how the numbers were checked: "full text", "repository" or "secondary note".
        difference: NaN bounds where no interval was published; those of two means are put together as of independent
            samples, since the seeds' pairs are not published.
    """

    source: str
    dataset: str
    model: str
    setting: str
    base: str
    difference: Interval
    verified: str


def pairs() -> list[Pair]:
    """Return every published pair, in the order of published.csv."""
    return list(_pairs())


def _pairs() -> Iterator[Pair]:
    lines = published.published().assign(reported_on=lambda all_: all_["metric"])
    for _, group in lines.groupby(PLACE, sort=False, dropna=False):
        sides: list[Any] = group.to_dict("records")
        for line in sides:
            if told := DIFFERENCE.fullmatch(line["optimizer"]):
                yield _pair(line, told[1], Interval(1, float(line["value"]), np.nan, np.nan))
            elif found := SAM.fullmatch(line["optimizer"]):
                # Without a name in brackets the paper's only plain base in this place is meant.
                wanted = [found[1]] if found[1] else list(BASES)
                theirs = next((one for name in wanted for one in sides if one["optimizer"] == name), None)
                if theirs is not None:
                    yield _pair(line, theirs["optimizer"], _difference(line, theirs))


def _pair(line: dict[str, Any], base: str, difference: Interval) -> Pair:
    source = f"{line['source']}, {line['table']}"
    setting = ", ".join(filter(None, (line["setting"], _epochs(line["epochs"]))))
    return Pair(source, line["dataset"], line["model"], setting, base, difference, line["verified"])


def _epochs(epochs: float) -> str:
    return "" if np.isnan(epochs) else f"{epochs:g} epochs"


def _difference(ours: dict[str, Any], theirs: dict[str, Any]) -> Interval:
    sign = -1.0 if "error" in ours["metric"] else 1.0
    mean = sign * (float(ours["value"]) - float(theirs["value"]))
    widths = [one["ci95"].removeprefix("<") for one in (ours, theirs)]
    half = math.hypot(*map(float, widths)) if all(widths) else np.nan
    n = int(min(ours["n"], theirs["n"])) if ours["n"] == ours["n"] and theirs["n"] == theirs["n"] else 1
    return Interval(n, mean, mean - half, mean + half)
