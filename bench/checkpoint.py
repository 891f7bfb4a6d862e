"""A run's whole state between two steps, in one file: model, optimizer, schedule, random numbers, clocks, curve.

And the weights it ends with, in another, where somebody has asked for them.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.errors import BenchError
from bench.store import atomic_path, write_atomic

FORMAT = 3
"""Of the state; one that an older version of the package wrote is not gone on from."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state atomically: a process killed here leaves the checkpoint before.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with atomic_path(path) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch hides the system's error when a write falls short
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def load(path: Path, run_id: str, device: torch.device | None = None) -> dict[str, Any]:
    """Read a state back, tensors and plain values only: nothing in the file is ever executed.

    Args:
        device: where tensors go; None leaves them on disk, which is enough to see that the file is whole.

    Raises:
        BenchError: the file is cut short, is no checkpoint, belongs to another run, or is of an older version.
    """
    try:
        state = torch.load(path, map_location=device or "cpu", mmap=device is None, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise BenchError(f"{path} is damaged ({reason}); delete it to run this one from the beginning") from error
    if not isinstance(state, dict) or state.get("run_id") != run_id:
        other = state.get("run_id") if isinstance(state, dict) else None
        raise BenchError(f"{path} belongs to run {other}, not {run_id}; delete it to run this one from the beginning")
    if state.get("format") != FORMAT:
        raise BenchError(f"{path} is of an older version of this package; delete it to run this one from the beginning")
    return state


def keep_weights(path: Path, model: nn.Module, about: dict[str, str]) -> None:
    """Write all parameters and buffers as safetensors, atomically.

    Args:
        about: goes into the file's header.

    Raises:
        StorageError: the disk is full or refuses.
    """
    from safetensors.torch import save

    # Copies: the format has no room for tensors that share memory.
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    write_atomic(path, save(tensors, metadata=about))


def load_weights(path: Path, model: nn.Module) -> None:
    """Put kept weights into a model that was built as theirs was.

    Raises:
        BenchError: the file is damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(f"{path} does not hold the weights of this run ({reason}); delete it") from error


def own(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """What one process of several has for itself: random numbers and the model's buffers, on the host."""
    buffers = {name: buffer.cpu() for name, buffer in model.named_buffers()}
    return {"random": random_state(device), "buffers": buffers}


@torch.no_grad()
def set_own(state: dict[str, Any], model: nn.Module, device: torch.device) -> None:
    set_random_state(state["random"], device)
    for name, buffer in model.named_buffers():
        buffer.copy_(state["buffers"][name])


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    state = {"host": torch.get_rng_state()}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["host"].cpu())
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"].cpu(), device)
