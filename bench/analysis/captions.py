"""Sentences that every caption of an experiment's tables has: units, definitions, and the origin of the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bench.analysis import bounds
from bench.analysis.format import plain, signed_bounds
from bench.analysis.provenance import Provenance, title
from bench.analysis.render.table import EMPTY
from bench.analysis.stats import Interval
from bench.analysis.summary import Row
from bench.core.errors import counted
from bench.core.meta import Meta, MetricMeta, SuiteMeta
from bench.store.conditions import names, value_text, varied
from bench.store.selection import phased

NATS = "cross-entropy (nats)"
# Captions name these beside the data, so the sentence on conditions does not repeat their values.
NAMED = ("task", "model")


class Captions:
    """Units, decimals and repeated sentences of an experiment's captions."""

    def __init__(self, meta: Meta, source: Provenance) -> None:
        self.meta, self.source = meta, source
        self.metric, self.baseline = meta["metric"]["name"], meta["baseline"]
        self.scale, self.unit = float(meta["metric"]["scale"]), meta["metric"]["unit"]
        # Two decimals of a percentage are as fine as four of a share.
        self.digits = 2 if self.scale > 1 else 4
        self.brackets = f" ({self.unit})" if self.unit else ""
        # Percentages differ by points: "2% better" could be read as a ratio.
        self.points = {"%": " (points)", "": ""}.get(self.unit, self.brackets)
        self.differences_in = {"%": " points", "": ""}.get(self.unit, f" {self.unit}")
        # Without a unit the factor itself says what the shown numbers are multiplied by.
        self.times = self.brackets or (f" (times {self.scale:g})" if self.scale != 1 else "")
        self.bounds = bounds.of_metric(meta["metric"])
        self.better = "higher" if meta["metric"]["higher_is_better"] else "lower"
        self.varied = varied(meta)
        self.true_labels = ", true labels" if relabelled(meta) else ""
        self.tasks = meta.get("tasks") or {}
        self.notes = list(dict.fromkeys(meta.get("notes") or []))

    def mean(self, interval: Interval) -> str:
        """Return the metric as mean ± half-width, or the mean alone if there is no interval."""
        # One run has no interval, and neither have equal runs: `plain` marks the latter, so the former is marked here.
        return plain(interval.scaled(self.scale), f".{self.digits}f") + " (n=1)" * (interval.n == 1)

    def difference(self, row: Row) -> str:
        """Return the paired difference of the metric with its bounds, e.g. "+0.82 [+0.31, +1.33]"."""
        if row.difference is None or row.difference.difference.n == 0:
            return EMPTY
        return self.signed(row.difference.difference)

    def signed(self, difference: Interval) -> str:
        """Return a difference with its bounds, e.g. "+0.82 [+0.31, +1.33]"."""
        if difference.n < 2:
            return self.signed_mean(difference)
        return f"{self.signed_mean(difference)} {self.signed_bounds(difference)}"

    def signed_mean(self, difference: Interval) -> str:
        """Return the mean of a difference, e.g. "+0.82"."""
        if difference.n == 0:
            return EMPTY
        return self._signed(difference.mean) + (" (n=1)" if difference.n == 1 else "")

    def signed_bounds(self, difference: Interval) -> str:
        """Return the bounds of a difference, e.g. "[+0.31, +1.33]"."""
        return signed_bounds(difference.scaled(self.scale), f".{self.digits}f")

    def _signed(self, value: float) -> str:
        # "z" writes what rounds to 0 as +0.00, never as -0.00.
        return f"{value * self.scale:+z.{self.digits}f}"

    def measured(self, split: str = "Test") -> str:
        """Return the definition of the metric and of its spread."""
        definition = self.meta["metric"]["definition"]
        return (
            f"{split} {self.metric}{self.brackets} after the last epoch: {definition}; {self.better} is better. "
            "Mean over seeds ± half-width of the 95% Student-t interval; n: finished runs."
        )

    def gap(self) -> str:
        """Return the definition of the generalization gap: positive where the test set is worse, for every metric."""
        about = "(true labels, no augmentation)" if self.true_labels else "(no augmentation)"
        train = f"train {self.metric} {about}"
        if self.meta["metric"]["higher_is_better"]:
            return f"Gap: {train} minus test."
        return f"Gap: test {self.metric} minus {train}, so that positive is worse on the test set, as everywhere."

    def closing(self) -> list[str]:
        """Return the sentences that end every caption: the choice, notes of tasks and models, the origin."""
        return [sentence for sentence in (self.chosen(), *self.notes, self.origin(), self.caution()) if sentence]

    def cut(self) -> list[str]:
        """Return the footnote on truncated texts, if any were truncated."""
        return [self.source.cut] if self.source.cut else []

    def titles(self, tasks: Iterable[str]) -> str:
        return ", ".join(title(self.meta, task) for task in tasks)

    def reported(self, task: str) -> dict[str, str]:
        """Return the scores of a task that are shown: columns of records with their names."""
        of_metric = {f"test_{self.meta['metric']['key']}": self.metric}
        # A task without scores of its own, and one of records that name no tasks, shows the metric.
        return (self.tasks[task]["reported"] if task in self.tasks else {}) or of_metric

    def score_of(self, task: str, column: str) -> str:
        """Return the name of a task's score: "MRPC, F1", or "CIFAR-10" if the metric is the task's only score."""
        score, only = self.reported(task)[column], len(self.reported(task)) == 1
        return title(self.meta, task) if only and score == self.metric else f"{title(self.meta, task)}, {score}"

    def suite(self, tasks: Iterable[str]) -> SuiteMeta | None:
        """Return the benchmark that all of these tasks belong to, or None if there is no such benchmark."""
        first, *others = (self.tasks[task].get("suite") if task in self.tasks else None for task in tasks)
        return first if all(other == first for other in others) else None

    def losses(self) -> dict[str, str]:
        """Return every kind of loss with the titles of the tasks that have it; {} if all are cross-entropy."""
        tasks_of: dict[str, list[str]] = {}
        for task, about in self.tasks.items():
            # A task that names no loss has cross-entropy.
            tasks_of.setdefault(about.get("loss") or NATS, []).append(task)
        return {} if set(tasks_of) <= {NATS} else {loss: self.titles(tasks) for loss, tasks in tasks_of.items()}

    def within(self) -> str:
        """Return the words that follow every comparison if there are several conditions."""
        return " under the same condition" if self.varied else ""

    def chosen(self) -> str:
        """Return how swept values were chosen, or nothing if nothing is swept."""
        if not self.meta["sweeps"]:
            return ""
        # A varied share has no single value to print; the name of each condition has it.
        share = "" if "validation" in self.varied else f"{100 * self.meta['data']['validation']:.3g}% "
        held_out = f"({share}of the training data, held out)" if share else "(training data held out)"
        each = " for each condition by itself," if self.varied else ""
        if phased(self.meta):
            # Before protocol 2 validation was one and the same for all seeds.
            if self.meta["protocol"] > 1 and len(phased(self.meta)["tune"]["seeds"]) > 1:
                # [:-1] takes off the closing bracket, which comes back after the addition.
                held_out = f"{held_out[:-1]} anew for each seed)"
            return _tuned(self.meta, self.metric, held_out, each)
        return f"Swept values were chosen{each} by mean validation {self.metric} {held_out}, never by the test set."

    def origin(self) -> str:
        """Return the task, data, conditions, seeds, hardware, versions and commits behind the numbers."""
        source = self.source
        made = (
            f"Hardware: {'; '.join(source.devices)}. torch {', '.join(source.torch)}, "
            f"Python {', '.join(source.python)}, commit {', '.join(source.commits) or 'unknown'}."
            if source.devices
            else "No run has finished."
        )
        data = " and ".join(self._data())
        seeds = f"{_plural('seed', len(self.meta['seeds']))} {', '.join(map(str, self.meta['seeds']))}"
        task, model = (_plural(what, len(self.varied.get(what.lower(), []))) for what in ("Task", "model"))
        subject = f"{task} {self.meta['task']}{data and f' with {data}'}, {model} {self.meta['model']}, {seeds}."
        return " ".join(filter(None, (subject, self._conditions(), made)))

    def subject(self) -> str:
        """Return task, data and model as part of a sentence.

        Example: "digits with 20% of the training labels replaced (resnet8)".
        """
        tasks = [title(self.meta, task) for task in self.varied.get("task") or [self.meta["task"]]]
        models = self.varied.get("model") or [self.meta["model"]]
        data = " and ".join(self._data())
        others = zip(names(self.varied), self.varied.items(), strict=True)
        axes = [f"{len(values)} values of {name}" for name, (column, values) in others if column not in NAMED]
        across = f", over {enumerated(axes)}" if axes else ""
        return f"{enumerated(tasks)}{data and f' with {data}'} ({enumerated(models)}{across})"

    def caution(self) -> str:
        """Return the warning that the data are not those they are named after, or "" if they are."""
        return self.source.caution

    def _data(self) -> Iterator[str]:
        """Yield the changes made to the data under all conditions alike."""
        settings = self.meta["data"]
        size, share, noise = settings.get("train_size"), settings.get("train_share"), settings.get("label_noise")
        if size and "train_size" not in self.varied:
            yield f"{size:,} training examples"
        if share and share < 1 and "train_share" not in self.varied:
            yield f"{100 * share:.3g}% of the training examples"
        if noise and "label_noise" not in self.varied:
            yield f"{100 * noise:.3g}% of the training labels replaced"

    def _conditions(self) -> str:
        """Return the varied settings as a sentence: "Conditions: label noise 0.2, 0.4, 0.6".

        The names of varied tasks and models stand elsewhere in the caption.
        """
        axes = [
            f"the {column}s" if column in NAMED else f"{name} {', '.join(map(value_text, values))}"
            for name, (column, values) in zip(names(self.varied), self.varied.items(), strict=True)
        ]
        every = "every combination of " if len(axes) > 1 else ""
        return f"Conditions: {every}{' and '.join(axes)}." if axes else ""


