"""The common part of tasks with a user's own files: files by their content, and a held-out test set."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from bench.core.errors import BenchError, counted, nearest
from bench.data.splits import Indices

TestShare = Annotated[float, Field(gt=0, lt=1)]

TEST_SEED = 20201003  # the day the paper on SAM was put on arXiv; the split is the same in every run
MISSING = ("", "?", "n/a", "na", "nan", "null")
"""Cells that mean a missing value, in lower case."""


def hold_out(classes: Indices, share: float, where: str, names: list[str]) -> tuple[Indices, Indices]:
    """Return which examples are for training (and validation) and which for the test set, each in their order.

    Every class gives the same share, at least one example, so that a small one is not left out.

    Args:
        classes: (N,) class numbers; of a number to predict, its quantile bins.
        where: the file or folder, for the message.
        names: of the classes, for the message.

    Raises:
        BenchError: a class has fewer than three examples: one each to train on, to validate on and to test on.
    """
    random = np.random.RandomState(TEST_SEED)
    test = np.zeros(len(classes), dtype=bool)
    for number, name in enumerate(names):
        members = np.flatnonzero(classes == number)
        if len(members) < 3:
            raise BenchError(
                f'{where}: {len(members)} of class "{name}"; at least 3 are needed, to train, to validate and to test'
            )
        # At most all but two: one example stays for training and one for validation.
        count = min(max(1, round(share * len(members))), len(members) - 2)
        test[random.permutation(members)[:count]] = True
    return np.flatnonzero(~test), np.flatnonzero(test)


# ---- labels of any kind --------------------------------------------------------------------------------------

FEW_CLASSES = 10
"""Classes whose shares are told one by one; of more, the smallest and the largest are told."""


def label_text(value: Any) -> str | None:
    """Return a label as the name of its class; None if it is missing (None, NaN, an empty text).

    Raises:
        ValueError: it is no label, but a number with a fraction or several values.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, int):  # bool is one
        return str(value)
    raise ValueError(value)


def class_names(labels: Iterable[str], examples: int, where: str) -> list[str]:
    """Return the different labels of the training examples in order: numbers by size, others by name.

    Args:
        examples: how many there are.
        where: the file and the column, for messages.

    Raises:
        BenchError: there is one class only, or hardly an example per class.
    """
    names = set(labels)
    numbers = all(name.lstrip("-").isdecimal() for name in names)
    ordered = sorted(names, key=int) if numbers else sorted(names)
    if len(ordered) < 2:
        raise BenchError(f'{where} has one class only, "{ordered[0]}"')
    if len(ordered) > examples // 3:
        raise BenchError(
            f"{where} has {counted(len(ordered), 'different value')} in {counted(examples, 'example')}, too many for "
            "classes"
        )
    return ordered


def numbered(labels: Sequence[str], names: Sequence[str], where: str) -> Indices:
    """Return the class number of each label, (N,) int64.

    Raises:
        BenchError: a label is none of the classes, which are those of the training set.
    """
    number_of = {name: number for number, name in enumerate(names)}
    if odd := next((label for label in labels if label not in number_of), None):
        raise BenchError(f'{where} has the class "{odd}", of which there is no training example; {nearest(odd, names)}')
    return np.array([number_of[label] for label in labels], np.int64)


def shares(names: Sequence[str], **sets: Indices) -> str:
    """Return a sentence on how many examples each class has.

    Args:
        sets: (N,) class numbers, by what the set is called.
    """
    return "; ".join(f"{name.replace('_', ' ')}: {_share(names, numbers)}" for name, numbers in sets.items()) + "."


def _share(names: Sequence[str], numbers: Indices) -> str:
    counts = np.bincount(numbers, minlength=len(names))
    total = counted(len(numbers), "example")
    if len(names) > FEW_CLASSES:
        return f"{total} of {len(names)} classes, {counts.min():,} to {counts.max():,} each"
    named = zip(names, counts, strict=True)
    each = (f'{count:,} of "{name}" ({100 * count / len(numbers):.1f} %)' for name, count in named)
    return f"{total}, {', '.join(each)}"
