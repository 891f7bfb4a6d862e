"""SAMPa over two processes that make one pass each, beside SAMPa in one process. Part of `make perf`.

`python -m tests.perf.pair FOLDER` is one of the two; the processor needs two cores that are free.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD

from bench.distributed.process import joined
from bench.models.resnet import SmallResNet
from bench.optim.sampa import SAMPa
from tests.distributed.ranks import in_two_processes

BATCH, WARM, ROUNDS = 128, 3, 15


def compare() -> None:
    """Print how long a step of the pair takes, as a multiple of a step that makes both passes."""
    with tempfile.TemporaryDirectory() as folder:
        found = in_two_processes("tests.perf.pair", Path(folder))[0]
    ratios = sorted(pair / alone for pair, alone in zip(found["pair"], found["alone"], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    alone = 1e3 * statistics.median(found["alone"])
    print(f"SAMPa, ResNet-20, batch {BATCH}, one thread per process: {alone:.0f} ms per step with both passes;")
    print(f"  with one pass in each of two processes x {middle:.3f} [{low:.3f}, {high:.3f}] of it\n", flush=True)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with joined(torch.device("cpu")) as group:
        torch.manual_seed(0)
        x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))
        model = SmallResNet(depth=20, width=16, channels_in=3, num_classes=10)
        base = SGD(model.parameters(), lr=1e-6, momentum=0.9)
        optimizer = SAMPa(base, model=model)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        found: dict[str, list[float]] = {"pair": [], "alone": []}
        for _ in range(WARM + ROUNDS):
            for name, pair in (("pair", dist.group.WORLD), ("alone", None)):
                optimizer.pair = pair
                dist.barrier()
                start = time.perf_counter()
                if name == "pair" or group.rank == 0:  # meanwhile the other one waits
                    optimizer.step(closure)
                found[name].append(time.perf_counter() - start)
        torch.save({name: seconds[WARM:] for name, seconds in found.items()}, folder / f"{group.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
