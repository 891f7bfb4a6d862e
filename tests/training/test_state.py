"""A run's state between two steps: what is saved is what is loaded, every key of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.store.run_folder import Store
from bench.train import CheckpointTimer, Stopped, lr_schedule, save, take_steps
from bench.training import checkpoint
from bench.training.checkpoint import StateDict
from bench.training.environment import PeakMemory
from bench.training.state import Progress, TrainingState
from bench.training.step import set_up
from tests.test_train import CPU, make_spec, optimizer_choice, stop_after

KEYS = tuple(StateDict.__annotations__)
SPEC = make_spec(optimizer_choice("sam", "sgd", momentum=0.9))


def new_state(seed: int = 0) -> TrainingState:
    run = set_up(SPEC.model_copy(update={"seed": seed}), CPU)
    torch.manual_seed(seed)
    return TrainingState(SPEC.run_id, run, lr_schedule(SPEC, run), CPU)


def after_steps(count: int) -> TrainingState:
    """A run inside of its second epoch."""
    state = new_state()
    state.progress = Progress(1, lr=0.05)
    take_steps(state, CheckpointTimer(60, stop_after(count), state.run.group, CPU), PeakMemory(CPU))
    state.curve.append({"epoch": 1, "val_loss": 0.5})
    return state


def plain(value: Any) -> Any:
    """The same with lists in the place of tensors, which can be compared."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return dict(copy.deepcopy(after_steps(4).state_dict()))


def test_a_state_dict_has_every_key_in_the_order_of_its_type(saved: dict[str, Any]) -> None:
    assert tuple(saved) == KEYS
    assert (saved["place"]["epoch"], saved["place"]["step"]) == (1, 4)


@pytest.mark.parametrize("key", KEYS)
def test_what_is_loaded_is_what_was_saved(saved: dict[str, Any], key: str) -> None:
    other = new_state(seed=5)
    if key not in ("run_id", "others", "buffers"):  # a run by itself has no others, this model saves all its buffers
        assert plain(other.state_dict()[key]) != plain(saved[key])  # type: ignore[literal-required]
    other.load_state_dict(copy.deepcopy(saved))  # type: ignore[arg-type]
    assert plain(other.state_dict()[key]) == plain(saved[key])  # type: ignore[literal-required]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "keys"])  # older checkpoints lack this one
def test_a_key_that_is_missing_is_told(saved: dict[str, Any], key: str) -> None:
    without = {name: value for name, value in copy.deepcopy(saved).items() if name != key}
    with pytest.raises(LookupError, match=key):
        new_state().load_state_dict(without)  # type: ignore[arg-type]


def test_a_file_holds_it_all(tmp_path: Path, saved: dict[str, Any]) -> None:
    state = after_steps(4)
    folder = Store(tmp_path).run(SPEC.run_id)
    timer = CheckpointTimer(60, lambda: True, state.run.group, CPU)
    assert timer.is_due()
    with folder.claim():
        folder.path.mkdir(parents=True, exist_ok=True)
        with pytest.raises(Stopped):
            save(state, folder, timer)
    read = dict(checkpoint.load(folder.checkpoint, SPEC.run_id, CPU))
    assert read.pop("format") == checkpoint.FORMAT
    times = {"train_seconds", "train_cpu_seconds", "peak_memory_mb"}
    parts: list[dict[str, Any]] = [read, saved]
    for part in parts:
        part["clocks"] = {name: value for name, value in part["clocks"].items() if name not in times}
    assert plain(read) == plain(saved)
