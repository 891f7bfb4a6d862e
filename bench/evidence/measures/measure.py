"""Everything that is measured of one finished run: a row of measures.csv and its points of directions.csv."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from bench.core.spec import RunSpec
from bench.evidence.measures.ascent import m_sharpness
from bench.evidence.measures.calibration import BINS, expected_calibration_error, negative_log_likelihood
from bench.evidence.measures.directions import direction, line, plane
from bench.evidence.measures.hessian import largest_eigenvalues
from bench.evidence.measures.surface import Surface
from bench.train import synchronize
from bench.training.step import TrainingRun, set_up

Precision = Literal["fp32", "fp64"]


@dataclass(frozen=True)
class MeasureSettings:
    """Settings of measurements; all runs in a table were measured with the same ones.

    Attributes:
        examples: the number of training examples, the first ones, in the order of the permutation that all runs share.
        eigenvalues: how many of the Hessian's.
        m, rho: of one-step m-sharpness.
        line_points, plane_points: points per axis; odd, so that the weights themselves are among them.
    """

    examples: int = 1000
    eigenvalues: int = 3
    m: int = 128
    rho: float = 0.05
    line_points: int = 41
    plane_points: int = 17
    precision: Precision = "fp32"

    def columns(self) -> dict[str, Any]:
        return asdict(self)


def prepared(spec: RunSpec, device: torch.device) -> TrainingRun:
    """Return a run's data and its model with initial weights, uncompiled, in full precision, in one process."""
    # Options of training that change rounding or need more hardware are off, so that all models are measured alike.
    plain = {"precision": "fp32", "compile": False, "cuda_graphs": False, "processes": 1, "deterministic": False}
    return set_up(spec.model_copy(update={"train": spec.train.model_copy(update=plain)}), device)


def measure(
    run: TrainingRun, spec: RunSpec, settings: MeasureSettings, *, with_plane: bool
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Measure a run whose final weights are in its model.

    Args:
        with_plane: whether the loss is taken over a plane, too.

    Returns:
        Numbers by column of measures.csv, each measure followed by its cost (seconds, and a count of what it computed);
        and the points of directions.csv: direction ("line" or "plane"), alpha, beta, loss.
    """
    dtype = {"fp32": torch.float32, "fp64": torch.float64}[settings.precision]
    device = run.data.train.targets.device
    # The training examples are in a drawn order, so the first ones are a random part of them.
    examples = run.data.train[torch.arange(min(settings.examples, len(run.data.train)), device=device)]
    surface = Surface(run.model, run.task, examples, dtype)
    # As many as were really used: a small training set has fewer.
    row: dict[str, float] = {"measured_examples": float(len(examples)), "loss": surface.loss()}

    with _timed(row, "calibration_seconds", device):
        row |= _calibration(run, dtype)

    # Lanczos finds at most one eigenvalue less than there are parameters.
    count = min(settings.eigenvalues, sum(p.numel() for p in surface.parameters) - 1)
    with _timed(row, "hessian_seconds", device):
        largest = largest_eigenvalues(surface, count, spec.seed)
    row |= {f"eigenvalue_{place}": value for place, value in enumerate(largest.values, start=1)}
    row["hessian_products"] = float(largest.products)

    with _timed(row, "m_sharpness_seconds", device):
        row["m_sharpness"], batches = m_sharpness(surface, settings.rho, settings.m)
    row["m_sharpness_batches"] = float(batches)

    # Only the evaluations of this measure are counted as its cost.
    before = surface.evaluations
    with _timed(row, "directions_seconds", device):
        along, across = (direction(surface.parameters, spec.seed, number) for number in (1, 2))
        points = [
            {"direction": "line", "alpha": alpha, "beta": 0.0, "loss": loss}
            for alpha, loss in line(surface, along, settings.line_points)
        ]
        if with_plane:
            points += [
                {"direction": "plane", "alpha": alpha, "beta": beta, "loss": loss}
                for alpha, beta, loss in plane(surface, along, across, settings.plane_points)
            ]
    row["directions_evaluations"] = float(surface.evaluations - before)
    return row, points  # type: ignore[return-value]


def _calibration(run: TrainingRun, dtype: torch.dtype) -> dict[str, float]:
    """Return the calibration of a classifier on the test set; nothing for a regression."""
    targets = run.data.test.targets
    if run.task.num_outputs < 2 or targets.is_floating_point():
        return {}
    logits = Surface(run.model, run.task, run.data.test, dtype).outputs()
    ece, nll = expected_calibration_error(logits, targets), negative_log_likelihood(logits, targets)
    return {"ece": ece, "ece_bins": float(BINS), "nll": nll}


@contextmanager
def _timed(row: dict[str, float], column: str, device: torch.device) -> Iterator[None]:
    # A GPU is still at work when the host goes on, so both ends of the time wait for it.
    synchronize(device)
    started = time.perf_counter()
    yield
    synchronize(device)
    row[column] = time.perf_counter() - started
