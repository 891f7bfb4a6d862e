"""Whole runs on CIFAR: against a loop made of torchvision's parts, across a stop, in bf16, under conditions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch.nn import functional as F
from torchvision.transforms import functional as TF

import bench
from bench.analysis import tables as tables_module
from bench.analysis.study import Study
from bench.core.registry import load_builtins, models, optimizers, tasks
from bench.core.seeding import derive
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.datasets import data_folder as where_data_is
from bench.data.splits import held_out
from bench.store import records as results
from bench.store.run_folder import Store
from bench.tasks.cifar import CIFAR10, CIFAR100
from bench.train import Stopped, train
from bench.training.evaluate import evaluate
from bench.training.step import set_up

load_builtins()
CPU = torch.device("cpu")
EXAMPLES, BATCH, LR = 512, 64, 0.05


def make_spec(
    task: str = "cifar10", method: str = "sgd", settings: dict[str, Any] | None = None, **train: Any
) -> RunSpec:
    base = ComponentSpec(name="sgd", params=optimizers["sgd"].schema.model_validate({"lr": LR}).model_dump())
    optimizer = OptimizerSpec(name="sgd", params=base.params)
    if method == "sam":
        optimizer = OptimizerSpec(name="sam", params={"rho": 0.05, "m": None}, base=base)
    params = tasks[task].schema.model_validate({"allow_unverified_data": True} | (settings or {})).model_dump()
    return RunSpec(
        task=ComponentSpec(name=task, params=params),
        model=ComponentSpec(name="resnet8", params={"width": 8}),
        optimizer=optimizer,
        data=DataSettings(validation=0.1),
        train=TrainSettings(**({"epochs": 2, "batch_size": BATCH} | train)),
        seed=0,
    )


def do(spec: RunSpec, root: Path, **options: Any) -> dict[str, Any]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, CPU, **options)


# ---- real images, against torchvision ------------------------------------------------------------------------


class UncheckedCIFAR10(torchvision.datasets.CIFAR10):  # type: ignore[misc]
    """torchvision's own reader, for files that are not the official ones bit for bit."""

    meta = {**torchvision.datasets.CIFAR10.meta, "md5": None}  # noqa: RUF012 - torchvision's own class attribute

    def _check_integrity(self) -> bool:
        return True


