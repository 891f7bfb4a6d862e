"""Augmentation drawn for many steps ahead: the numbers of a run that draws in every step, also after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Tensor

from bench.core.registry import load_builtins, models, optimizers
from bench.core.seeding import state_of
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.augment import on_device
from bench.data.batching import Batch
from bench.store.run_folder import Store
from bench.tasks.digits import Digits
from bench.tasks.images import Augment
from bench.train import Stopped, train
from bench.training import draws
from bench.training.draws import Draws
from tests.tasks.test_images import Colour, batch

load_builtins()
CPU = torch.device("cpu")
BATCHES = [Batch(torch.arange(8))] * 7


class DrawsItself(Colour):
    """A user's task with an augmentation of its own, as docs/your-own-model.md has it."""

    def training_batch(self, inputs: Tensor, targets: Tensor, random: RandomState) -> tuple[Tensor, Tensor]:
        images, targets = super().training_batch(inputs, targets, random)
        return images * torch.tensor(random.uniform(0.8, 1.2, len(images))).view(-1, 1, 1, 1), targets


@pytest.fixture(autouse=True)
def three_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "AHEAD", 3)


@pytest.mark.parametrize("alpha", [0.0, 0.4])
@pytest.mark.parametrize("level", get_args(Augment))
def test_numbers_and_states_are_those_of_drawing_batch_by_batch(level: Augment, alpha: float) -> None:
    task, stream = Colour(augment=level, mixup=alpha), RandomState(3)
    inputs, targets = batch(task, 8)
    ahead = Draws(task, BATCHES, RandomState(3), CPU)
    for number, drawn in enumerate(ahead, start=1):
        for made, expected in zip(
            task.augmented(inputs, targets, drawn),  # type: ignore[arg-type]
            task.training_batch(inputs, targets, stream),
            strict=True,
        ):
            assert torch.equal(made, expected)
        assert ahead.state_after(number) == state_of(stream), number
    assert number == len(BATCHES)


def test_a_task_that_draws_in_its_training_batch_gets_the_stream() -> None:
    task, stream, alone = DrawsItself(), RandomState(3), RandomState(3)
    inputs, targets = batch(task, 8)
    ahead = Draws(task, BATCHES, stream, CPU)
    for number, drawn in enumerate(ahead, start=1):
        assert drawn is stream
        made, expected = (task.training_batch(inputs, targets, one)[0] for one in (stream, alone))
        assert torch.equal(made, expected)
        assert ahead.state_after(number) == state_of(alone)
    one = Colour()
    one.training_batch = lambda inputs, targets, random: (inputs, targets)  # type: ignore[method-assign]
    assert next(iter(Draws(one, BATCHES, stream, CPU))) is stream, "an override of one object"


def test_draws_of_many_batches_are_moved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []

    def counted(drawn: Any, device: torch.device) -> Any:
        moved.append(len(drawn))
        return on_device(drawn, device)

    monkeypatch.setattr(draws, "on_device", counted)
    assert len(list(Draws(Colour(), BATCHES, RandomState(0), CPU))) == 7
    assert moved == [3, 3, 1]


def make_spec() -> RunSpec:
    sgd = optimizers["sgd"].schema.model_validate({"lr": 0.1}).model_dump()
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=ComponentSpec(name="mlp", params=models["mlp"].schema().model_dump() | {"width": 8, "depth": 1}),
        optimizer=OptimizerSpec(name="sgd", params=sgd),
        data=DataSettings(),
        train=TrainSettings(epochs=2, batch_size=120),
        seed=0,
    )


def test_a_run_stopped_in_mid_epoch_ends_with_the_bits_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec()

    def do(name: str, stop_after: int = 0) -> str:
        asked = iter(range(1, 1000))
        folder = Store(tmp_path / name).run(spec.run_id)
        with folder.claim():
            return str(train(spec, folder, CPU, stop=lambda: next(asked) == stop_after)["weights_sha256"])

    straight = do("straight")
    for after in (5, 2):  # in the second block of an epoch; then in the first one after the resume
        with pytest.raises(Stopped):
            do("stopped", after)
    assert do("stopped") == straight
    monkeypatch.setattr(Draws, "state_after", lambda self, count: state_of(np.random.RandomState(0)))
    with pytest.raises(Stopped):
        do("wrong", 5)
    assert do("wrong") != straight, "the state of the stream decides"


def test_the_draws_of_digits_are_none_without_augmentation() -> None:
    assert Digits().draw(5, RandomState(0)) == ()
    assert list(Draws(Digits(), BATCHES, RandomState(0), CPU)) == [()] * 7
