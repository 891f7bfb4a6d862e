"""Search spaces and the trials drawn from them: the same file gives the same trials everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import annotated_types
import numpy as np
from numpy.typing import NDArray
from pydantic.fields import FieldInfo

Search = Literal["grid", "random", "sobol"]

SEARCH_SEED = 20201003
"""Seed of every search. Optimizers that search the same axes hence try the same values."""

DIGITS = 3
"""Significant digits of a drawn number: finer tuning is useless, and last bits of a logarithm vary by machine."""

MOST_DRAWN = 2**14
"""Most points drawn in search of different trials; whole numbers and lists give duplicates."""


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included, drawn evenly on a linear or a logarithmic scale.

    Attributes:
        whole: whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """Return the number at a share (0 <= share < 1) of the way from low to high."""
        # Each whole number has as much room as the others: that of its rounding.
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        if self.log:
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        rounded = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        inside = min(max(rounded, self.low), self.high)  # rounding may have left the range
        return inside if self.whole else float(inside)

    def described(self) -> dict[str, Any]:
        return {"low": self.low, "high": self.high, "log": self.log}


Axes = Mapping[str, Sequence[Any] | Range]
"""Hyperparameters with the values to go through or, for draws, the range or the list to draw from."""


def grid_size(sweep: Any) -> int:
    """Return the number of combinations of a table `sweep`; an invalid part counts as 1."""
    if not isinstance(sweep, Mapping):
        return max(1, len(sweep)) if isinstance(sweep, Sequence) and not isinstance(sweep, str) else 1
    return math.prod(grid_size(values) for values in sweep.values())


def grid(axes: Axes) -> list[dict[str, Any]]:
    """Return every combination of the values, the last key fastest: one empty combination without axes."""
    # A grid has no ranges: `OptimizerResolver.points` has refused them.
    lists = [values for values in axes.values() if not isinstance(values, Range)]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*lists)]


def draw(axes: Axes, trials: int, search: Search) -> list[dict[str, Any]]:
    """Draw this many different configurations, at random or from a scrambled Sobol sequence (Owen 1998, by scipy).

    The first ones of more trials are those of fewer.

    Raises:
        ValueError: there are not as many different ones.
    """
    points: dict[str, tuple[Any, ...]] = {}
    count = 1
    while len(points) < trials:
        if count >= MOST_DRAWN:
            raise ValueError(f"only {len(points)} different configurations were found, for {trials} trials")
        # Sobol points come in powers of 2. Each round draws twice as many, and looks at the new half alone.
        count *= 2
        for point in _points(len(axes), count, search)[count // 2 if points else 0 :]:
            values = tuple(_value(axis, share) for axis, share in zip(axes.values(), point.tolist(), strict=True))
            # The text is the key, because 1, 1.0 and True would be equal as keys.
            points.setdefault(repr(values), values)
    return [dict(zip(axes, values, strict=True)) for values in itertools.islice(points.values(), trials)]


def _points(dimensions: int, count: int, search: Search) -> NDArray[np.float64]:
    """Return the first `count` (a power of 2) points of the unit cube, shape (count, dimensions)."""
    if search == "random":  # by RandomState, whose numbers are promised to stay the same in every numpy
        return np.random.RandomState(SEARCH_SEED).random_sample((count, dimensions))
    from scipy.stats import qmc  # takes half a second to import

    points: NDArray[np.float64] = qmc.Sobol(dimensions, rng=SEARCH_SEED).random_base2(count.bit_length() - 1)
    return points


def _value(axis: Sequence[Any] | Range, share: float) -> Any:
    return axis.at(share) if isinstance(axis, Range) else axis[int(share * len(axis))]


def limits(axis: Sequence[Any] | Range, field: FieldInfo | None) -> list[str]:
    """Return the ends of a searched space, "smallest" and "largest", beyond which no value is valid."""
    values = [axis.low, axis.high] if isinstance(axis, Range) else axis
    numbers = [value for value in values if isinstance(value, int | float)]
    if field is None or not numbers:
        return []
    # A bound is beside the type, or inside of it: Annotated[float, Field(ge=0)] | None.
    inner = [one.metadata for one in types(field.annotation) if isinstance(one, FieldInfo)]
    bounds = [*field.metadata, *itertools.chain(*inner)]
    low = [bound.ge for bound in bounds if isinstance(bound, annotated_types.Ge)]
    high = [bound.le for bound in bounds if isinstance(bound, annotated_types.Le)]
    return ["smallest"] * (min(numbers) in low) + ["largest"] * (max(numbers) in high)


def types(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and all annotations inside it."""
    yield annotation
    for part in get_args(annotation):
        yield from types(part)
