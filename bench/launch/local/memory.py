"""Recognition of errors that mean out of memory, on a GPU or on the machine."""

from __future__ import annotations

import errno

import torch

# RuntimeErrors of torch that have no class of their own, unlike torch.OutOfMemoryError.
_MESSAGES = (
    "can't allocate memory",  # torch on a CPU: a RuntimeError of its DefaultCPUAllocator
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException | None) -> str | None:
    """Return one line that names the memory that ran out, if this error or one of its causes says so; else None."""
    # A chain of causes may lead back to itself.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if _says_so(error):
            first = str(error).partition("\n")[0].strip()
            return f"out of memory: {first or type(error).__name__}"
        error = error.__cause__
    return None


def _says_so(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)
