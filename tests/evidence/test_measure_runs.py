"""`bench measure`, from weights that were kept or made again to the table: for images, a regression and texts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from bench.evidence.measure_runs import measure_runs
from bench.evidence.measures.measure import MeasureSettings
from bench.evidence.repeat import recorded
from bench.launch import run as launch
from bench.store import records

EXPERIMENT = """
task = "digits"
model = { name = "mlp", width = 8 }
baseline = "sgd"
seeds = 2
[train]
epochs = 2
batch_size = 256
[optimizers.sgd]
lr = 0.1
[optimizers.sam]
base = "sgd"
lr = 0.1
"""
QUICK = ("--examples", 64, "--m", 32, "--eigenvalues", 2, "--device", "cpu")
REGRESSION = """
import torch
from torch.nn import functional as F
from bench import Metric, Split, Task, register_task
@register_task("plane")
class Plane(Task):
    "Three numbers, and their sum."
    num_outputs = 1
    input_shape = (3,)
    metric = Metric("mse", "squared error", "", 1.0, False, "mean squared error")
    def load(self):
        x = torch.randn(96, 3, generator=torch.Generator().manual_seed(0))
        return Split(x[:64], x[:64].sum(1)), Split(x[64:], x[64:].sum(1))
    def losses(self, outputs, targets):
        return (outputs.squeeze(1) - targets).square()
    def score(self, outputs, targets):
        return self.losses(outputs, targets).mean().item()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment and, under results/, its four runs, which left their weights."""
    folder = tmp_path_factory.mktemp("measure")
    (folder / "tiny.toml").write_text(EXPERIMENT)
    launched = launch.run(str(folder / "tiny.toml"), out=folder / "results", jobs=1, keep_weights=True)
    assert launched.outcome.finished == 4
    return folder


@pytest.fixture
def out(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "results", tmp_path / "results"))


def numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """What was measured, without what the clock says and where the weights came from."""
    return frame.drop(columns=[name for name in frame.columns if name.endswith("_seconds") or name == "weights"])


@pytest.mark.slow
def test_kept_and_repeated_weights_give_the_same_numbers_and_nothing_is_measured_twice(
    bench: Callable[..., Any], place: Path, out: Path
) -> None:
    command = ("measure", place / "tiny.toml", "--out", out, *QUICK)
    said = bench(*command)
    assert said.status == 0, said.err
    assert "sharpness and calibration" in said.out
    kept = records.read(out / "tiny").measures
    assert kept is not None
    assert list(kept["weights"]) == ["kept"] * 4
    assert (kept["weights_sha256"] == kept["recorded_sha256"]).all()
    assert (kept["eigenvalue_1"] >= kept["eigenvalue_2"]).all()
    assert {"sharpness.md", "sharpness.csv"} <= {path.name for path in (out / "tiny" / "tables").iterdir()}
    assert {"sharpness.png", "planes.pdf"} <= {path.name for path in (out / "tiny" / "figures").iterdir()}
    before, lines = ((out / "tiny" / name).read_bytes() for name in ("measures.csv", "directions.csv"))
    assert bench(*command).status == 0
    assert (out / "tiny" / "measures.csv").read_bytes() == before

    one = str(kept["run_id"].iloc[-1])
    assert bench("measure", place / "tiny.toml", one, "--again", "--out", out, *QUICK).status == 0
    both = records.read(out / "tiny")
    assert both.measures is not None
    pd.testing.assert_frame_equal(numbers(both.measures), numbers(kept), check_exact=True)
    assert (out / "tiny" / "directions.csv").read_bytes() == lines, "no run but the first seed's has a plane"

    shutil.rmtree(out / "tiny" / "runs")
    said = bench(*command, "--again", "--jobs", 1)
    assert "4 of 4 runs left no weights (--keep-weights): they are repeated" in said.err
    again = records.read(out / "tiny").measures
    assert again is not None
    assert list(again["weights"]) == ["repeated"] * 4
    pd.testing.assert_frame_equal(numbers(again), numbers(kept), check_exact=True)


def test_weights_that_are_not_the_recorded_ones_are_refused_unless_asked_for(
    bench: Callable[..., Any], place: Path, out: Path
) -> None:
    path = next((out / "tiny" / "runs").glob("*/weights.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    command = ("measure", place / "tiny.toml", path.parent.name, "--out", out, *QUICK)
    said = bench(*command)
    assert said.status == 2
    assert "these are not the weights that the run ended with" in said.err
    assert not (out / "tiny" / "measures.csv").exists()
    assert bench(*command, "--other-weights").status == 0
    measures = records.read(out / "tiny").measures
    assert measures is not None
    assert measures["weights_sha256"][0] != measures["recorded_sha256"][0]
    assert "with weights that are not the recorded ones" in (out / "tiny" / "tables" / "sharpness.md").read_text()


def test_other_settings_are_measured_anew_and_double_precision_is_close(place: Path, out: Path) -> None:
    found = []
    for precision in ("fp32", "fp64"):
        of = recorded(str(place / "tiny.toml"), out)
        runs = of.select([of.results.records["run_id"][0]])
        settings = MeasureSettings(examples=64, eigenvalues=2, m=32, plane_points=3, precision=precision)
        done = measure_runs(of, runs, settings, device=torch.device("cpu"), console=Console(quiet=True))
        assert done == 1
        measures = records.read(out / "tiny").measures
        assert measures is not None
        assert list(measures["precision"]) == [precision]
        found.append(measures.iloc[0])
    for name in ("eigenvalue_1", "m_sharpness", "loss", "ece", "nll"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-2), name


def test_bad_input_is_told_before_anything_is_measured(bench: Callable[..., Any], place: Path, out: Path) -> None:
    command = ("measure", place / "tiny.toml", "--out", out)
    for wrong, said in ((("--device", "cudda"), "--device cudda"), (("nope",), "no such run")):
        answer = bench(*command, *wrong)
        assert (answer.status, said in answer.err) == (2, True), answer.err


def test_a_regression_is_measured_without_calibration(
    bench: Callable[..., Any], registries: Callable[[], None], tmp_path: Path
) -> None:
    (tmp_path / "plane.py").write_text(REGRESSION)
    text = EXPERIMENT.replace('"digits"', '"plane"').replace("seeds = 2", 'seeds = 1\nplugins = ["plane.py"]')
    (tmp_path / "tiny.toml").write_text(text.replace("256", "16"))
    launch.run(str(tmp_path / "tiny.toml"), out=tmp_path / "out", only=["sgd"], jobs=1, keep_weights=True)
    said = bench("measure", tmp_path / "tiny.toml", "--out", tmp_path / "out", *QUICK)
    assert said.status == 0, said.err
    measures = records.read(tmp_path / "out" / "tiny").measures
    assert measures is not None
    assert measures["eigenvalue_1"].notna().all()
    assert "ece" not in measures
