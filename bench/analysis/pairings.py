"""Each method beside the optimizer that it wraps: SAM over X against X, at equal epochs and at equal passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.analysis.contrasts import Contrast, composition, wrappers
from bench.analysis.study import Study
from bench.analysis.summary import Row


@dataclass(frozen=True)
class Pairing:
    """A method and its base under one condition.

    Attributes:
        epochs: the comparison with the base that trains for as many epochs.
        passes: the one with the base that takes as many gradient passes, e.g. "sgd-2x"; None if there is no such label.
    """

    epochs: Contrast
    passes: Contrast | None

    @property
    def ours(self) -> Row:
        """Return the row of the method."""
        return self.epochs.ours

    @property
    def base(self) -> Row:
        """Return the row of the base with equal epochs."""
        return self.epochs.theirs


def pairings(study: Study) -> Iterator[Pairing]:
    """Yield the pairing of every method and condition, methods in the order of the experiment.

    Those without a base of equal epochs, or without a seed that both finished, are left out.
    """
    made = composition(study.results)
    for label in wrappers(study.results):
        bases = [name for name, made_of in made.items() if made_of == (made[label][1], "")]
        for row in study.chosen:
            against = [one for one in study.contrasts if one.ours is row and one.theirs.label in bases]
            epochs = next((one for one in against if "epochs" in one.equal), None)
            passes = next((one for one in against if "passes" in one.equal), None)
            if row.label == label and epochs is not None and epochs.test.difference.n:
                yield Pairing(epochs, passes)
