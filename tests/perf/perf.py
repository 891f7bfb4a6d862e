"""What the suite itself costs. `make perf` runs this; rivals are timed in turn in one process, and ratios printed.

Machines are shared and noisy, so nothing here is a test: look at the ratios, on a quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch.nn import functional as F

from bench.config import file as experiment
from bench.core.errors import nearest
from bench.core.experiment import Experiment
from bench.core.registry import tasks
from bench.core.run_options import RunOptions
from bench.core.seeding import derive, numpy_stream
from bench.evidence.merge import merge
from bench.launch import run as launch
from bench.launch.plan import make_plan
from bench.models.resnet import SmallResNet
from bench.store import collecting, columns, records
from bench.store.run_folder import Store, to_json
from bench.tasks.base import prepare_data
from bench.train import synchronize, train
from bench.training import environment

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.perf import evaluation, family, images, pages, pair, sam_step, texts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 7


def main() -> None:
    parts: dict[str, Callable[[], None]] = {
        "loop": loop,
        **{f"sam/{name}": partial(sam_step.compare, case) for name, case in sam_step.CASES.items()},
        "family": family.compare,
        "pair": pair.compare,
        "images": training_on_images,
        "evaluation": lambda: evaluation.on_cpu(compare),
        "texts": lambda: texts.on(DEVICE, compare),
        "many-runs": many_runs,
        "launcher": launcher,
        "commands": commands,
        "report": pages.opened,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", metavar="NAME", help=f"one of {', '.join(parts)}; or sam, for all of its models")
    only = parser.parse_args().only
    chosen = {name: part for name, part in parts.items() if only in (None, name, name.partition("/")[0])}
    if not chosen:
        parser.error(f"--only {only}: {nearest(only, [*parts, 'sam'])}")
    torch.set_num_threads(1)
    print(f"{environment.describe(DEVICE)['device']}, torch {torch.__version__}, 1 thread, {ROUNDS} rounds in turn\n")
    for part in chosen.values():
        part()


def training_on_images() -> None:
    images.on_cpu(compare)
    if DEVICE.type == "cuda":
        images.on_gpu()


def compare(title: str, target: str, rivals: dict[str, Callable[[], float]]) -> None:
    """Time rivals in turn; print medians and the median ratio of each to the first, taken round by round."""
    times = [{name: rival() for name, rival in rivals.items()} for _ in range(ROUNDS + 1)][1:]  # the first warms up
    first = next(iter(rivals))
    print(f"{title}   (target: {target})")
    for name in rivals:
        ratios = sorted(times[name] / times[first] for times in times)
        median = statistics.median(times[name] for times in times)
        spread = f"[{ratios[0]:.3f}, {ratios[-1]:.3f}]"
        print(f"  {name:<28} {1e3 * median:9.3f} ms   x {statistics.median(ratios):.3f}  {spread}")
    print()


# ---- the loop ------------------------------------------------------------------------------------------------

TOML = """
task = "digits"
model = "resnet8"
baseline = "sgd"
seeds = 1
[data]
validation = 0.1667
[train]
epochs = 6
batch_size = 64
eval_every = 6
schedule = "constant"
[optimizers.sgd]
lr = 0.05
"""


def loop() -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "loop.toml"
        path.write_text(TOML)
        spec = experiment.load(path).runs[0].spec
        number = iter(range(10**6))

        def ours() -> float:
            folder = Store(Path(place) / str(next(number))).run(spec.run_id)
            with folder.claim():
                return float(train(spec, folder, DEVICE)["train_seconds"]) / (6 * 15)

        def by_hand() -> float:
            task = tasks["digits"].factory()
            data = prepare_data(task, spec.data, 0).to(DEVICE).train
            torch.manual_seed(derive(0, "init"))
            model = SmallResNet(8, 16, 1, 10).to(DEVICE)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
            synchronize(DEVICE)
            started = time.perf_counter()
            for epoch in range(6):
                order = torch.from_numpy(numpy_stream(0, "order", epoch).permutation(len(data))).to(DEVICE)
                for step in range(15):
                    batch = order[64 * step : 64 * (step + 1)]
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(data.inputs[batch]), data.targets[batch])
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            synchronize(DEVICE)
            return (time.perf_counter() - started) / (6 * 15)

        compare(
            "A step of the training loop, ResNet-8 on digits, batch 64",
            "at most 1.03",
            {"minimal loop by hand": by_hand, "bench.train": ours},
        )


# ---- many runs -----------------------------------------------------------------------------------------------


def many_runs() -> None:
    """What 10,000 runs cost beside their training: planned, looked at, collected and written down."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "many"
        planned = experiment.load(many_file(Path(place)))
        store, meta = Store(folder), planned.meta()

        def seconds(what: Callable[[], object]) -> float:
            started = time.perf_counter()
            what()
            return time.perf_counter() - started

        rows = {"planning, nothing there": seconds(lambda: make_plan(planned, store).to_do)}
        write_finished(planned, store)
        rows["planning and status"] = seconds(lambda: make_plan(planned, store).to_do)
        found = collecting.collect(store, meta, planned.runs)
        rows["collecting"] = seconds(lambda: collecting.collect(store, meta, planned.runs))
        rows["writing records and curves"] = seconds(lambda: records.publish(found, folder))
        assert list(found.records.status.unique()) == ["done"]
        merging = seconds(lambda: merge([(name, half_of(found, start)) for start, name in enumerate("ab")]))
    print(f"{len(planned.runs):,} finished runs   (target: all of it under 10 s)")
    for name, taken in {**rows, "all of it": sum(rows.values())}.items():
        print(f"  {name:<28} {taken:9.3f} s")
    print(f"  {'merging two halves of them':<28} {merging:9.3f} s   (target: under 5 s)")
    print()


