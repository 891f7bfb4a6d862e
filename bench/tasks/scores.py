"""Scores that a task of a user's own files may choose by name, as scikit-learn defines them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError, nearest
from bench.tasks.base import ACCURACY, Metric, Task

Arrays = tuple[np.ndarray[Any, np.dtype[np.float64]], np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class Score:
    """A metric, and how it is computed.

    Attributes:
        of: gives it from true values (N,) and outputs in double precision: of classes their probabilities
            (N, classes), of numbers the predicted ones (N,), standardised as the model has them. Of several labels both
            are (N, labels), and each label has a probability of its own.
        in_units: it is a number in the units of what is predicted.
    """

    metric: Metric
    of: Callable[[Tensor, Tensor], float]
    in_units: bool = False


def _accuracy(true: Tensor, probabilities: Tensor) -> float:
    return (probabilities.argmax(dim=1) == true).double().mean().item()


def _balanced_accuracy(true: Tensor, probabilities: Tensor) -> float:
    # scikit-learn takes seconds to import, so only tasks that need it pay for it.
    from sklearn.metrics import recall_score

    # Over the classes that there are; `balanced_accuracy_score` is the same, with a warning where others are predicted.
    labels, found = _arrays(true, probabilities.argmax(dim=1))
    return float(recall_score(labels, found, labels=np.unique(labels), average="macro", zero_division=0.0))


def _macro_f1(true: Tensor, probabilities: Tensor) -> float:
    from sklearn.metrics import f1_score

    labels, found = _arrays(true, probabilities.argmax(dim=1))
    return float(f1_score(labels, found, average="macro", zero_division=0.0))


def _auroc(true: Tensor, probabilities: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return _one_against_rest(roc_auc_score, true, probabilities)


def _average_precision(true: Tensor, probabilities: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return _one_against_rest(average_precision_score, true, probabilities)


def _one_against_rest(score: Callable[..., Any], true: Tensor, probabilities: Tensor) -> float:
    """Return the mean over classes that some examples have, and some have not; of two classes that of the second.

    NaN where there is none, since all examples are of one class, or where a run has diverged.
    """
    number = probabilities.shape[1]
    asked = slice(1, 2) if number == 2 else slice(None)
    return _over_labels(score, F.one_hot(true.long(), number)[:, asked], probabilities[:, asked])


def _arrays(true: Tensor, outputs: Tensor) -> Arrays:
    return true.cpu().numpy(), outputs.double().cpu().numpy()


def _r2(true: Tensor, predicted: Tensor) -> float:
    # 1 - (sum of squared errors) / (sum of squared distances from the mean).
    spread = (true - true.mean()).square().sum().item()
    return 1 - (predicted - true).square().sum().item() / spread if spread else 0.0


def _mae(true: Tensor, predicted: Tensor) -> float:
    return (predicted - true).abs().mean().item()


def _rmse(true: Tensor, predicted: Tensor) -> float:
    return (predicted - true).square().mean().sqrt().item()


def _share(key: str, name: str, definition: str) -> Metric:
    return Metric(key, name, "%", 100.0, True, definition, 0.0, 1.0)


def _labels_right(true: Tensor, probabilities: Tensor) -> float:
    return ((probabilities >= 0.5) == (true > 0)).double().mean().item()


def _f1(average: Literal["macro", "micro"]) -> Callable[[Tensor, Tensor], float]:
    def score(true: Tensor, probabilities: Tensor) -> float:
        from sklearn.metrics import f1_score

        labels, found = _arrays(true, probabilities >= 0.5)
        return float(f1_score(labels, found, average=average, zero_division=0.0))

    return score


def _labels_auroc(true: Tensor, probabilities: Tensor) -> float:
    from sklearn.metrics import roc_auc_score

    return _over_labels(roc_auc_score, true, probabilities)


def _labels_average_precision(true: Tensor, probabilities: Tensor) -> float:
    from sklearn.metrics import average_precision_score

    return _over_labels(average_precision_score, true, probabilities)


def _over_labels(score: Callable[..., Any], true: Tensor, probabilities: Tensor) -> float:
    """Return the mean over labels that some examples have, and some have not; NaN as `_one_against_rest`."""
    labels, shares = _arrays(true, probabilities)
    asked = [number for number in range(labels.shape[1]) if 0 < labels[:, number].sum() < len(labels)]
    if not asked or not np.isfinite(shares).all():
        return float("nan")
    return float(np.mean([score(labels[:, number], shares[:, number]) for number in asked]))


AGAINST_REST = "mean over classes of each against the rest (of two classes that of the second), by probability"
CLASSES: dict[str, Score] = {
    "accuracy": Score(ACCURACY, _accuracy),
    "balanced_accuracy": Score(
        _share("balanced_acc", "balanced accuracy", "mean over classes of the share of its examples that are found"),
        _balanced_accuracy,
    ),
    "macro_f1": Score(_share("macro_f1", "macro F1", "unweighted mean over classes of their F1 scores"), _macro_f1),
    "auroc": Score(_share("auroc", "AUROC", f"area under the ROC curve, {AGAINST_REST}"), _auroc),
    "average_precision": Score(
        _share("avg_precision", "average precision", f"area under the precision-recall curve, {AGAINST_REST}"),
        _average_precision,
    ),
}
LABELS: dict[str, Score] = {
    "macro_f1": Score(
        _share("macro_f1", "macro F1", "unweighted mean over labels of their F1 scores, at probability 0.5"),
        _f1("macro"),
    ),
    "micro_f1": Score(_share("micro_f1", "micro F1", "F1 score over all labels of all examples, at 0.5"), _f1("micro")),
    "accuracy": Score(
        _share("label_acc", "label accuracy", "share of all labels of all examples that are right, at probability 0.5"),
        _labels_right,
    ),
    "auroc": Score(_share("auroc", "AUROC", "mean over labels of the area under the ROC curve"), _labels_auroc),
    "average_precision": Score(
        _share("avg_precision", "average precision", "mean over labels of the area under the precision-recall curve"),
        _labels_average_precision,
    ),
}
NUMBERS: dict[str, Score] = {
    "r2": Score(
        Metric(
            "r2",
            "R2",
            "",
            1.0,
            True,
            "1 minus the squared error as a share of that of always guessing the split's mean",
            highest=1.0,
        ),
        _r2,
    ),
    "mae": Score(
        Metric("mae", "mean absolute error", "", 1.0, False, "mean absolute error, in units of the target", lowest=0.0),
        _mae,
        in_units=True,
    ),
    "rmse": Score(
        Metric("rmse", "RMSE", "", 1.0, False, "root of the mean squared error, in units of the target", lowest=0.0),
        _rmse,
        in_units=True,
    ),
}
ScoreName = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "micro_f1", "auroc", "average_precision", "r2", "mae", "rmse"
]  # fmt: skip
ReportName = ScoreName | Literal["per_class"]
PER_CLASS = "per_class"
ClassWeights = Literal["none", "balanced"]
WEIGHED = "cross-entropy (nats), every class weighing the same"


class Scored(Task):
    """A task whose metric, further scores and class weights its settings name; for subclasses of a user's own files.

    Attributes:
        unit: what 1 is, of the numbers that the model predicts, in the units of the data.
        class_names: of the classes, or of the labels, in the order of the model's outputs. Default: their numbers.
    """

    unit = 1.0
    class_names: Sequence[str] = ()
    per_class = False
    _weights: Tensor | None = None

    def choose(
        self, metric: ScoreName | None, report: list[ReportName], *, where: str, regression: bool = False
    ) -> None:
        """Set what the task is scored by.

        Args:
            metric: what choices and comparisons are made by. Default: accuracy, of several labels macro F1, of numbers
                R2.
            report: further scores, recorded as val_<key> and test_<key>; no choice is made by them. "per_class" is the
                recall of every class, of several labels the F1 score of each.
            where: the data, for messages.

        Raises:
            BenchError: a score is one of classes where numbers are predicted, or the other way round.
        """
        known = NUMBERS if regression else LABELS if self.multi_label else CLASSES
        for setting, name in (("metric", metric), *(("report", name) for name in report)):
            by_class = (setting, name) == ("report", PER_CLASS) and not regression
            if name is not None and name not in known and not by_class:
                kind = "numbers" if regression else "several labels" if self.multi_label else "classes"
                raise BenchError(f'{where}: task.{setting}: "{name}" is no score of {kind}; {nearest(name, known)}')
        self.scored = next(iter(known.values())) if metric is None else known[metric]
        self.metric = self.scored.metric
        self.per_class = PER_CLASS in report
        named = (known[name] for name in dict.fromkeys(report) if name != PER_CLASS)
        self.further = [score for score in named if score is not self.scored]

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        return self._value(self.scored, *self._compared(outputs, targets))

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        if not self.further and not self.per_class:
            return {}
        compared = self._compared(outputs, targets)
        measured = {score.metric.key: self._value(score, *compared) for score in self.further}
        return measured | (self._by_class(*compared) if self.per_class else {})

    def _by_class(self, true: Tensor, given: Tensor) -> dict[str, float]:
        """Return the recall of each class, NaN without an example of it; of several labels the F1 score of each."""
        from sklearn.metrics import f1_score, recall_score

        # Other characters are no part of a metric's name in the tools that runs are logged to.
        names = [re.sub(r"[^\w .:/-]", "_", name) for name in self.class_names or map(str, range(self.num_outputs))]
        # Classes such as "c#" and "c+" would have one column.
        names = [f"{name} {place}" if names.count(name) > 1 else name for place, name in enumerate(names)]
        if self.multi_label:
            labels, found = _arrays(true, given >= 0.5)
            values = f1_score(labels, found, average=None, zero_division=0.0)
            return {f"f1.{name}": float(value) for name, value in zip(names, values, strict=True)}
        labels, found = _arrays(true, given.argmax(dim=1))
        values = recall_score(labels, found, labels=range(len(names)), average=None, zero_division=np.nan)
        return {f"recall.{name}": float(value) for name, value in zip(names, values, strict=True)}

    def _compared(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return true values and outputs as `Score.of` takes them."""
        given = outputs.double()
        if self.multi_label:
            return targets.double(), given.sigmoid()
        return targets.double(), given[:, 0] if self.scored in NUMBERS.values() else given.softmax(dim=1)

    def _value(self, score: Score, true: Tensor, given: Tensor) -> float:
        return score.of(true, given) * (self.unit if score.in_units else 1.0)

    def weigh(self, weights: ClassWeights, targets: Tensor) -> None:
        """Have the loss weigh each class alike, where it is asked for: by N / (classes * examples of the class).

        Args:
            targets: (N,) class numbers of the training set, as published.
        """
        if weights == "balanced":
            counts = targets.bincount(minlength=self.num_outputs)
            self._weights = (len(targets) / (self.num_outputs * counts.clamp(min=1))).float()
            self.loss_name = WEIGHED

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(dim=1)
        if self._weights is None:
            return super().losses(outputs, targets)
        if self._weights.device != outputs.device:  # once
            self._weights = self._weights.to(outputs.device)
        # Of mixed labels (N, classes) each share has its class's weight, as torch's own `weight` has it.
        return F.cross_entropy(outputs, targets, weight=self._weights, reduction="none")
