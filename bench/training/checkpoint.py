"""A run's whole state between two steps, in one file: model, optimizer, schedule, random numbers, clocks, curve.

And the weights it ends with, in another, where somebody has asked for them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.process_group import Group
from bench.store.run_folder import RunFolder, atomic_path, storage_error, write_atomic

FORMAT = 3
"""Of the state; one that an older version of the package wrote is not gone on from."""

KEYS = {"run_id", "place", "model", "optimizer", "schedule", "random", "others", "clocks", "work", "curve"}
"""What a state consists of."""


def save(folder: RunFolder, state: dict[str, Any]) -> None:
    """Write the state atomically and keep the checkpoint before it.

    A process killed here leaves at least one whole checkpoint.

    Raises:
        StorageError: the disk is full or refuses.
    """
    with atomic_path(folder.checkpoint) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
        except RuntimeError as error:  # torch hides the system's error when a write falls short
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        if folder.checkpoint.exists():
            os.replace(folder.checkpoint, folder.checkpoint_before)


def load(path: Path, run_id: str, device: torch.device | None = None) -> dict[str, Any]:
    """Read a state back, tensors and plain values only: nothing in the file is ever executed.

    Args:
        device: where tensors go, after every byte was compared with the file's checksums. None leaves tensors on disk
            and checks only the shape of the file, which is fast.

    Raises:
        BenchError: the file is damaged, is no checkpoint, belongs to another run, or is of an older version.
    """
    try:
        if device is not None:
            _check_bytes(path)
        state = torch.load(path, map_location=device or "cpu", mmap=device is None, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # readers of a damaged file raise nearly anything: KeyError, struct.error, zlib.error
        raise BenchError(f"{path} is damaged ({_reason(error)}); {_DELETE}") from error
    if not isinstance(state, dict) or state.get("run_id") != run_id:
        other = state.get("run_id") if isinstance(state, dict) else None
        raise BenchError(f"{path} belongs to run {other}, not {run_id}; {_DELETE}")
    if state.get("format") != FORMAT:
        raise BenchError(f"{path} is of an older version of this package; {_DELETE}")
    if missing := KEYS - state.keys():
        raise BenchError(f"{path} is damaged (it lacks {', '.join(sorted(missing))}); {_DELETE}")
    return state


def check(folder: RunFolder) -> None:
    """Raise BenchError if a run has checkpoints and none of them can be read.

    A quick look before a launch; `resume` compares checksums too.
    """
    faults = []
    for path in folder.checkpoints():
        try:
            load(path, folder.run_id)
            return
        except BenchError as error:
            faults.append(str(error))
    if faults:
        raise BenchError("\n".join(faults))


def resume(
    folder: RunFolder,
    device: torch.device,
    group: Group,
    restore: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> bool:
    """Restore the newest good checkpoint of a run, the same one in all of its processes.

    Args:
        restore: puts a state into model, optimizer and all else; called again with an older state where it fails.
        say: told, in the first process, of each checkpoint that was passed over.

    Returns:
        Whether there was a checkpoint; without one the run starts from the beginning.

    Raises:
        BenchError: there are checkpoints, and none is good.
    """
    faults: list[str] = []
    for name in group.from_first([path.name for path in folder.checkpoints()]):
        path = folder.path / name
        try:
            _restore(path, folder.run_id, device, restore)
            fault = ""
        except BenchError as error:
            fault = str(error)
        found = [one for one in group.gathered(fault) if one]
        if found:
            faults.append(found[0])
            continue
        if faults and group.is_first:
            # In the place of the damaged one, which the next save would else keep instead of this one.
            _move(path, folder.checkpoint)
            what = faults[0].removesuffix(f"; {_DELETE}")
            say(f"{what}; the run goes on from the checkpoint before it")
        return True
    if faults:
        raise BenchError("\n".join(faults))
    return False


def _restore(path: Path, run_id: str, device: torch.device, restore: Callable[[dict[str, Any]], None]) -> None:
    state = load(path, run_id, device)
    try:
        restore(state)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BenchError(f"{path} does not fit this run ({_reason(error)}); {_DELETE}") from error


def check_keys(state: Any, like: Any, place: str = "") -> None:
    """Raise LookupError if a state lacks a key that one of the same kind has, at any depth.

    Defaults would fill in for the key, and the run would go on with other numbers.
    """
    if isinstance(like, dict):
        for key, value in like.items():
            if key not in state:
                raise LookupError(f"it lacks {place}{key}")
            check_keys(state[key], value, f"{place}{key}.")
    elif isinstance(like, list):
        for number, (value, kept) in enumerate(zip(like, state, strict=True)):
            check_keys(kept, value, f"{place}{number}.")


def _move(path: Path, to: Path) -> None:
    try:
        os.replace(path, to)
    except OSError as error:
        raise storage_error(to, error) from error


def _check_bytes(path: Path) -> None:
    """Compare all content with the checksums that torch wrote beside it, and which torch.load does not look at."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"wrong checksum of {damaged}")


def _reason(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"no {first}" if isinstance(error, KeyError) else first or type(error).__name__


_DELETE = "delete it to run this one from the beginning"


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
    """Return the state that each of several processes keeps for itself: random state and model buffers, on the host."""
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
