"""The common part of tasks with a user's own files: files by their content, and a held-out test set."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from bench.core.errors import BenchError
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
