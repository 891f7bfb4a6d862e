"""Precision, deterministic kernels and compilation of a device."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.spec import TrainSettings

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Setting that cuBLAS needs for determinism; it is read when the process first uses the GPU."""


def allow_deterministic_kernels() -> None:
    """Prepare this process, and those it starts, for `deterministic = true`; to be called before a GPU is used."""
    os.environ.setdefault(*CUBLAS_WORKSPACE)


@functools.cache
def has_bf16_units() -> bool:
    """Return whether this machine's CPU multiplies bf16 matrices in hardware; True if the system does not tell.

    These are AMX on x86 and the bf16 extension on ARM. AVX-512's bf16 instructions do not count: with them alone bf16
    runs took 1.2 to 2 times as long as fp32 ones.
    """
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    # x86 calls them flags, ARM Features.
    flags = {flag for line in text.splitlines() if line.startswith(("flags", "Features")) for flag in line.split()}
    return not flags or bool(flags & {"amx_bf16", "bf16"})


def set_precision(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Set the process's switches as a run wants them (all of them, since the last run may have set them otherwise).

    Returns:
        The autocast that forward passes shall run under; it may be entered any number of times.
    """
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"  # torch's own default is True
    # cuDNN's benchmark chooses kernels by measured time: another run may choose others, which round differently.
    torch.backends.cudnn.benchmark = not settings.deterministic
    # On a CPU bits repeat without it.
    torch.use_deterministic_algorithms(settings.deterministic and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


_kept: str | None = None
"""Key of the compiled code that this process keeps."""


def compiled(model: nn.Module, settings: TrainSettings, *, dynamic: bool = False, code: str | None = None) -> nn.Module:
    """Return the module to train through: the model itself, or a compiled twin with its parameters and buffers.

    Compiled code outlives a run: one that needs the same as the last compiled run of this process does not compile it
    anew. A process never keeps more than the code of one kind of run.

    Args:
        dynamic: whether batches come in many widths.
        code: what tells the code that a run needs from that of any other; None where what torch compiles for a run may
            depend on the runs before it, so that it has to begin with nothing.

    Raises:
        BenchError: CUDA graphs are asked for, but batches come in many widths.
    """
    if settings.cuda_graphs and dynamic:
        raise BenchError("train.cuda_graphs needs batches of one shape, but batches of texts vary in width")
    if not settings.compile:
        return model
    global _kept
    if code is None or code != _kept:
        torch.compiler.reset()  # a worker's many models would soon reach the limit after which torch compiles no more
    _kept = code
    # torch's name for compiled code that is replayed as CUDA graphs.
    mode = "reduce-overhead" if settings.cuda_graphs else None
    twin: nn.Module = torch.compile(model, mode=mode, dynamic=dynamic)  # type: ignore[assignment]
    return twin


@contextmanager
def compilation_errors_told() -> Iterator[None]:
    """Turn an error of torch.compile, which is pages long, into one message that says what to do."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(
            f"torch.compile fails for this model on this machine ({type(error).__name__}: {reason}); "
            "compilation needs a C++ compiler, and Triton on a GPU; or set train.compile = false"
        ) from error
