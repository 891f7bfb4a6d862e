"""`make slurm-demo`: a SLURM of this one machine does the quickstart's sweep, with a job preempted on the way.

It installs nothing, listens on loopback only, and stops all that it started.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd

from bench.analysis import tables
from bench.analysis.study import Study
from bench.store import records
from bench.store.records import Results
from tests.launch.slurm.cluster import Cluster

ROOT = Path(__file__).parents[3]
OUT = ROOT / "slurm-demo"
RESULTS = OUT / "digits_noise"
LOCAL = ROOT / "results" / "digits_noise" / "records.csv"
OF_TIME = ("cost", "budgets")
"""Tables with seconds in them."""
SEEDS = 2
COMMAND = ["run", "digits_noise", "--seeds", str(SEEDS), "--out", str(OUT), "--on", "slurm", "--runs-per-job", "5"]


def main() -> int:
    if reason := Cluster.missing():
        print(f"Error: {reason}", file=sys.stderr)
        return 2
    shutil.rmtree(OUT, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    try:
        with Cluster(folder) as cluster:
            print(f"A SLURM of this machine is up: 1 node, 2 cores; its files are in {folder}", flush=True)
            threading.Thread(target=preempt, args=(cluster,), daemon=True).start()
            command = [sys.executable, "-m", "bench", *COMMAND, "--wait"]
            print(f"$ bench {' '.join(command[3:])}", flush=True)
            status = subprocess.run(command, cwd=ROOT, env=cluster.environment, check=False).returncode
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if status == 0:
        print(told())
        print(compared())
        if LOCAL.exists():
            print(same_tables(records.read(RESULTS), records.read(LOCAL.parent)))
    return status


def preempt(cluster: Cluster) -> None:
    """Once runs are at work, a job of high priority takes the whole machine for five seconds."""
    while not any(path.stat().st_size for path in RESULTS.glob("runs/*/curve.jsonl")):
        time.sleep(0.2)
    cluster.call("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null", "--wrap", "sleep 5")
    print("A job of high priority was submitted: running jobs save, make room and are queued again.", flush=True)


def told() -> str:
    notes = [json.loads(path.read_text()) for path in RESULTS.glob("slurm/*/job-*.json")]
    again = sum(note["starts"] > 1 for note in notes)
    resumed = int((pd.read_csv(RESULTS / "records.csv").resumes > 0).sum())
    return f"{again} of {len(notes)} jobs were preempted and queued again; {resumed} runs went on from a checkpoint."


def compared() -> str:
    """Whether the runs ended with the same weights as those of `make quickstart`, as far as they are there."""
    if not LOCAL.exists():
        return "There is no local run to compare with: `make quickstart` makes it."
    columns = ["run_id", "weights_sha256", "device", "threads", "torch"]
    ours, local = (
        pd.read_csv(path, dtype=str)[columns].dropna().set_index("run_id") for path in (RESULTS / "records.csv", LOCAL)
    )
    both = ours.index.intersection(local.index).unique()
    if both.empty:
        return f"{LOCAL.relative_to(ROOT)} has none of these runs."
    equal = int((ours.loc[both, "weights_sha256"] == local.loc[both, "weights_sha256"]).sum())
    text = f"Weights of {equal} of {len(both)} runs are those of {LOCAL.relative_to(ROOT)}, bit for bit."
    differing = [
        f"{column} {local.loc[both[0], column]} there, {ours.loc[both[0], column]} here"
        for column in columns[2:]
        if local.loc[both[0], column] != ours.loc[both[0], column]
    ]
    return f"{text} ({'; '.join(differing)})" if differing else text


def same_tables(ours: Results, local: Results) -> str:
    """Whether the tables say what those of the local run do, of the same runs; what things cost is another matter."""
    runs = set(ours.records.run_id)
    of_local = (frame[frame.run_id.isin(runs)].reset_index(drop=True) for frame in (local.records, local.curves))
    theirs = {table.name: table for table in tables.build(Study(Results(ours.meta, *of_local)))}
    equal: list[str] = []
    differing: list[str] = []
    for table in tables.build(Study(ours)):
        if table.name not in OF_TIME:
            same = (table.columns, table.rows) == (theirs[table.name].columns, theirs[table.name].rows)
            (equal if same else differing).append(table.name)
    text = f"Equal, cell by cell, to tables of the same runs in {LOCAL.parent.relative_to(ROOT)}: {', '.join(equal)}."
    return f"{text} Different: {', '.join(differing)}." if differing else text


if __name__ == "__main__":
    sys.exit(main())
