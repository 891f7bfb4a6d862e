"""Checks of the machine: processor, memory, allocator, GPUs and the precision that pays on them. They need torch."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from bench.core import allocator as allocators
from bench.doctor.finding import Finding, gigabytes
from bench.training.environment import processor as name_of_processor
from bench.training.precision import has_bf16_units

CGROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows the limits of containers and jobs (cgroup v2)."""

A_RUN = 1e9
"""Bytes that a run on a CPU takes at most, but for texts and pretrained models: the committed records have 0.5 to 0.9
GB for digits, CIFAR and Fashion-MNIST, up to 1.3 GB for EfficientNet-Lite0 and 4.5 GB for MiniLM."""


def processor() -> Iterator[Finding]:
    """Yield the cores that this process may use."""
    machine = os.cpu_count() or 1
    usable = _cores()
    words = f"{name_of_processor()}, {usable} of {machine} cores may be used"
    if (quota := _quota()) is not None and quota < usable:
        most = max(1, int(quota))
        yield Finding(
            "note",
            "processor",
            f"{words}, with the time of {quota:g} (limit of the container or job)",
            f"`bench run --jobs {most}`: without it there are as many runs at once as cores may be used",
        )
        return
    yield Finding("ok", "processor", words)


def memory() -> Iterator[Finding]:
    """Yield the free memory, and whether it is enough for as many runs at once as there are cores."""
    free = _free_memory()
    if free is None:
        yield Finding("note", "memory", "the system does not tell how much is free")
        return
    # On GPUs there is one run per GPU.
    at_once = _gpu_count() or _cores()
    if free < at_once * A_RUN:
        yield Finding(
            "note",
            "memory",
            f"{gigabytes(free)} free, for {at_once} runs at once of up to {gigabytes(A_RUN)} each",
            f"`bench run --jobs {max(1, int(free / A_RUN))}`, or free some memory",
        )
        return
    yield Finding("ok", "memory", f"{gigabytes(free)} free")


def allocator() -> Iterator[Finding]:
    """Yield the memory allocator that runs will have.

    Raises:
        BenchError: BENCH_MALLOC names none, or one that is not installed.
    """
    added = allocators.variables(os.environ)
    choice = os.environ.get(allocators.VARIABLE) or "auto"
    library = added.get(allocators.PRELOAD) or os.environ.get(allocators.PRELOAD, "")
    taken = next((name for name in allocators.LIBRARIES if name in library), None)
    if taken:
        yield Finding("ok", "allocator", f"runs use {taken}")
    elif sys.platform != "linux":
        yield Finding("ok", "allocator", "runs use the system's; others are for Linux")
    elif choice == "off":
        found = f"runs use the system's, since {allocators.VARIABLE}=off"
        yield Finding(
            "note", "allocator", found, f"unset {allocators.VARIABLE}: steps are then faster, with the same bits"
        )
    elif choice == "glibc":
        yield Finding("ok", "allocator", f"runs use tuned glibc, since {allocators.VARIABLE}=glibc")
    else:
        found = "runs use tuned glibc" if added else "runs use the system's"
        yield Finding(
            "note", "allocator", f"{found}; none of {', '.join(allocators.LIBRARIES)} was found", _another_allocator()
        )


def _another_allocator() -> str:
    return "for faster steps: pip install cmeel-mimalloc, or your system's libmimalloc"


