"""How exactly, and how fast, a device computes: precision, deterministic kernels, compilation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bench.errors import BenchError
from bench.spec import TrainSettings

CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""What cuBLAS asks for before it computes deterministically; it is read when the process first uses the GPU."""


def allow_deterministic_kernels() -> None:
    """Prepare this process, and those it starts, for `deterministic = true`; to be called before a GPU is used."""
    os.environ.setdefault(*CUBLAS_WORKSPACE)


def set_precision(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Set the process's switches as a run wants them (all of them, since the last run may have set them otherwise).

    Returns:
        The autocast that forward passes shall run under; it may be entered any number of times.
    """
    torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"  # torch's own default is True
    torch.backends.cudnn.benchmark = not settings.deterministic
    torch.use_deterministic_algorithms(settings.deterministic and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16")


def compiled(model: nn.Module, settings: TrainSettings, *, dynamic: bool = False) -> nn.Module:
    """The module to train through: the model itself, or a compiled twin that shares its parameters and buffers.

    Args:
        dynamic: whether batches come in many widths.

    Raises:
        BenchError: CUDA graphs are asked for, and they do.
    """
    if settings.cuda_graphs and dynamic:
        raise BenchError("train.cuda_graphs needs batches of one shape; those of texts are as wide as their longest")
    if not settings.compile:
        return model
    torch.compiler.reset()  # or a worker's many models soon reach the limit after which torch compiles no more
    mode = "reduce-overhead" if settings.cuda_graphs else None
    twin: nn.Module = torch.compile(model, mode=mode, dynamic=dynamic)  # type: ignore[assignment]
    return twin


@contextmanager
def compilation_errors_told() -> Iterator[None]:
    """What torch.compile throws (pages of it) as one message that says what to do."""
    from torch._dynamo.exc import TorchDynamoException

    try:
        yield
    except TorchDynamoException as error:
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(
            f"torch.compile fails for this model on this machine ({type(error).__name__}: {reason}); "
            "compilation needs a C++ compiler, and Triton on a GPU: train.compile = false does without"
        ) from error
