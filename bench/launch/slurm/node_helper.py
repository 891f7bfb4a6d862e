"""Entry point on all nodes of a SLURM job but the first: starts processes of the runs that the first node controls.

It does what the calls say that `bench.distributed.launcher.run_distributed` writes. Everything else, stopping
included, is between that launcher and the processes, which end by themselves when the launcher does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import torch

from bench.core.errors import counted
from bench.distributed.launcher import Call, start
from bench.distributed.messages import MessageClient
from bench.launch.slurm import submission

LOOK_SECONDS = 0.5
"""Interval between checks for new calls."""


def main() -> int:
    """Help the first node, as `python -m bench.launch.slurm.node_helper FOLDER TASK`; return 0 when that is over."""
    calls, node = submission.calls(Path(sys.argv[1]), int(sys.argv[2])), int(os.environ["SLURM_PROCID"])
    threading.Thread(target=_die_with_the_job, daemon=True).start()
    answered = ""
    while not (call := Call.read(calls)).over:
        if call.number != answered:
            answered = call.number
            try:
                answer(call, node)
            except RuntimeError as error:  # of torch's store: the worker has ended, or died, and nobody waits for us
                print(f"node {node}: {error}", file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)
    return 0


def answer(call: Call, node: int) -> None:
    """Start this node's processes of a run, and wait for their end; tell of one that dies.

    Args:
        node: which of the job's nodes this is; 0 is the first, which calls.
    """
    client = MessageClient(call.address, call.port, f"node {node}", call.secret)
    first, gpus = node * call.here, torch.cuda.device_count()
    # Without any GPU the processes use the CPU, which is no error.
    if 0 < gpus < call.here:
        text = f"{os.uname().nodename} has {counted(gpus, 'GPU')} for {call.here} processes of this run"
        client.tell({"kind": "told", "rank": first, "text": text, "time": time.time()})
        return
    devices = [f"cuda:{local}" if gpus else "cpu" for local in range(call.here)]
    ranks = [start(call, first + local, local, device) for local, device in enumerate(devices)]
    try:
        # The first failure is enough: the first node then ends the run, and with it the other processes.
        while any(rank.process.poll() is None for rank in ranks) and not any(rank.process.poll() for rank in ranks):
            time.sleep(0.1)
        deaths = [death for rank in ranks if (death := rank.death())]
        # "left" tells the first node that nothing more will come from this one.
        for message in deaths or [{"kind": "left"}]:
            client.tell(message)
    finally:
        for rank in ranks:
            rank.end()


def _die_with_the_job() -> None:
    while os.read(0, 1024):  # a byte asks to stop: those are asked who take steps
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
