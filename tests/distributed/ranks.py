"""Two real processes of one group (gloo, on loopback), which run a module of the tests as a script."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.prefork import HANGS, Popen

ROOT = Path(__file__).parents[2]


def in_two_processes(module: str, folder: Path) -> list[dict[str, Any]]:
    """Run `python -m MODULE FOLDER` in two processes; return what each has saved in FOLDER/<rank>.pt."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "GLOO_SOCKET_IFNAME": "lo"}
    environment = os.environ | place | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = [
        Popen([sys.executable, "-m", module, str(folder)], env=environment | {"RANK": str(rank)}, cwd=ROOT)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=HANGS) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