def torchvision_epoch(spec: RunSpec, train_set: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> list[float]:
    """The losses of one epoch of a loop that shares with ours only the initial weights and the drawn numbers.

    torchvision reads the files and transforms the images, one at a time, and plain torch.optim.SGD updates a model in
    the default memory format.
    """
    held_in, _ = held_out(torch.tensor(train_set.targets), spec.data, spec.seed, spec.phase)
    torch.manual_seed(derive(0, "init"))
    model = models["resnet8"].build(tasks[spec.task.name].build(**spec.task.params), width=8).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)

    def stream(name: str) -> np.random.RandomState:
        number = derive(0, name, 0)  # type: ignore[arg-type]
        return np.random.RandomState([number & 0xFFFFFFFF, number >> 32])

    order, augment, losses = stream("order").permutation(EXAMPLES), stream("augment"), []
    for step in range(EXAMPLES // BATCH):
        tops, lefts = augment.randint(9, size=(2, BATCH, 1))[:, :, 0]
        mirrored = augment.randint(2, size=(BATCH, 1))[:, 0]
        images, labels = [], []
        for place, number in enumerate(order[step * BATCH : (step + 1) * BATCH]):
            image, label = train_set[int(held_in[number])]
            image = TF.crop(TF.pad(image, [4]), int(tops[place]), int(lefts[place]), 32, 32)
            image = TF.hflip(image) if mirrored[place] else image
            images.append(TF.normalize(TF.to_tensor(image), mean, std))
            labels.append(label)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.stack(images)), torch.tensor(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(("task", "pinned"), [("cifar10", 2.30908), ("cifar100", 4.69255)])
def test_an_epoch_on_real_images_has_the_losses_of_a_loop_of_torchvisions_parts(
    real_data: Callable[..., None], task: str, pinned: float
) -> None:
    ours = CIFAR10 if task == "cifar10" else CIFAR100
    real_data(ours.dataset)
    spec = make_spec(task).model_copy(update={"data": DataSettings(validation=0.1, train_size=EXAMPLES)})
    reader = UncheckedCIFAR10 if task == "cifar10" else torchvision.datasets.CIFAR100
    theirs = torchvision_epoch(spec, reader(where_data_is(), download=False), ours.mean, ours.std)

    run = set_up(spec, CPU)
    number = derive(0, "augment")
    augment = np.random.RandomState([number & 0xFFFFFFFF, number >> 32])
    run.model.train()
    losses = [run.step(batch, augment).item() for batch in run.batches(0)]

    assert losses == pytest.approx(theirs, rel=1e-3)
    assert np.mean(theirs) == pytest.approx(pinned, rel=2e-3)  # and both are what they were when this was written


@pytest.mark.slow
def test_bf16_learns_real_images_as_fp32_does(real_data: Callable[..., None], tmp_path: Path) -> None:
    real_data(CIFAR10.dataset)
    data = DataSettings(validation=0.01, train_size=2048)
    accuracy = {}
    for precision in ("fp32", "bf16"):
        spec = make_spec(precision=precision, epochs=3, eval_every=3).model_copy(update={"data": data})
        accuracy[precision] = do(spec, tmp_path)["metrics"]["test_acc"]
    assert accuracy["fp32"] > 0.2
    assert accuracy["bf16"] == pytest.approx(accuracy["fp32"], abs=0.04)


# ---- small stand-ins for the files ---------------------------------------------------------------------------


@pytest.mark.usefixtures("data_folder")
@pytest.mark.parametrize("method", ["sgd", "sam"])
@pytest.mark.parametrize("settings", [{"augment": "basic"}, {"augment": "autoaugment", "mixup": 1.0}])
def test_a_stopped_run_replays_its_augmentation_and_ends_with_the_same_bits(
    tmp_path: Path, method: str, settings: dict[str, Any]
) -> None:
    spec = make_spec(method=method, settings=settings, batch_size=16)
    straight = do(spec, tmp_path / "straight")
    assert do(spec, tmp_path / "again")["weights_sha256"] == straight["weights_sha256"]
    with pytest.raises(Stopped):
        do(spec, tmp_path / "stopped", stop=lambda: True)
    resumed = do(spec, tmp_path / "stopped")
    assert (resumed["weights_sha256"], resumed["metrics"]) == (straight["weights_sha256"], straight["metrics"])


@pytest.mark.usefixtures("data_folder")
def test_every_augmentation_trains_otherwise(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{"augment": level} for level in ("none", "basic", "cutout", "autoaugment")]
    kinds += [{"augment": "none", "mixup": 0.4}]
    weights = {
        json.dumps(kind): do(make_spec(settings=kind, epochs=1, batch_size=16), tmp_path)["weights_sha256"]
        for kind in kinds
    }
    assert len(set(weights.values())) == len(kinds)


@pytest.mark.usefixtures("data_folder")
def test_measurements_are_of_images_without_augmentation() -> None:
    measured = []
    for level in ("none", "autoaugment"):
        run = set_up(make_spec(settings={"augment": level, "mixup": 1.0}), CPU)
        measured.append(evaluate(run.model, run.task, run.data, run.autocast))
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_conditions_and_unverified_data_reach_records_and_captions(
    data_folder: Path, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write_experiment(
        {
            "title": "Conditions",
            "task": {"name": "cifar10", "allow_unverified_data": True},
            "model": {"name": "resnet8", "width": 2},
            "baseline": "sgd",
            "seeds": 2,
            "vary": {"task": {"name": ["cifar10", "cifar100"]}, "data": {"label_noise": [0.0, 0.4]}},
            "data": {"train_size": 60},
            "train": {"epochs": 1, "batch_size": 32},
            "optimizers": {"sgd": {"lr": 0.1}, "sam": {"base": "sgd", "lr": 0.1, "m": 16}},
        }
    )
    launched = bench.run(str(path), out=tmp_path / "results", jobs=2)
    records = launched.results.records
    assert (records.status == "done").all()
    assert len(records) == 2 * 2 * 2 * 2
    assert set(records.condition) == {
        f"task={task}, label_noise={noise}" for task in ("cifar10", "cifar100") for noise in ("0", "0.4")
    }
    assert not records.data_verified.any()
    assert set(records.train_size) == {60}
    assert records.groupby("task").data_fingerprint.nunique().eq(1).all()

    for table in tables_module.build(Study(results.read(launched.folder))):
        assert any("checksum" in sentence for sentence in table.caption), table.name
