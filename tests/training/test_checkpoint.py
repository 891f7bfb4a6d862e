"""Checkpoints: one that is damaged is noticed, told, and the one before it is gone on from."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.core.errors import BenchError
from bench.launch import plan
from bench.store.run_folder import RunFolder, Store
from bench.train import Stopped, train
from bench.training import checkpoint
from tests.test_train import CPU, EPOCH, do, make_spec, numbers, optimizer_choice, stop_after

Damage = Callable[[Path], object]


SPEC = make_spec(optimizer_choice("sam", "sgd", momentum=0.9))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that was stopped twice, with its two checkpoints."""
    root = tmp_path_factory.mktemp("original")
    for asked in (4, EPOCH):
        with pytest.raises(Stopped):
            do(SPEC, root, stop=stop_after(asked))
    return Store(root).run(SPEC.run_id)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same run, never stopped."""
    root = tmp_path_factory.mktemp("straight")
    do(SPEC, root)
    return Store(root).run(SPEC.run_id)


@pytest.fixture
def folder(original: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the stopped run, to be damaged."""
    folder = Store(tmp_path).run(SPEC.run_id)
    shutil.copytree(original.path, folder.path)
    assert folder.checkpoints() == [folder.checkpoint, folder.checkpoint_before]
    return folder


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def rewritten(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change what is in a checkpoint, with right checksums."""

    def damage(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def in_the_weights(path: Path) -> None:
    """One bit of the first layer, which only a checksum can notice."""
    weight = torch.load(path, weights_only=True)["model"]["1.weight"]
    flip(path, path.read_bytes().index(weight.numpy().tobytes()) + 5)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Damage, str]] = {
    "a bit of a weight": (in_the_weights, r"is damaged \(wrong checksum of"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "is damaged"),
    "a FIFO": (a_fifo, r"is damaged \(.*not a regular file"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "no key work": (rewritten(lambda state: state.pop("work")), r"is damaged \(it lacks work\)"),
    "no key place.step": (rewritten(lambda state: state["place"].pop("step")), r"\(it lacks place\.step\)"),
    "no lr": (
        rewritten(lambda s: s["optimizer"]["param_groups"][0].pop("lr")),
        r"lacks optimizer\.param_groups\.0\.lr",
    ),
    "no last_epoch": (rewritten(lambda s: s["schedule"].pop("last_epoch")), r"it lacks schedule\.last_epoch"),
    "no momentum of a parameter": (
        rewritten(lambda s: s["optimizer"]["state"].pop(0)),
        r"\(it lacks a key, or has one",
    ),
    "no momentum at all": (
        rewritten(lambda s: s["optimizer"]["state"].clear()),
        r"\(it lacks a key, or has one more\)",
    ),
    "no numbers of numpy": (rewritten(lambda s: s["random"].pop("numpy")), r"\(it lacks a key, or has one more\)"),
    "a point of the curve less": (rewritten(lambda s: s["curve"].pop()), r"\(it lacks a key, or has one more\)"),
    "no weight": (rewritten(lambda state: state["model"].pop("1.weight")), "does not fit this run"),
    "another run's": (rewritten(lambda state: state.update(run_id="f00")), "belongs to run f00"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_gone_on_from(
    folder: RunFolder, straight: RunFolder, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGE[name]
    damage(folder.checkpoint)
    plan._statuses(Store(tmp_path), [folder.run_id])  # the launch is not refused
    with pytest.warns(UserWarning, match=message) as told:
        assert do(SPEC, tmp_path)["resumes"] == 1  # of the older state, which had none
    assert str(told[0].message).startswith(str(folder.checkpoint))
    assert str(told[0].message).endswith("; the run resumes from the checkpoint before it")
    assert numbers(folder) == numbers(straight)
    assert folder.checkpoints() == []


def test_no_flipped_bit_is_gone_on_from(folder: RunFolder) -> None:
    """Either it is refused, or it was in a place that means nothing and the state is the same to the bit."""

    def content() -> str:
        state = checkpoint.load(folder.checkpoint, SPEC.run_id, CPU)
        return json.dumps(state, default=lambda tensor: tensor.numpy().tobytes().hex())

    whole, dice, refused = folder.checkpoint.read_bytes(), random.Random(0), 0
    expected = content()
    for _ in range(150):
        flip(folder.checkpoint, dice.randrange(len(whole)), dice.randrange(8))
        try:
            assert content() == expected
        except BenchError:
            refused += 1
        folder.checkpoint.write_bytes(whole)
    assert refused > 50


def test_the_good_checkpoint_is_kept_when_the_next_one_is_saved(folder: RunFolder) -> None:
    """And not the damaged one in its stead."""
    good = folder.checkpoint_before.read_bytes()
    in_the_weights(folder.checkpoint)
    with folder.claim(), pytest.raises(Stopped), pytest.warns(UserWarning, match="wrong checksum"):
        train(SPEC, folder, CPU, stop=stop_after(1))
    assert folder.checkpoint_before.read_bytes() == good
    assert checkpoint.load(folder.checkpoint, SPEC.run_id, CPU)["place"]["step"] == 5


def test_a_run_whose_newest_checkpoint_is_gone_goes_on_from_the_one_before(folder: RunFolder, tmp_path: Path) -> None:
    """As after a kill between the two renames of a save."""
    folder.checkpoint.unlink()
    assert folder.status() == "partial"
    assert do(SPEC, tmp_path)["resumes"] == 1


def test_without_a_good_checkpoint_all_faults_are_told(folder: RunFolder, tmp_path: Path) -> None:
    for path in folder.checkpoints():
        path.write_bytes(b"no")
    both = rf"{folder.checkpoint} is damaged .*; delete it .*\n{folder.checkpoint_before} is damaged .*; delete it"
    with pytest.raises(BenchError, match=both):
        plan._statuses(Store(tmp_path), [folder.run_id])
    with pytest.raises(BenchError, match=both):
        do(SPEC, tmp_path)
    assert len(folder.checkpoints()) == 2


# ---- what is refused -----------------------------------------------------------------------------------------


def test_a_checkpoint_of_an_older_version_is_told(tmp_path: Path) -> None:
    spec = make_spec()
    with pytest.raises(Stopped):
        do(spec, tmp_path, stop=stop_after(1))
    path = Store(tmp_path).run(spec.run_id).checkpoint
    state = torch.load(path, weights_only=True)
    del state["format"]
    torch.save(state, path)
    with pytest.raises(BenchError, match=r"checkpoint\.pt was written by an older version .* delete it"):
        do(spec, tmp_path)


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    spec = make_spec()
    with pytest.raises(Stopped):
        do(spec, tmp_path, stop=stop_after(1))
    path = Store(tmp_path).run(spec.run_id).checkpoint
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BenchError, match=r"checkpoint\.pt is damaged .* delete it"):
        do(spec, tmp_path)
    path.write_bytes(b"not a checkpoint at all")
    with pytest.raises(BenchError, match="is damaged"):
        do(spec, tmp_path)
    path.write_bytes(whole)
    other = make_spec(seed=9)
    foreign = Store(tmp_path).run(other.run_id)
    foreign.path.mkdir()
    foreign.checkpoint.write_bytes(whole)
    with pytest.raises(BenchError, match=f"belongs to run {spec.run_id}, not {other.run_id}"):
        do(other, tmp_path)
    assert foreign.result() is None


def test_a_checkpoint_is_never_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    torch.save({"run_id": "x", "evil": Evil()}, tmp_path / "checkpoint.pt")
    with pytest.raises(BenchError, match="is damaged"):
        checkpoint.load(tmp_path / "checkpoint.pt", "x")
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_no_regular_file_are_told_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "weights.safetensors")
    with pytest.raises(BenchError, match=r"does not hold the weights of this run \(.*not a regular file"):
        checkpoint.load_weights(tmp_path / "weights.safetensors", torch.nn.Linear(1, 1))
