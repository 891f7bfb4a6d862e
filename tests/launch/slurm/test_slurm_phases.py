"""Experiments that tune first on a real SLURM: the final runs are submitted once tuning is over."""

from __future__ import annotations

import json
import re

import pytest

from tests.launch.slurm.conftest import Queue, Site

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PHASES = """
task = "digits"
model = { name = "mlp", width = 8 }
baseline = "sgd"
[tune]
seeds = 1
trials = 2
[final]
seeds = 1
refit = true
[train]
epochs = 1
batch_size = 256
[optimizers.sgd]
sweep.lr = [0.1, 0.5]
"""


def test_one_command_waits_through_both_phases_and_two_commands_do_the_same(site: Site, queue: Queue) -> None:
    (site.path / "touchy.toml").write_text(PHASES)
    output = site.submit()
    assert "Submitted 2 runs in" in output
    assert "It submits the final runs once tuning is over." in output
    queue.wait_until_over(site.job_ids())
    output = site.submit("--wait")
    assert "touchy: 2 done, 1 to do" in output
    assert "Submitted 1 run in 1 job:" in output
    assert re.search(r"\[1/1\] final sgd lr=\S+ seed 1: done", output)
    chosen = json.loads((site.results / "chosen.json").read_text())
    weights = site.weights()
    assert len(weights) == 3

    for name in ("chosen.json", "experiment.json", "records.csv"):  # the records alone would count as finished
        (site.results / name).unlink()
    for run in (site.results / "runs").glob("*/result.json"):
        run.unlink()
    output = site.submit("--wait", "--runs-per-job", "2")
    assert re.search(r"Submitted 2 runs in 1 job:.*touchy: 0 done, 1 to do.*Submitted 1 run in 1 job:", output, re.S)
    assert site.weights() == weights
    assert json.loads((site.results / "chosen.json").read_text()) == chosen
    assert (site.results / "tables" / "tuning.md").exists()