def half_of(results: records.Results, start: int) -> records.Results:
    """Every second run of results."""
    mine = results.records.iloc[start::2]
    curves = results.curves[results.curves["run_id"].isin(mine["run_id"])]
    return dataclasses.replace(results, records=mine, curves=curves)


def write_finished(planned: Experiment, store: Store) -> None:
    """Folders as `bench run` leaves them, of runs that took part in no training."""
    scores = {f"{split}_{what}": 0.5 for split in columns.SPLITS for what in ("loss", "acc")}
    point = {"passes": 90, "train_seconds": 1.0, "lr": 0.05, "batch_loss": 0.5, **scores}
    curve = "".join(json.dumps({"epoch": epoch, **point}) + "\n" for epoch in range(1, 7))
    costs = dict.fromkeys(columns.COSTS, 1.0)
    result = {"status": "done", "epochs_done": 6, **costs, "metrics": scores}
    for run in planned.runs:
        folder = store.run(run.spec.run_id)
        folder.path.mkdir(parents=True)
        (folder.path / "lock").touch()
        (folder.path / "environment.json").write_text(to_json([environment.describe(DEVICE)]))
        (folder.path / "curve.jsonl").write_text(curve)
        (folder.path / "result.json").write_text(to_json({"run_id": folder.run_id, **result}))


SWEEP = """
task = "digits"
model = {{ name = "mlp", width = 8, depth = 1 }}
baseline = "sgd"
seeds = 1
[train]
epochs = 1
batch_size = 256
[optimizers.sgd]
sweep.lr = [{values}]
"""


def launcher(runs: int = 300) -> None:
    """What a run costs a worker beyond its training: a sweep of runs of a few steps, through the real launcher."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "sweep.toml"
        path.write_text(SWEEP.format(values=", ".join(f"{(number + 1) / 1000:g}" for number in range(runs))))
        plan = make_plan(experiment.load(path), Store(Path(place) / "sweep"))
        started = time.perf_counter()
        launched = launch.execute(plan, RunOptions(jobs=2), console=Console(file=io.StringIO()))
        wall = time.perf_counter() - started
        times = [path.stat().st_mtime for path in Path(place).glob("sweep/runs/*/result.json")]
        found = launched.results.records
        assert list(found.status) == ["done"] * runs
    a_run = 2e3 * (max(times) - min(times)) / runs
    setup, training = 1e3 * found.setup_seconds.mean(), 1e3 * (found.train_seconds + found.eval_seconds).mean()
    print(f"A sweep of {runs} runs of one epoch, 2 workers   (target: under 50 ms a run beyond its training)")
    print(f"  {'a run, of a worker':<28} {a_run:9.3f} ms")
    print(f"  {'beyond training':<28} {a_run - training:9.3f} ms   of these {setup:.1f} ms its own set-up")
    print(f"  {'the launch as a whole':<28} {wall:9.3f} s")
    print()


# ---- the commands --------------------------------------------------------------------------------------------


def commands() -> None:
    with tempfile.TemporaryDirectory() as place:
        rows = many_records(Path(place) / "many")
        print("Commands, whole processes")
        for title, target, arguments in (
            ("bench --help", "0.5 s", ["--help"]),
            (f"bench table, {rows:,} records", "2 s", ["table", "many", "--out", place]),
        ):
            seconds = []
            for _ in range(5):
                started = time.perf_counter()
                subprocess.run([sys.executable, "-m", "bench", *arguments], capture_output=True, check=True)
                seconds.append(time.perf_counter() - started)
            print(f"  {title:<28} {statistics.median(seconds):9.3f} s   (target: under {target})")


def many_file(folder: Path) -> Path:
    """An experiment of 10,000 runs: 5 seeds of 2,000 configurations."""
    path = folder / "many.toml"
    values = ", ".join(f"{(number + 1) / 1000:g}" for number in range(1999))
    path.write_text(
        TOML.replace("seeds = 1", "seeds = 5") + f'[optimizers.sam]\nbase = "sgd"\nlr = 0.05\nsweep.rho = [{values}]\n'
    )
    return path


def many_records(folder: Path) -> int:
    """Results of 10,000 finished runs, written as `bench run` writes them."""
    planned = experiment.load(many_file(folder.parent))
    found = collecting.collect(Store(folder), planned.meta(), planned.runs)
    frame = found.records
    frame["status"] = "done"
    for column in (*columns.metric_columns("acc"), *columns.COSTS):
        frame[column] = torch.rand(len(frame), dtype=torch.float64).numpy()
    frame = frame.assign(device="CPU", threads=1, torch="2", python="3", commit="abc", dirty=False)
    found = dataclasses.replace(found, records=frame)
    records.publish(found, folder)
    assert json.loads((folder / "experiment.json").read_text())["labels"] == ["sgd", "sam"]
    return len(frame)


if __name__ == "__main__":
    main()
