"""Checkpoints: the file with a run's whole state (`bench.training.state`), and the previous file.

And the weights a run ends with, in a file of their own, where somebody has asked for them.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.core.process_group import ProcessGroup
from bench.store.files import open_regular
from bench.store.run_folder import RunFolder, atomic_path, storage_error, write_atomic

FORMAT = 3
"""Version of the state; a checkpoint of an older version is not resumed."""


class StateDict(TypedDict):
    """The content of a checkpoint: the one list of keys that saving, loading and checking use."""

    run_id: str
    # A `Progress`. Under another key the checkpoints of format 3 could not be resumed.
    place: dict[str, Any]
    model: dict[str, Tensor]
    # Those that the model leaves out of its state_dict; absent in checkpoints of older versions.
    buffers: NotRequired[dict[str, Tensor]]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    random: dict[str, Any]
    others: list[dict[str, Any]]
    clocks: dict[str, Any]
    work: float
    curve: list[dict[str, Any]]
    # The sha256 over all keys above, at all depths; absent in checkpoints of older versions.
    keys: NotRequired[str]


def save(folder: RunFolder, state: StateDict) -> None:
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
                os.fsync(file.fileno())  # before the rename: a crash must not leave the name without the content
        except RuntimeError as error:  # torch hides the system's error when a write falls short
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
        if folder.checkpoint.exists():  # it moves aside before the new one takes its name, as this context ends
            os.replace(folder.checkpoint, folder.checkpoint_before)


def load(path: Path, run_id: str, device: torch.device | None = None) -> StateDict:
    """Read a state back, tensors and plain values only: nothing in the file is ever executed.

    Args:
        device: where tensors go, after every byte was compared with the file's checksums. None leaves tensors on disk
            and checks only the shape of the file, which is fast.

    Raises:
        BenchError: the file is damaged, is no checkpoint, belongs to another run, or is of an older version.
    """
    try:
        # A FIFO, for one, would be waited for without end.
        os.close(open_regular(path))
        if device is not None:
            _check_bytes(path)
        state = torch.load(path, map_location=device or "cpu", mmap=device is None, weights_only=True)
    # A lack of memory says nothing about the file: it must not be called damaged.
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # readers of a damaged file raise nearly anything: KeyError, struct.error, zlib.error
        raise BenchError(f"{path} is damaged ({_reason(error)}); {_DELETE}") from error
    if not isinstance(state, dict) or state.get("run_id") != run_id:
        other = state.get("run_id") if isinstance(state, dict) else None
        raise BenchError(f"{path} belongs to run {other}, not {run_id}; {_DELETE}")
    if state.get("format") != FORMAT:
        raise BenchError(f"{path} was written by an older version of this package; {_DELETE}")
    if missing := set(StateDict.__annotations__) - {"buffers", "keys"} - state.keys():
        raise BenchError(f"{path} is damaged (it lacks {', '.join(sorted(missing))}); {_DELETE}")
    return cast(StateDict, state)


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
    group: ProcessGroup,
    restore: Callable[[StateDict], None],
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
    # The first process lists the files, so that all processes try the same ones in the same order, the newest first.
    for name in group.from_first([path.name for path in folder.checkpoints()]):
        path = folder.path / name
        try:
            _restore(path, folder.run_id, device, restore)
            fault = ""
        except BenchError as error:
            fault = str(error)
        # One process that cannot read the file is enough: all of them then go to the file before it.
        if faults_here := [one for one in group.gathered(fault) if one]:
            faults.append(faults_here[0])
            continue
        if faults and group.is_first:
            # In the place of the damaged one, which the next save would else keep instead of this one.
            _move(path, folder.checkpoint)
            what = faults[0].removesuffix(f"; {_DELETE}")
            say(f"{what}; the run resumes from the checkpoint before it")
        return True
    if faults:
        raise BenchError("\n".join(faults))
    return False


def _restore(path: Path, run_id: str, device: torch.device, restore: Callable[[StateDict], None]) -> None:
    state = load(path, run_id, device)
    try:
        restore(state)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BenchError(f"{path} does not fit this run ({_reason(error)}); {_DELETE}") from error


def _move(path: Path, to: Path) -> None:
    try:
        os.replace(path, to)
    except OSError as error:
        raise storage_error(to, error) from error


def _check_bytes(path: Path) -> None:
    """Compare all content with the checksums that torch wrote beside it, which torch.load does not check."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise ValueError(f"wrong checksum of {damaged}")


def _reason(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"no {first}" if isinstance(error, KeyError) else first or type(error).__name__


_DELETE = "delete it to start this run from the beginning"


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
    """Load kept weights into a model built from the same spec.

    Raises:
        BenchError: the file is damaged, or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        os.close(open_regular(path))
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise BenchError(f"{path} does not hold the weights of this run ({reason}); delete it") from error
