"""`bench measure`: final weights are found, or made by repeating the run, and measured one run after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console

from bench.core.errors import BenchError, counted
from bench.core.experiment import PlannedRun
from bench.evidence.measures.measure import MeasureSettings, measure, prepared
from bench.evidence.repeat import Recorded, repeat
from bench.store import records
from bench.store.run_folder import Store
from bench.train import weights_sha256
from bench.training.checkpoint import load_weights
from bench.training.environment import describe

PLACE = ("run_id", "condition", "optimizer", "config", "seed")


@dataclass(frozen=True)
class Weights:
    """The path of a run's final weights, and their origin: kept by the run or made by repeating it."""

    path: Path
    origin: str


def measure_runs(
    of: Recorded,
    runs: Sequence[PlannedRun],
    settings: MeasureSettings,
    *,
    device: torch.device,
    jobs: int | None = None,
    again: bool = False,
    other_weights: bool = False,
    console: Console,
) -> int:
    """Measure finished runs, and add them to measures.csv and directions.csv after each.

    Runs that are measured already, with these weights and settings, are left out; those measured with other settings
    are dropped. The plane is taken of the first seed among an optimizer's runs under a condition.

    Args:
        jobs: runs at once, where weights must be made again.
        again: measure these runs also if they are measured; other measurements stay.
        other_weights: measure weights that are not those recorded, too; their rows say so.

    Returns:
        How many runs were measured.

    Raises:
        BenchError: a run does not end here with the weights that are recorded of it, and `other_weights` is false.
    """
    measures, directions = _kept(of, settings, {run.spec.run_id for run in runs} if again else set())
    missing = [run for run in runs if run.spec.run_id not in set(measures["run_id"])]
    # Of all finished runs, also those not asked for: every call must take the plane of the same seeds.
    planes = _first_seeds(list(of.finished.values()))
    with _final_weights(of, missing, jobs, console) as weights:
        for number, run in enumerate(missing, start=1):
            run_id = run.spec.run_id
            row, points = _measure(of, run, weights[run_id], settings, device, run_id in planes, other_weights)
            # Written after each run: a call that is stopped loses at most the run it was at.
            measures, directions = _joined(measures, [row]), _joined(directions, points)
            # Under the lock of collecting: a launch that ends now writes experiment.json, too.
            with Store(of.folder).collecting():
                records.publish_measures(_ordered(of, measures), _ordered(of, directions), of.folder)
            told = f"largest eigenvalue {row['eigenvalue_1']:.3g}, m-sharpness {row['m_sharpness']:.3g}"
            console.print(f"[{number}/{len(missing)}] {run.name}: {told}", highlight=False, markup=False)
    return len(missing)


def _kept(of: Recorded, settings: MeasureSettings, without: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the existing measurements that are still valid: of the recorded weights, with these settings.

    Args:
        without: ids of runs whose measurements are not wanted.
    """
    measures, directions = of.results.measures, of.results.directions
    if measures is None or directions is None:
        return pd.DataFrame(columns=[*PLACE]), pd.DataFrame(columns=[*PLACE])
    recorded = of.results.records.drop_duplicates("run_id").set_index("run_id")["weights_sha256"]
    # A run that was done again may have other weights, for which the old measures do not hold.
    holds = measures["run_id"].map(recorded) == measures["recorded_sha256"]
    holds &= ~measures["run_id"].isin(without)
    for name, value in settings.columns().items():
        # A setting that an older file lacks counts as different.
        holds &= (measures[name] == value) if name in measures else False
    return measures[holds], directions[directions["run_id"].isin(measures.loc[holds, "run_id"])]


def _first_seeds(runs: Sequence[PlannedRun]) -> set[str]:
    first: dict[tuple[str, str], PlannedRun] = {}
    for run in runs:
        first.setdefault((run.condition_text, run.label), run)
    return {run.spec.run_id for run in first.values()}


@contextmanager
def _final_weights(
    of: Recorded, runs: Sequence[PlannedRun], jobs: int | None, console: Console
) -> Iterator[dict[str, Weights]]:
    """Yield the weights of all runs, by run_id.

    The weights are those kept by `bench run --keep-weights`, else those of a repetition.
    """
    store = Store(of.folder)
    weights = {run.spec.run_id: Weights(store.run(run.spec.run_id).weights, "kept") for run in runs}
    gone = [run for run in runs if not weights[run.spec.run_id].path.exists()]
    with tempfile.TemporaryDirectory(prefix="bench-measure-") as scratch:
        if gone:
            said = f"{len(gone)} of {counted(len(runs), 'run')} left no weights (--keep-weights): they are repeated"
            console.print(said, highlight=False)
            outcome = repeat(of, gone, Store(Path(scratch)), jobs=jobs, keep_weights=True, console=console)
            if outcome.interrupted:
                raise KeyboardInterrupt
            if outcome.failed:
                run, reason = outcome.failed[0]
                raise BenchError(f"{run.name} cannot be repeated here: {reason}")
            if outcome.disk:
                raise BenchError(outcome.disk)
        for run in gone:
            weights[run.spec.run_id] = Weights(Store(Path(scratch)).run(run.spec.run_id).weights, "repeated")
        # Inside the `with`: the weights of repeated runs are gone with the temporary folder.
        yield weights


def _measure(
    of: Recorded,
    run: PlannedRun,
    weights: Weights,
    settings: MeasureSettings,
    device: torch.device,
    with_plane: bool,
    other_weights: bool,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    run_id, recorded = run.spec.run_id, of.record(run.spec.run_id)["weights_sha256"]
    if device.type == "cpu":  # so that bits do not hang on how many cores are here
        torch.set_num_threads(int(of.record(run_id)["threads"]))
    ready = prepared(run.spec, device)
    load_weights(weights.path, ready.model)
    # The weights are compared with the record before anything is measured.
    sha256 = weights_sha256(ready.model)
    if sha256 != recorded and not other_weights:
        raise BenchError(
            f"{run.name} ({run_id}): these are not the weights that the run ended with (sha256 {sha256}, recorded "
            f"{recorded}; {weights.origin}); `bench verify` shows details, --other-weights measures them anyway"
        )
    numbers, points = measure(ready, run.spec, settings, with_plane=with_plane)
    place: dict[str, Any] = {"run_id": run_id, "condition": run.condition_text, "optimizer": run.label}
    place |= {"config": run.config_text, "seed": run.spec.seed}
    where = describe(device)
    about = {
        "recorded_sha256": recorded,
        "weights_sha256": sha256,
        "weights": weights.origin,
        **settings.columns(),
        **{name: where[name] for name in ("device", "threads", "torch")},
    }
    return {**place, **about, **numbers}, [{**place, **point} for point in points]


def _joined(frame: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the frame with these rows at its end; joining an empty frame would turn integers into floats."""
    new = pd.DataFrame(rows)
    return pd.concat([frame, new], ignore_index=True) if len(frame) else new


def _ordered(of: Recorded, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows in the order of records.csv, whatever order they were measured in."""
    order = {run_id: place for place, run_id in enumerate(dict.fromkeys(of.results.records["run_id"]))}
    return frame.sort_values("run_id", key=lambda ids: ids.map(order), kind="stable", ignore_index=True)
