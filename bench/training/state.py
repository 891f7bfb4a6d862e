"""The state of a run between two steps, and its conversion to the content of a checkpoint and back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.core.seeding import StreamState, continued, state_of
from bench.optim.base.schedule import Scheduler
from bench.training.checkpoint import StateDict
from bench.training.step import TrainingRun

NUMPY: Any = np.random
"""The global generator of numpy: the module has the methods of one."""


@dataclass
class Clocks:
    """The costs of a run, summed over interruptions. Seconds are taken with the device synchronised."""

    setup_seconds: float = 0.0
    train_seconds: float = 0.0
    train_cpu_seconds: float = 0.0
    """CPU time of this process, all of its threads, in `train_seconds`: less than usual on a machine that is busy."""
    eval_seconds: float = 0.0
    passes: int = 0
    """Forward-backward passes over a batch."""
    examples: int = 0
    """Training examples that took part in a step."""
    tokens: int = 0
    """Tokens of these, without padding, where they are texts."""
    skipped_steps: int = 0
    """Steps left out because a gradient was not finite."""
    peak_memory_mb: float = 0.0
    resumes: int = 0


@dataclass(frozen=True)
class Progress:
    """The position of a run in its epochs, with the sums of the present epoch.

    Attributes:
        step: steps of this epoch that are done.
        lr: at the beginning of the epoch.
        loss_sum: of its steps.
        augment: the state of its stream of augmentation; None at its beginning.
    """

    epoch: int = 0
    step: int = 0
    lr: float = 0.0
    loss_sum: float = 0.0
    augment: StreamState | None = None


@dataclass
class TrainingState:
    """A run between two steps.

    Attributes:
        run: its model, its optimizer and the work done so far.
        curve: the measurements so far, a point per evaluation.
        skipped_before: steps that were skipped before the run was resumed.
    """

    run_id: str
    run: TrainingRun
    schedule: Scheduler
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    clocks: Clocks = field(default_factory=Clocks)
    curve: list[dict[str, Any]] = field(default_factory=list)
    skipped_before: int = 0

    def state_dict(self) -> StateDict:
        """Return what a checkpoint holds; every process of the run has to call this."""
        # Without the first process's, whose state is under "model" and "random": the list begins with rank 1.
        _, *others = self.run.group.gathered(_own(self.run.model, self.device))
        state: StateDict = {
            "run_id": self.run_id,
            "place": asdict(self.progress),
            "model": self.run.model.state_dict(),
            "buffers": _others_than(self.run.model),
            "optimizer": self.run.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": _random_state(self.device),
            "others": others,
            "clocks": asdict(self.clocks),
            # Unlike `clocks.passes`, which is made of it, this number is not rounded.
            "work": self.run.work,
            "curve": self.curve,
        }
        state["keys"] = _keys_sha256(state)
        return state

    def load_state_dict(self, state: StateDict) -> None:
        """Restore this process's part of the run from the content of a checkpoint.

        Raises:
            LookupError: a key is missing, at any depth.
        """
        # A new optimizer has no state yet: of its part only the groups and their settings are compared.
        like = {
            "place": asdict(Progress()),
            "clocks": asdict(Clocks()),
            "schedule": self.schedule.state_dict(),
            "optimizer": self.run.optimizer.state_dict(),
        }
        _check_keys(state, like)  # before anything is loaded: an older checkpoint may be tried after this one
        # Also of the parts that a new run has not got yet, as the state of each parameter. Older checkpoints lack it.
        if state.get("keys", keys := _keys_sha256(state)) != keys:
            gone = [key for key in StateDict.__annotations__ if key not in state]
            raise LookupError(f"it lacks {', '.join(gone) or 'a key, or has one more'}")
        self.run.model.load_state_dict(state["model"])
        # Checkpoints of older versions have neither these nor the states of Python's and numpy's generators.
        _set_buffers(state.get("buffers", {}), self.run.model)
        self.run.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        _set_random_state(state["random"], self.device)
        # After "model" and "random" above, which are the first process's in all processes.
        if not self.run.group.is_first:
            _set_own(state["others"][self.run.group.rank - 1], self.run.model, self.device)
        self.progress, self.clocks = Progress(**state["place"]), Clocks(**state["clocks"])
        self.curve = state["curve"]
        self.run.work = state["work"]
        # The optimizer counts skipped steps from 0 again: see `take_steps`.
        self.skipped_before = self.clocks.skipped_steps


def _check_keys(state: Any, like: Any, place: str = "") -> None:
    """Raise LookupError if a state lacks a key of the present state `like`, at any depth.

    Defaults would fill in for the key, and the run would go on with other numbers.
    """
    if isinstance(like, dict):
        for key, value in like.items():
            if key not in state:
                raise LookupError(f"it lacks {place}{key}")
            _check_keys(state[key], value, f"{place}{key}.")
    elif isinstance(like, list):
        # strict: another number of parameter groups is an error, too.
        for number, (value, kept) in enumerate(zip(like, state, strict=True)):
            _check_keys(kept, value, f"{place}{number}.")


def _keys_sha256(state: StateDict) -> str:
    """Return the sha256 over the keys of a checkpoint at all depths, its own and the version of the file left out."""
    parts = {key: value for key, value in state.items() if key not in ("keys", "format")}
    return hashlib.sha256("\n".join(sorted(_keys(parts))).encode()).hexdigest()


def _keys(value: Any, place: str = "") -> Iterator[str]:
    yield place
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _keys(inner, f"{place}/{key!r}")


def _own(model: nn.Module, device: torch.device) -> dict[str, Any]:
    """Return the state that each of several processes keeps for itself: random state and model buffers, on the host."""
    buffers = {name: buffer.cpu() for name, buffer in model.named_buffers()}
    return {"random": _random_state(device), "buffers": buffers}


def _others_than(model: nn.Module) -> dict[str, Tensor]:
    """Return the buffers that a model leaves out of its state_dict (persistent=False)."""
    kept = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in kept}


def _set_own(state: dict[str, Any], model: nn.Module, device: torch.device) -> None:
    _set_random_state(state["random"], device)
    _set_buffers(state["buffers"], model)


@torch.no_grad()
def _set_buffers(kept: dict[str, Tensor], model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if name in kept:
            buffer.copy_(kept[name])


def _random_state(device: torch.device) -> dict[str, Any]:
    # Some models drop layers by Python's or numpy's numbers (transformers' encoders), a user's own may as well.
    state = {"host": torch.get_rng_state(), "python": random.getstate(), "numpy": state_of(NUMPY)}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    if "numpy" in state:
        random.setstate(state["python"])
        continued(NUMPY, state["numpy"])
    # .cpu(): loading puts every tensor on the run's device, but generators take their state from the host.
    torch.set_rng_state(state["host"].cpu())
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"].cpu(), device)