def _tuned(meta: Meta, metric: str, held_out: str, each: str) -> str:
    """Return the sentence of a caption about the choice.

    Args:
        held_out: the held-out share of the training data, in brackets.
        each: ", for each condition by itself" or "".
    """
    phases = phased(meta)
    tune, final = phases["tune"], phases["final"]
    counts = sorted(set(tune["trials"].values()))
    # With a budget of passes an optimizer with dearer steps has fewer trials, so a range may be needed.
    trials = counted(counts[0], "trial") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} trials"
    budget = f"{trials} for every optimizer" if tune["budget"] == "trials" else f"{trials}, of equal passes in all"
    refit = ", trained on training and validation data together" if final["refit"] else ""
    return (
        f"Hyperparameters were chosen{each} by mean validation {metric} {held_out} over {len(tune['seeds'])} "
        f"{'seeds' if len(tune['seeds']) > 1 else 'seed'} ({tune['search']} search, {budget}), never by the test set; "
        f"the numbers are of what was chosen, on fresh seeds{refit}."
    )


def gap_of(metric: MetricMeta) -> str:
    """Return the generalization gap of a metric as a difference, in which positive is worse on the test set."""
    sides = ("train", "test") if metric["higher_is_better"] else ("test", "train")
    return f"{' − '.join(sides)} {metric['name']}"


def relabelled(meta: Meta) -> bool:
    """Return whether any training labels were replaced, so that captions must say which labels they mean."""
    # Replaced labels are set for the whole experiment or vary between conditions.
    return any([meta["data"].get("label_noise"), *varied(meta).get("label_noise", [])])


def _plural(noun: str, count: int) -> str:
    return noun + "s" * (count > 1)


def enumerated(parts: Sequence[str]) -> str:
    """Return the parts as a sentence lists them: "a", "a and b", "a, b and c"."""
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last
