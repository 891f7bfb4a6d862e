"""GLUE: nine tasks of understanding English sentences (Wang et al. 2019, https://arxiv.org/abs/1804.07461)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from bench.core.registry import register_task
from bench.data.glue_files import TASKS
from bench.data.splits import Split
from bench.tasks.base import Metric, Suite, Task

NAMES = {
    "acc": "accuracy",
    "f1": "F1",
    "mcc": "Matthews corr.",
    "pearson": "Pearson corr.",
    "spearman": "Spearman corr.",
}
"""The official metrics by key, as tables call them."""

OFFICIAL = {"cola": ("mcc",), "mrpc": ("acc", "f1"), "qqp": ("acc", "f1"), "stsb": ("pearson", "spearman")}
"""Keys of a task's official metrics; those of the others are ("acc",)."""


@register_task("glue/", members=lambda: TASKS)
class Glue(Task):
    """One of GLUE's nine tasks: English sentences or pairs of them to class, or for STS-B to score for similarity.

    cola, sst2, mrpc, qqp, stsb, mnli, qnli, rte, wnli. GLUE's public test sets have no labels, so the test set is its
    dev set (of MNLI the matched one; the mismatched one is a further test set). `bench prepare` downloads the hub's
    copy, where the tables of GLUE's zips are not in the data folder.

    Args:
        member: which task.
        max_length: tokens that a text or a pair of texts is cut to.
        allow_unverified_data: take files whose checksums are not the official ones; records and tables then say so.
    """

    text = True
    input_shape = ()
    metric = Metric(
        "score",
        "score",
        "",
        100.0,
        True,
        "the task's official metric times 100: Matthews correlation for CoLA, mean of accuracy and F1 for MRPC and "
        "QQP, mean of Pearson and Spearman correlation for STS-B, accuracy for the others (Wang et al. 2019, "
        "arXiv:1804.07461)",
        -1.0,
        1.0,
    )
    suite = Suite("GLUE", 9)
    note = (
        'GLUE\'s public test sets have no labels: "test" is the dev set here, on which nothing was chosen; the '
        "validation set was held out of the training set."
    )

    def __init__(
        self,
        member: str,
        *,
        max_length: Annotated[int, Field(ge=8, le=512)] = 128,
        allow_unverified_data: bool = False,
    ) -> None:
        # An attribute of the object, not of the class, where it would mark a task of a user's own files.
        self.files = TASKS[member]
        self.max_length = max_length
        self.allow_unverified_data = allow_unverified_data
        self.title = self.files.title
        self.official = OFFICIAL.get(member, ("acc",))
        self.regression = self.files.classes is None
        # STS-B has no classes, and one output: "1" stands for them, since its length is 1.
        self.num_outputs = len(self.files.classes or "1")
        self.loss_name = "squared error" if self.regression else Task.loss_name
        # Only MNLI has a third part: dev_mismatched.tsv, which is called "mismatched" here.
        self.others = tuple(part.name.removeprefix("dev_").removesuffix(".tsv") for part in self.files.parts[2:])
        self.reported = {f"test_{key}": NAMES[key] for key in self.official}
        # Tables show the accuracy on both of MNLI's test sets.
        if self.others:
            self.reported = {"test_acc": "matched accuracy"} | {
                f"{name}_acc": f"{name} accuracy" for name in self.others
            }

    def fetch(self) -> None:
        self.files.fetch(allow_unverified=self.allow_unverified_data)

    def load(self) -> tuple[Split, Split]:
        """Return the training set and the dev set: `Texts`, and targets (N,) int64, or float32 from 0 to 5 for STS-B.

        All runs of a process share both sets: do not write to them.

        Raises:
            BenchError: files are missing, damaged, or unofficial while unofficial files are not allowed.
        """
        # Further parts are further test sets: see `load_others`.
        train, test, *_ = self._splits()
        return train, test

    def load_others(self) -> dict[str, Split]:
        return dict(zip(self.others, self._splits()[2:], strict=True)) if self.others else {}

    def _splits(self) -> tuple[Split, ...]:
        return self.files.load(allow_unverified=self.allow_unverified_data)

    def train_examples(self) -> int:
        if not self.files.is_there() or self.verified():
            return self.files.parts[0].rows  # what it is or, once it is fetched, will be
        return super().train_examples()

    def verified(self) -> bool:
        return self.files.verified()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, shape (N,): cross-entropy in nats, for STS-B squared error."""
        return (outputs[:, 0] - targets) ** 2 if self.regression else super().losses(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the mean of the task's official metrics, a fraction."""
        return sum(self.details(outputs, targets).values()) / len(self.official)

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the task's official metrics by key, as fractions; undefined correlations are 0."""
        predicted = (outputs[:, 0] if self.regression else outputs.argmax(dim=1)).double().cpu().numpy()
        true = targets.double().cpu().numpy()
        return {key: METRICS[key](true, predicted) for key in self.official}


Values = np.ndarray[Any, np.dtype[np.float64]]


def _accuracy(true: Values, predicted: Values) -> float:
    return float((true == predicted).mean())


def _f1(true: Values, predicted: Values) -> float:
    """Return the F1 score of class 1; 0 if class 1 is neither present nor predicted."""
    # scikit-learn takes seconds to import, so only tasks that need it pay for it.
    from sklearn.metrics import f1_score

    return float(f1_score(true, predicted, zero_division=0.0))


def _matthews(true: Values, predicted: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return _defined(matthews_corrcoef, true, predicted)


def _pearson(true: Values, predicted: Values) -> float:
    from scipy.stats import pearsonr

    return _defined(lambda *values: pearsonr(*values).statistic, true, predicted)


def _spearman(true: Values, predicted: Values) -> float:
    from scipy.stats import spearmanr

    return _defined(lambda *values: spearmanr(*values).statistic, true, predicted)


def _defined(correlation: Callable[[Values, Values], Any], true: Values, predicted: Values) -> float:
    """Return a correlation, or 0 if it is undefined because one side is constant or not finite."""
    # Checked first, because scipy and scikit-learn answer some of these cases with NaN, others with an error.
    for values in (true, predicted):
        if not np.isfinite(values).all() or (values == values[0]).all():
            return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's about values that are almost constant
        value = float(correlation(true, predicted))
    return value if math.isfinite(value) else 0.0


METRICS: dict[str, Callable[[Values, Values], float]] = {
    "acc": _accuracy,
    "f1": _f1,
    "mcc": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
