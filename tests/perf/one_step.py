"""What SAM's step of one checkout takes beside its passes, printed as JSON: for `make perf BESIDE=PATH`.

`python one_step.py CASE` with a checkout in PYTHONPATH measures that checkout's SAM by this one's clockwork.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from pathlib import Path

import torch


def main() -> None:
    """Print per cent of two passes, and memory in copies of the parameters."""
    clockwork = importlib.util.spec_from_file_location("sam_step", Path(__file__).with_name("sam_step.py"))
    assert clockwork is not None
    assert clockwork.loader is not None
    sam_step = importlib.util.module_from_spec(clockwork)
    sys.modules["sam_step"] = sam_step
    clockwork.loader.exec_module(sam_step)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = sam_step.CASES[sys.argv[1]]
    batch = case.batch[sam_step.CUDA]
    model, loss = case.build(batch if sam_step.CUDA else 2)
    passes = sam_step.Passes(model, loss)
    makers = sam_step.rivals(model, passes)
    copy = sum(p.numel() * p.element_size() for p in model.parameters())
    ours, plain = (sam_step.peak_bytes(model, makers[name]) for name in (sam_step.OURS, sam_step.PLAIN))
    model, loss = case.build(batch)
    passes = sam_step.Passes(model, loss)
    makers = sam_step.rivals(model, passes)
    steps = {name: makers[name]() for name in (sam_step.TWO, sam_step.OURS)}
    times = [{name: passes.timed(step) for name, step in steps.items()} for _ in range(case.rounds + 5)][5:]
    over = statistics.median(sam_step.percent(one[sam_step.OURS], one[sam_step.TWO]) for one in times)
    print(json.dumps({"overhead": over, "copies": (ours - plain) / copy}))


if __name__ == "__main__":
    main()
