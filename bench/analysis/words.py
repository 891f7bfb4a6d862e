"""What every caption of an experiment's tables says: units, definitions, and where the numbers come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench.analysis.conditions import names, value_text, varied
from bench.analysis.render import EMPTY
from bench.analysis.stats import Interval
from bench.analysis.summary import Provenance, Row


class Words:
    """How this experiment's numbers are put into words: units, decimals and what the captions repeat."""

    def __init__(self, meta: Mapping[str, Any], source: Provenance) -> None:
        self.meta, self.source = meta, source
        self.metric, self.baseline = meta["metric"]["name"], meta["baseline"]
        self.scale, self.unit = float(meta["metric"]["scale"]), meta["metric"]["unit"]
        self.digits = 2 if self.scale > 1 else 4
        self.brackets = f" ({self.unit})" if self.unit else ""
        self.points = {"%": " (points)", "": ""}.get(self.unit, self.brackets)
        self.varied = varied(meta)

    def mean(self, interval: Interval) -> str:
        """Metric as mean ± half-width; the mean alone where there is no interval."""
        shown = interval.scaled(self.scale)
        if shown.n < 2:
            return EMPTY if shown.n == 0 else f"{shown.mean:z.{self.digits}f} (n=1)"
        return f"{shown.mean:z.{self.digits}f} ± {shown.half_width:.{self.digits}f}"

    def difference(self, row: Row) -> str:
        """Paired difference of the metric with its bounds, e.g. "+0.82 [+0.31, +1.33]"."""
        if row.difference is None or row.difference.difference.n == 0:
            return EMPTY
        shown = row.difference.difference.scaled(self.scale)
        mean, low, high = (f"{value:+z.{self.digits}f}" for value in (shown.mean, shown.low, shown.high))
        return f"{mean} [{low}, {high}]" if shown.n > 1 else f"{mean} (n=1)"

    def measured(self) -> str:
        """What the metric is and how its spread is given."""
        better = "higher" if self.meta["metric"]["higher_is_better"] else "lower"
        definition = self.meta["metric"]["definition"]
        return (
            f"Test {self.metric}{self.brackets} after the last epoch: {definition}; {better} is better. "
            "Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."
        )

    def within(self) -> str:
        """Said of every comparison where there are several conditions."""
        return " under the same condition" if self.varied else ""

    def chosen(self) -> str:
        """How swept values were chosen; nothing to say where nothing is swept."""
        if not self.meta["sweeps"]:
            return ""
        share = "" if "validation" in self.varied else f"{100 * self.meta['data']['validation']:.3g}% "
        held_out = f"({share}of the training data, held out)" if share else "(training data held out)"
        each = " for each condition by itself," if self.varied else ""
        return f"Swept values were chosen{each} by mean validation {self.metric} {held_out}, never by the test set."

    def origin(self) -> str:
        """Task, data, conditions, seeds, hardware, versions and commits behind the numbers."""
        found = self.source
        made = (
            f"Hardware: {'; '.join(found.devices)}. torch {', '.join(found.torch)}, "
            f"Python {', '.join(found.python)}, commit {', '.join(found.commits) or 'unknown'}."
            if found.devices
            else "No run has finished."
        )
        data = " and ".join(self._data())
        seeds = f"{_plural('seed', len(self.meta['seeds']))} {', '.join(map(str, self.meta['seeds']))}"
        task, model = (_plural(what, len(self.varied.get(what.lower(), []))) for what in ("Task", "model"))
        subject = f"{task} {self.meta['task']}{data and f' with {data}'}, {model} {self.meta['model']}, {seeds}."
        return " ".join(filter(None, (subject, self._conditions(), made)))

    def caution(self) -> str:
        """That the data are not those they are named after, if so."""
        return self.source.caution

    def _data(self) -> Iterator[str]:
        """What was done to the data under all conditions alike."""
        settings = self.meta["data"]
        size, noise = settings.get("train_size"), settings.get("label_noise")
        if size and "train_size" not in self.varied:
            yield f"{size:,} training examples"
        if noise and "label_noise" not in self.varied:
            yield f"{100 * noise:.3g}% of the training labels replaced"

    def _conditions(self) -> str:
        """What is varied, as a sentence: "Conditions: label noise 0.2, 0.4, 0.6"."""
        axes = [
            f"{name} {', '.join(map(value_text, values))}"
            for name, values in zip(names(self.varied), self.varied.values(), strict=True)
        ]
        every = "every combination of " if len(axes) > 1 else ""
        return f"Conditions: {every}{' and '.join(axes)}." if axes else ""


def _plural(noun: str, count: int) -> str:
    return noun + "s" * (count > 1)
