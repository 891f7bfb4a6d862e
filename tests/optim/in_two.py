"""What `test_no_sync.py`, `test_split_models.py` and `test_memory.py` have two real processes do, all in one start.

`python -m tests.optim.in_two FOLDER`; see `tests.distributed.ranks`.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from pathlib import Path
from typing import Any

import torch

from bench.core.registry import load_builtins
from bench.distributed.process import joined
from bench.optim.base import weight_swap as moving

from . import no_sync, pair, shard_memory, split_models, stages


def main(folder: Path) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    moving.LARGE = 20  # as in nets that are not tiny
    load_builtins()
    found: dict[str, Any] = {}
    with joined(torch.device("cpu")) as group:
        for cases in (split_models.cases, stages.cases, no_sync.cases, shard_memory.cases, pair.cases):
            found |= dict(cases(group))
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