def gpus() -> Iterator[Finding]:
    """Yield every GPU that torch sees, with its memory; or why torch sees none."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = _gpu_count()
    if not count:
        yield _no_gpu(str(said[0].message).partition("\n")[0] if said else "")
        return
    for number in range(count):
        name = f"GPU {number}"
        try:
            about = torch.cuda.get_device_properties(number)
            free, total = torch.cuda.mem_get_info(number)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            advice = f"`nvidia-smi` may say more; leave it out with --gpus or CUDA_VISIBLE_DEVICES ({name} is in use?)"
            yield Finding("lack", name, f"does not answer: {reason}", advice)
            continue
        words = f"{about.name}, {gigabytes(free)} of {gigabytes(total)} free"
        # Half is where one usually finds that somebody else is at work on it.
        busy = free < total / 2
        yield Finding("note" if busy else "ok", name, words, "another program has the rest" if busy else "")


def _no_gpu(warning: str) -> Finding:
    there = shutil.which("nvidia-smi") is not None or any(Path("/dev").glob("nvidia[0-9]*"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    on_cores = "runs use the CPU cores"
    if not there:
        return Finding("note", "GPU", f"none; {on_cores}", 'experiments with "hours on a GPU" in `make help` take days')
    if torch.version.cuda is None and torch.version.hip is None:
        advice = "install a torch with CUDA (pytorch.org has the command)"
        return Finding("lack", "GPU", f"an NVIDIA driver is here, but torch is built without CUDA; {on_cores}", advice)
    if hidden is not None:
        found = f"none is visible, since CUDA_VISIBLE_DEVICES={hidden}; {on_cores}"
        return Finding("note", "GPU", found, "unset it, or name GPUs in it")
    found = f"an NVIDIA driver is here, but torch sees no GPU; {on_cores}" + (f" ({warning})" if warning else "")
    advice = f"see whether `nvidia-smi` works, and whether its driver is new enough for CUDA {torch.version.cuda}"
    return Finding("lack", "GPU", found, advice)


def mps() -> Iterator[Finding]:
    """Yield that Apple's GPU is not used, where there is one; nothing elsewhere."""
    if torch.backends.mps.is_available():
        found = "torch sees Apple's GPU (MPS); sam-bench does not use it: runs take CUDA GPUs, else CPU cores"
        yield Finding("note", "MPS", found, "nothing to do; runs use the CPU cores")


def precision() -> Iterator[Finding]:
    """Yield the precisions that are fast on the device that runs will have."""
    if _gpu_count():
        # Without emulation: what is emulated is slower than fp32.
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        words = "bf16 and tf32 pay on this GPU" if bf16 else "fp32 alone: this GPU has neither bf16 nor tf32"
        yield Finding("ok", "precision", words, "" if bf16 else _AS_FP32)
    elif platform.system() != "Linux":
        yield Finding("ok", "precision", "fp32; this system does not tell whether the CPU multiplies bf16 matrices")
    elif has_bf16_units():
        yield Finding("ok", "precision", "fp32, and bf16: this CPU multiplies bf16 matrices in hardware")
    else:
        yield Finding("ok", "precision", "fp32 alone: on this CPU bf16 is slower (no AMX), tf32 the same", _AS_FP32)


_AS_FP32 = 'an experiment with train.precision = "bf16": --set train.precision=\'"fp32"\''


# ---- what the system tells -----------------------------------------------------------------------------------


def _gpu_count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limits(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the folder and the content of a file of this process's cgroup and of all those above it."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return
    folder = CGROUPS / own
    for one in (folder, *folder.parents):
        if not one.is_relative_to(CGROUPS):
            return
        try:
            yield one, (one / name).read_text()
        except OSError:  # the root has none, nor has a system with other cgroups
            continue


def _quota() -> float | None:
    """Return the cores whose time this process gets at most; None without a limit."""
    quotas = []
    for _, text in _limits("cpu.max"):
        most, _, period = text.partition(" ")
        if most.isdecimal() and period.strip().isdecimal():
            quotas.append(int(most) / int(period))
    return min(quotas, default=None)


def _free_memory() -> float | None:
    """Return the bytes that are free for this process; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable")]
    for folder, text in _limits("memory.max"):
        if text.strip().isdecimal():
            try:
                used = int((folder / "memory.current").read_text()) - _cached(folder / "memory.stat")
            except (OSError, ValueError):
                continue
            free.append(max(0.0, int(text) - used))
    return min(free, default=None)


def _cached(path: Path) -> int:
    """Return the bytes of files in memory, which the kernel gives up when they are needed."""
    fields = dict(line.split(" ", 1) for line in path.read_text().splitlines() if " " in line)
    return int(fields.get("inactive_file", 0))
