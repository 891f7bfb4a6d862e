"""What the suite itself costs. `make perf` runs this; rivals are timed in turn in one process, and ratios printed.

Machines are shared and noisy, so nothing here is a test: look at the ratios, on a quiet machine.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bench import SAM, environment, experiment, records
from bench.models.resnet import SmallResNet
from bench.registry import tasks
from bench.seeding import derive, numpy_stream
from bench.store import Store
from bench.tasks.base import prepare
from bench.train import synchronize, train

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.perf import images, texts

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 7


def main() -> None:
    torch.set_num_threads(1)
    print(f"{environment.describe(DEVICE)['device']}, torch {torch.__version__}, 1 thread, {ROUNDS} rounds in turn\n")
    loop()
    sam_step()
    images.on_cpu(compare)
    texts.on(DEVICE, compare)
    if DEVICE.type == "cuda":
        images.on_gpu()
    commands()


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
            data = prepare(task, spec.data, 0).to(DEVICE).train
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


# ---- the SAM step --------------------------------------------------------------------------------------------


def sam_step() -> None:
    torch.manual_seed(0)
    model = SmallResNet(20, 16, 3, 10).to(DEVICE)
    x, y = torch.randn(128, 3, 32, 32, device=DEVICE), torch.randint(0, 10, (128,), device=DEVICE)

    def timed(optimizer: torch.optim.Optimizer) -> Callable[[], float]:
        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        def steps() -> float:
            synchronize(DEVICE)
            started = time.perf_counter()
            for _ in range(3):
                optimizer.step(closure)  # type: ignore[arg-type]
            synchronize(DEVICE)
            return (time.perf_counter() - started) / 3

        return steps

    def sgd(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, fused=True)

    rivals = {
        "SGD": timed(sgd(model)),
        "SAM over SGD": timed(SAM(sgd(model), rho=0.05, model=model)),
        "ASAM over SGD": timed(SAM(sgd(model), rho=0.5, adaptive=True, model=model)),
    }
    compare("A step, ResNet-20 on 32x32, batch 128", "SAM at most 2.05", rivals)


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


def many_records(folder: Path) -> int:
    """Results of 10,000 finished runs: 5 seeds of 2,000 configurations, written as `bench run` writes them."""
    path = folder.parent / "many.toml"
    values = ", ".join(f"{(number + 1) / 1000:g}" for number in range(1999))
    path.write_text(
        TOML.replace("seeds = 1", "seeds = 5") + f'[optimizers.sam]\nbase = "sgd"\nlr = 0.05\nsweep.rho = [{values}]\n'
    )
    planned = experiment.load(path)
    found = records.collect(Store(folder), planned.meta(), planned.runs)
    frame = found.records
    frame["status"] = "done"
    for column in (*records.metric_columns("acc"), *records.COSTS):
        frame[column] = torch.rand(len(frame), dtype=torch.float64).numpy()
    frame = frame.assign(device="CPU", threads=1, torch="2", python="3", commit="abc", dirty=False)
    found = dataclasses.replace(found, records=frame)
    records.publish(found, folder)
    assert json.loads((folder / "experiment.json").read_text())["labels"] == ["sgd", "sam"]
    return len(frame)


if __name__ == "__main__":
    main()
