"""A run as sinks see it: with the names of records.csv and curves.csv, whichever of its files the numbers are from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bench.core.experiment import PlannedRun
from bench.core.meta import Meta
from bench.store.collecting import NOTHING, collect
from bench.store.columns import CIRCUMSTANCES, PLACE, RUN, setting_columns
from bench.store.run_folder import FINISHED, Store

if TYPE_CHECKING:
    from bench.store.records import Results

Point = Mapping[str, float]
ENDED = (*FINISHED, "failed")


@dataclass(frozen=True)
class LoggedRun:
    """A run with all that is known of it; what has no value is left out.

    Attributes:
        about: experiment, task, model, condition, phase, optimizer, config and seed.
        settings: every hyperparameter.
        environment: hardware, versions, commit; empty until the run has finished, as is `final`.
        curve: the evaluated epochs so far.
        final: metrics and costs.
        status: as in records.csv.
    """

    run_id: str
    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    curve: Sequence[Point]
    final: Point
    status: str

    @property
    def name(self) -> str:
        """Return the run in words: "label_noise=0.2 tune sam rho=0.1 seed 3"."""
        return " ".join([*(self.about[key] for key in PLACE[:-1] if key in self.about), f"seed {self.about['seed']}"])

    def seconds(self, point: Point | None = None) -> float:
        """Return when a point was measured, or the run ended, in seconds since 1970; now, while the run goes on."""
        if "finished_at" not in self.environment:
            return time.time()
        ended = datetime.fromisoformat(self.environment["finished_at"]).timestamp()
        # Points have no date of their own: the training that was still to come is subtracted.
        return ended if point is None else ended - self.final["train_seconds"] + point["train_seconds"]


def from_records(results: Results) -> Iterator[LoggedRun]:
    """Yield every planned run, in the first of its places in the experiment."""
    settings = setting_columns(map(str, results.records))
    curves = dict(iter(results.curves.drop_duplicates(["run_id", "epoch"]).groupby("run_id")))
    for row in results.records.drop_duplicates("run_id").to_dict("records"):
        # NaN stands for no value in a table; an empty text is that of a place which an experiment does not have.
        there = {str(name): value for name, value in row.items() if value not in (None, "") and value == value}
        parts: dict[str, dict[str, Any]] = {"about": {}, "settings": {}, "environment": {}, "final": {}}
        for name, value in there.items():
            kind = "settings" if name in settings else "environment" if name in CIRCUMSTANCES else "final"
            parts["about" if name in RUN else kind][name] = value
        run_id, status = (parts["about"].pop(name) for name in ("run_id", "status"))
        points = curves[run_id].to_dict("records") if run_id in curves else []
        curve = [{name: point[name] for name in point if name not in PLACE} for point in points]
        yield LoggedRun(
            run_id, **{**parts, "final": _finite(parts["final"])}, curve=list(map(_finite, curve)), status=status
        )


def from_folder(store: Store, meta: Meta, run: PlannedRun) -> LoggedRun:
    """Return a run as its folder shows it at present."""
    logged = next(from_records(collect(store, meta, [run], NOTHING)))
    if logged.status in FINISHED:
        return logged
    return replace(logged, curve=list(map(_finite, store.run(logged.run_id).curve())))


def _finite(row: Mapping[Any, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
