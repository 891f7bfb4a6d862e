"""Versions, commit and hardware of a run: recorded with every run, shown under every table."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import resource
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from bench.core import allocator


@functools.cache
def _code() -> dict[str, Any]:
    """Return the commit that this process runs, and whether files other than results differ from it."""
    root = Path(__file__).parents[2]
    unknown = {"commit": None, "dirty": None}
    if not (root / ".git").exists():  # an installed package, or someone else's repository around it
        return unknown
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)results")
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"commit": commit[:12], "dirty": bool(changes)}


def _git(root: Path, *arguments: str) -> str:
    # Without locks: a worker that is killed in a `git status` would leave the index locked, and no commit possible.
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()


def describe(device: torch.device) -> dict[str, Any]:
    """Return the environment of this process, flat, ready for a record."""
    return {
        **_code(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": importlib.metadata.version("numpy"),
        "bench": importlib.metadata.version("sam-bench"),
        "platform": platform.platform(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator.in_use(),
    }


@functools.cache
def processor() -> str:
    """Return the processor's name, as its vendor writes it if the system reports the name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class PeakMemory:
    """The most memory in use since this object was made, in MB: on the device, or of the process on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with suppress(OSError):  # Linux: forget the process's peak so far (a worker runs many runs)
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) * 1024 / 1e6
        except OSError:
            pass
        scale = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, in kB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e6
