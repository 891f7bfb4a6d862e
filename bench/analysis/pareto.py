"""The Pareto front: optimizers that no other one beats at a lower or equal cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def on_front(costs: ArrayLike, values: ArrayLike, *, higher_is_better: bool) -> NDArray[np.bool_]:
    """Flag the points that no other point dominates: one that is at least as cheap and as good, and better in one.

    Both arguments have shape (points,). Points equal in both do not dominate each other; NaN is never on the front.
    The Pareto front of the means: whether two neighbours on it differ is for their intervals to say.
    """
    cost = np.asarray(costs, dtype=float)
    loss = -np.asarray(values, dtype=float) if higher_is_better else np.asarray(values, dtype=float)
    no_worse = (cost[:, None] <= cost) & (loss[:, None] <= loss)  # [i, j]: i is no worse than j
    better = (cost[:, None] < cost) | (loss[:, None] < loss)
    return np.asarray(~(no_worse & better).any(axis=0) & ~np.isnan(cost + loss))
