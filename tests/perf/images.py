"""Training on images: what the suite reaches on this machine beside loops by hand. Part of `make perf`.

The images are noise: speed does not depend on them, and no data set is needed.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from bench.core.registry import models, optimizers, register_task
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.splits import Split
from bench.tasks.images import ImageTask
from bench.train import synchronize
from bench.training.step import TrainingRun, set_up

EXAMPLES = 5_000


@register_task("perf_images")
class PerfImages(ImageTask):
    """Noise of CIFAR-10's shape."""

    num_outputs, input_shape = 10, (3, 32, 32)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def load(self) -> tuple[Split, Split]:
        random = np.random.RandomState(0)
        images = torch.from_numpy(random.randint(256, size=(EXAMPLES, 32, 32, 3)).astype(np.uint8))
        labels = torch.from_numpy(random.randint(10, size=EXAMPLES))
        return Split(images, labels), Split(images[:10], labels[:10])


def make_spec(model: str, augment: str = "basic", rho: float | None = None, **train: Any) -> RunSpec:
    sgd = optimizers["sgd"].schema.model_validate({"lr": 1e-3, "nesterov": True}).model_dump()
    base = ComponentSpec(name="sgd", params=sgd)
    optimizer = OptimizerSpec(name="sgd", params=sgd)
    if rho is not None:
        optimizer = OptimizerSpec(name="sam", params={"rho": rho, "m": None}, base=base)
    return RunSpec(
        task=ComponentSpec(name="perf_images", params={"augment": augment, "mixup": 0.0}),
        model=ComponentSpec(name=model, params=models[model].schema().model_dump()),
        optimizer=optimizer,
        data=DataSettings(validation=0.1),
        train=TrainSettings(epochs=1, **train),
        seed=0,
    )


def steps_of(run: TrainingRun, count: int) -> Callable[[], float]:
    """Seconds a step of ours, over `count` steps."""
    run.model.train()
    device = run.data.train.targets.device
    augment = np.random.RandomState(0)

    def timed() -> float:
        batches = run.batches(1)
        synchronize(device)
        started = time.perf_counter()
        for step in range(count):
            run.step(batches[step % run.steps], augment)
        synchronize(device)
        return (time.perf_counter() - started) / count

    return timed


def by_hand(run: TrainingRun, count: int, *, channels_last: bool) -> Callable[[], float]:
    """A minimal loop over the same bytes, without augmentation."""
    device = run.data.train.targets.device
    model = build(run, channels_last=channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)
    data = run.data.train
    images = data.inputs.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def timed() -> float:
        batches = torch.split(torch.randperm(len(data), device=device), run.batch_size)
        synchronize(device)
        started = time.perf_counter()
        for step in range(count):
            batch = batches[step % run.steps]
            x = (images[batch].float() / 255 - 0.5) / 0.25
            optimizer.zero_grad()
            F.cross_entropy(model(x), data.targets[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        synchronize(device)
        return (time.perf_counter() - started) / count

    return timed


def with_data_loader(run: TrainingRun, count: int) -> Callable[[], float]:
    """The loop of most tutorials: torchvision's transforms of one image at a time, in a DataLoader of 2 workers."""
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        ]
    )
    device = run.data.train.targets.device
    images, labels = run.data.train.inputs.cpu().numpy(), run.data.train.targets.cpu().tolist()
    model = build(run, channels_last=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    class Images(Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return count * run.batch_size

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return transform(images[index % len(images)]), labels[index % len(images)]

    loader = DataLoader(Images(), run.batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    iter(loader)  # its workers are started before the clock

    def timed() -> float:
        synchronize(device)
        started = time.perf_counter()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        synchronize(device)
        return (time.perf_counter() - started) / count

    return timed


def build(run: TrainingRun, *, channels_last: bool) -> nn.Module:
    """The model of a run once more, with weights of its own."""
    model = copy.deepcopy(run.model).train()
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


# ---- on a CPU ------------------------------------------------------------------------------------------------


def on_cpu(compare: Callable[[str, str, dict[str, Callable[[], float]]], None]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    device = torch.device("cpu")
    bare, basic = (set_up(make_spec("resnet20", augment), device) for augment in ("none", "basic"))
    compare(
        f"A step of ResNet-20 on 32x32, batch 128, {cores} threads",
        "bench at most 1.0 times the loop by hand; the DataLoader's at least 1.3 times bench with flip and crop",
        {
            "bench, flip and crop": steps_of(basic, 4),
            "bench, no augmentation": steps_of(bare, 4),
            "by hand, channels_last": by_hand(bare, 4, channels_last=True),
            "torchvision, DataLoader": with_data_loader(basic, 4),
        },
    )
    torch.set_num_threads(1)


# ---- on a GPU ------------------------------------------------------------------------------------------------


def on_gpu() -> None:
    """Images a second, SAM's price, share of the measured matrix rate, and how busy the GPU is."""
    device = torch.device("cuda")
    rate = matrix_rate(device)
    print(f"bf16 matrix products of 8192: {rate / 1e12:.0f} TFLOP/s\n")
    print("model        batch compile  optimizer   images/s  TFLOP/s  of rate   busy   step/SGD")
    for model, batch in (("resnet18", 128), ("resnet18", 512), ("wrn28_10", 256)):
        for compile_ in (False, True):
            first = 0.0
            for name, rho in (("SGD", None), ("SAM", 0.05)):
                spec = make_spec(model, rho=rho, batch_size=batch, precision="bf16", compile=compile_)
                run = set_up(spec, device)
                run.warm_up()
                step = steps_of(run, 30)
                step()
                seconds = min(step() for _ in range(3))
                first = first or seconds
                flops = flops_of_a_pass(run) * (2 if rho else 1) / seconds
                print(
                    f"{model:<12} {batch:>5} {compile_!s:<8} {name:<9} {batch / seconds:>10,.0f} {flops / 1e12:>8.1f} "
                    f"{flops / rate:>8.1%} {busy(step):>6.1%} {seconds / first:>8.2f}"
                )
    print()


def matrix_rate(device: torch.device) -> float:
    """The best bf16 rate of a large matrix product here, in FLOP/s: what the others are measured by."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    seconds = []
    for _ in range(5):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        synchronize(device)
        seconds.append((time.perf_counter() - started) / 10)
    return float(2 * 8192**3 / min(seconds))


def flops_of_a_pass(run: TrainingRun) -> float:
    """Floating-point operations of a forward and a backward pass over a batch: convolutions and matrix products."""
    split = run.data.train
    inputs, targets = split.inputs[: run.batch_size], split.targets[: run.batch_size]
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(run.model(run.task.model_inputs(inputs)), targets).backward()  # type: ignore[no-untyped-call]
    run.optimizer.zero_grad()
    return float(counter.get_total_flops())


def busy(step: Callable[[], float]) -> float:
    """Share of the time in which the GPU computes: the kernels' times against the clock's."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        synchronize(torch.device("cuda"))
        started = time.perf_counter()
        step()
        wall = time.perf_counter() - started
    kernels = sum(event.self_device_time_total for event in profiler.key_averages())
    return float(kernels) / 1e6 / wall
