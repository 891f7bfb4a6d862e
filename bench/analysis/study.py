"""Everything that tables, figures, page and answer need, computed once from the records of an experiment."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from bench.analysis import contrasts, provenance, searches, summary
from bench.analysis.captions import Captions
from bench.analysis.contrasts import Contrast
from bench.analysis.display import displayed
from bench.analysis.provenance import Clock, Provenance
from bench.analysis.summary import Row
from bench.core.meta import Meta

if TYPE_CHECKING:
    from bench.store.records import Results


class Study:
    """The results of an experiment, with all that is computed from them.

    Every attribute is computed when it is first read, and then kept: change no frame of `results` after that, but make
    another study of `dataclasses.replace(results, ...)`.

    Args:
        results: what `bench.store.records.read` returns.
        escaped: whether every "$" of the results is escaped, as matplotlib needs it.
    """

    def __init__(self, results: Results, *, escaped: bool = False) -> None:
        # Read by the figures alone: a study that is escaped already is not escaped, or renamed, a second time.
        self.results, self.escaped = results if escaped else displayed(results), escaped

    @property
    def meta(self) -> Meta:
        """Return the content of experiment.json."""
        return self.results.meta

    @cached_property
    def clock(self) -> Clock:
        """Return the hardware whose times are compared."""
        return provenance.clock(self.results)

    @cached_property
    def source(self) -> Provenance:
        """Return hardware, versions, commits and data of the finished runs."""
        return provenance.provenance(self.results, self.clock)

    @cached_property
    def tried(self) -> list[Row]:
        """Return every configuration as a row over the runs used for choosing."""
        return summary.tried_rows(self.results, self.clock)

    @cached_property
    def rows(self) -> list[Row]:
        """Return every configuration in the order of the experiment; a chosen one is over the runs to be reported."""
        # The choice is made once, in `tried`; the rows of final runs follow it and make none of their own.
        return summary.all_rows(self.results, self.tried, self.clock)

    @cached_property
    def chosen(self) -> list[Row]:
        """Return the chosen configuration of every condition and label: the rows of most tables."""
        # One row per condition and label, also where no run has finished; `contrasts` relies on that.
        return [row for row in self.rows if row.chosen]

    @cached_property
    def contrasts(self) -> list[Contrast]:
        """Return every comparison of two optimizers, competitor by competitor."""
        return contrasts.contrasts(self.results, self.chosen)

    @cached_property
    def unequal_searches(self) -> list[str]:
        """Return one sentence on compared optimizers that were searched differently; nothing if there are none."""
        # Labels that are never compared may be searched differently: only pairs of contrasts are looked at.
        sentence = searches.unequal(self.results, contrasts.pairs(self.contrasts))
        return [sentence] if sentence else []

    @cached_property
    def captions(self) -> Captions:
        """Return units, decimals and the sentences that captions repeat."""
        return Captions(self.meta, self.source)
