"""The GPU path without a GPU: fake CUDA tensors, which refuse whatever waits for the device or mixes devices.

torch's FakeTensorMode knows shapes, types and devices, and computes nothing. A read of a value (`.item()`, a tensor in
an `if`, a boolean mask) raises, and so does an operation between the host and the device. What needs a real device is
stubbed: the backward pass, the state of CUDA's random numbers, its generators, pinned memory and fused SGD's kernel.
"""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification

from bench.core.process_group import ALONE
from bench.core.registry import Entry, load_builtins, optimizers
from bench.core.spec import ComponentSpec, TrainSettings
from bench.data import autoaugment
from bench.data.batching import Batch
from bench.data.splits import Split
from bench.models.encoders import Encoder
from bench.optim.base.wrapper import OptimizerWrapper
from bench.tasks.base import Data, Task
from bench.tasks.images import ImageTask
from bench.training.draws import Drawn, Draws
from bench.training.evaluate import outputs
from bench.training.precision import set_precision
from bench.training.step import TrainingRun, build_optimizer, share_out
from tests.models.encoder_files import Sentences, configuration
from tests.models.helpers import build
from tests.optim.helpers import spec as optimizer_spec

load_builtins()
GPU = torch.device("cuda")
BATCH = 8
MODELS = ("resnet18", "vit_tiny", "bert")
OTHERS = ("lion", "muon", "nadamw", "schedule-free-adamw", "schedule-free-sgd", "soap")
"""Optimizers of other packages: what they do on the host is theirs. Some read numbers that a fake device lacks."""
APART = ("ae-sam", "functional-sam")
"""AE-SAM decides about its second pass on the host, which is one wait per step and what it is; Functional-SAM takes a
gradient of logits from a hook of autograd, for which `backward_into` stands here."""
ENTRIES = [entry for entry in optimizers if entry.plugin is None and entry.name not in (*OTHERS, *APART)]
MODE = FakeTensorMode()
"""One for all tests: a constant that the product keeps on the device is of the mode that it was made in."""


class Images(ImageTask):
    """Fake colour images."""

    mean, std = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
    input_shape, num_outputs = (3, 32, 32), 10

    def load(self) -> tuple[Split, Split]:
        raise AssertionError("fake images have no values")


# ---- a device that is not there --------------------------------------------------------------------------------


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A fake CUDA device, and stubs for what only a real one can do."""
    for name in MODELS:
        real_model(name)
    tables, host_generator = autoaugment._parameters(32, 32, torch.device("cpu")), torch.Generator
    with MODE:
        on_device = tuple(map(_fake, tables))
        monkeypatch.setattr(autoaugment, "_parameters", lambda *_: on_device)  # values, made once for a size of images
        state = torch.empty(16, dtype=torch.uint8)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device=None: state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device=None: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        monkeypatch.setattr(torch, "Generator", lambda device=None: host_generator())
        monkeypatch.setattr(torch, "_fused_sgd_", lambda *_, **__: None)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        yield


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations by name, and refuses copies from the device to the host, which fake tensors allow.

    Attributes:
        copies: operations that copy from the host to the device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.copies: list[str] = []
        self.counting = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations[str(func)] += self.counting
        returned = func(*args, **(kwargs or {}))
        source = args[1] if func is torch.ops.aten.copy_.default else args[0] if args else None
        if isinstance(source, Tensor) and isinstance(returned, Tensor) and source.device.type == "cpu":
            if returned.device.type == "cuda":
                self.copies.append(str(func))
        elif isinstance(source, Tensor) and isinstance(returned, Tensor) and source.device.type == "cuda":
            assert returned.device.type == "cuda", f"{func} waits for the device: it copies to the host"
        return returned

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.counting = False
        try:
            yield
        finally:
            self.counting = True


@contextmanager
def backward_into(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let every backward pass leave gradients of the right shape, and no more."""

    def backward(tensor: Tensor, *_: Any, **__: Any) -> None:
        assert tensor.requires_grad
        assert tensor.device.type == "cuda"
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            else:
                parameter.grad += torch.empty_like(parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        yield


# ---- what runs on it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a fake run is made of."""

    entry: Entry
    model: str
    augment: str = "basic"
    m: int | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    clip_norm: float | None = None

    def __str__(self) -> str:
        return "-".join([self.entry.name, self.model, "all" if self.clip_norm else "plain"])


def recipes() -> Iterator[Recipe]:
    """Every optimizer with every network, and once with everything: parts of a batch, bf16, clipping, augmentation."""
    for entry in ENTRIES:
        m = BATCH // 2 if "m" in entry.schema.model_fields else None
        for model in MODELS:
            yield Recipe(entry, model)
            yield Recipe(entry, model, augment="autoaugment", m=m, precision="bf16", clip_norm=1.0)


def make_run(recipe: Recipe) -> TrainingRun:
    """Build the parts of a run on the fake device, as `set_up` builds them on a real one."""
    train = TrainSettings(
        epochs=2,
        batch_size=BATCH,
        precision=recipe.precision,
        clip_norm=recipe.clip_norm,
    )
    task, model, split = make_model(recipe.model, recipe.augment)
    fields = recipe.entry.schema.model_fields
    given = {"lr": 0.1, "m": recipe.m, "k": 2, "steps": 2}
    params = recipe.entry.schema(**{key: value for key, value in given.items() if key in fields}).model_dump()
    base = None
    if recipe.entry.wraps_base:
        base = ComponentSpec(name="sgd", params=optimizers["sgd"].schema(lr=0.1, momentum=0.9).model_dump())
    optimizer = build_optimizer(
        optimizer_spec(ComponentSpec(name=recipe.entry.name, params=params), base, train.clip_norm), model
    )
    if isinstance(optimizer, OptimizerWrapper):
        optimizer.total_steps, optimizer.seed = 8, 0
    part_size, together = share_out(optimizer, BATCH, ALONE)
    return TrainingRun(
        task=task,
        data=Data(train=split, val=split, test=split, fingerprint="", verified=True),
        model=model,
        network=model,
        optimizer=optimizer,
        autocast=set_precision(train, GPU),
        seed_for=lambda stream: 0,
        batch_size=BATCH,
        steps=4,
        part_size=part_size,
        warm_up_passes=1,
        together=together,
    )


def make_model(name: str, augment: str = "basic") -> tuple[Task, nn.Module, Split]:
    """Return a task, its model and its examples on the fake device; their values do not exist."""
    with unset_fake_temporarily():
        model = copy.deepcopy(real_model(name))
    for module in model.modules():
        for key, parameter in module._parameters.items():
            module._parameters[key] = None if parameter is None else nn.Parameter(_fake(parameter))
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else _fake(buffer)
    targets = torch.zeros(4 * BATCH, dtype=torch.int64, device=GPU)
    if name == "bert":
        return Sentences(), model, Split(torch.zeros(4 * BATCH, 2, 16, dtype=torch.int32, device=GPU), targets)
    task = Images(augment=augment, mixup=0.4 if augment == "autoaugment" else 0.0)  # type: ignore[arg-type]
    return task, model, Split(torch.zeros(4 * BATCH, 32, 32, 3, dtype=torch.uint8, device=GPU), targets)


@functools.cache
def real_model(name: str) -> nn.Module:
    if name == "bert":
        auto: Any = AutoModelForSequenceClassification
        return Encoder(auto.from_config(configuration("bert", 20)))
    model = build(name, Images())
    if name == "vit_tiny":
        del model.blocks[2:]  # type: ignore[operator, union-attr] # of twelve that are alike
    return model


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)


def do_steps(run: TrainingRun) -> Watch:
    """Make some steps under watch; the very first one may ask whether a base can make its state."""
    run.network.train()
    augment, batch = np.random.RandomState(0), Batch(torch.arange(BATCH, device=GPU))
    with backward_into(list(run.model.parameters())):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Tensor, "item", lambda _: 0.0)
            run.step(batch, augment)
        watch = Watch()
        with watch:
            for _ in range(2):
                run.step(batch, augment)
    return watch


# ---- the rules -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("recipe", list(recipes()), ids=str)
def test_a_step_waits_for_nothing_and_mixes_no_devices(recipe: Recipe) -> None:
    run = make_run(recipe)
    assert do_steps(run).operations
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__float__", lambda _: 0.0)  # a checkpoint may wait, for XSAM's alpha
        state = run.optimizer.state_dict()["state"]
    tensors = [value for kept in state.values() for value in kept.values() if isinstance(value, Tensor) and value.ndim]
    assert {tensor.device.type for tensor in tensors} <= {"cuda"}


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_an_evaluation_waits_for_nothing_until_all_outputs_are_there(
    model: str, precision: Literal["fp32", "bf16"]
) -> None:
    run = make_run(Recipe(optimizers["sgd"], model, precision=precision))
    run.model.eval()
    with Watch():
        found = outputs(run.model, run.task, run.data.test, run.autocast)
        losses = run.task.losses(found, run.data.test.targets)
    assert (found.device.type, found.dtype, losses.shape) == ("cuda", torch.float32, (4 * BATCH,))


class OutOfSight(nn.Module):
    """A network whose operations are not counted: a compiled one is a few calls, whatever is in it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.watch = network, Watch()

    def forward(self, inputs: Tensor) -> Tensor:
        with self.watch.paused():
            outputs: Tensor = self.network(inputs)
        return outputs


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(("method", "at_most"), [("sgd", 40), ("sam", 180)])
def test_a_step_dispatches_few_operations_beside_those_of_the_network(method: str, at_most: int) -> None:
    """Each takes the host some microseconds, as long as a small kernel: they are what a fast GPU waits for.

    Of ResNet-18's whole step, uncompiled, they are a tenth: 1,000 (SGD) and 1,800 (SAM) were counted in all.
    """
    run = make_run(Recipe(optimizers[method], "resnet18"))
    network = run.network = OutOfSight(run.network)
    augment, batch = np.random.RandomState(0), Batch(torch.arange(BATCH, device=GPU))
    parameters = list(run.model.parameters())
    with backward_into(parameters):
        do_steps(run)
        with network.watch as watch:
            run.step(batch, augment)
    watch.operations["aten.empty_like.default"] -= len(parameters) * (2 if method == "sam" else 1)  # of the stub
    ours = {name: count for name, count in watch.operations.items() if name.startswith("aten.")}
    assert 0 < sum(ours.values()) <= at_most, sorted(ours.items(), key=lambda pair: -pair[1])[:10]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_the_steps_of_an_epoch_copy_nothing_to_the_device(method: str) -> None:
    run = make_run(Recipe(optimizers[method], "resnet18", augment="autoaugment"))
    do_steps(run)
    batches = [Batch(torch.arange(BATCH, device=GPU))] * 2

    def copies(each: Sequence[Drawn], planted: Callable[[], object] = lambda: None) -> list[str]:
        watch = Watch()
        with backward_into(list(run.model.parameters())), watch:
            for batch, drawn in zip(batches, each, strict=True):
                run.step(batch, drawn)
                planted()
        return watch.copies

    ahead = Watch()
    with ahead:
        drawn = list(Draws(run.task, batches, np.random.RandomState(0), GPU))
    assert len(ahead.copies) == len([part for part in drawn[0] if isinstance(part, Tensor)])  # type: ignore[union-attr]
    assert copies(drawn) == []
    assert len(copies([np.random.RandomState(0)] * 2)) >= 2, "a step that draws by itself is seen"
    assert len(copies(drawn, lambda: torch.ones(3, device="cpu").to(GPU))) == 2
    assert len(copies(drawn, lambda: torch.empty(3, device=GPU).copy_(torch.ones(3, device="cpu")))) == 2


def item(parameters: list[nn.Parameter]) -> None:
    float(parameters[0].sum())


def branch(parameters: list[nn.Parameter]) -> None:
    if parameters[0].sum() > 0:
        parameters.clear()


def mask(parameters: list[nn.Parameter]) -> None:
    parameters[0][parameters[0] > 0]


def to_host(parameters: list[nn.Parameter]) -> None:
    parameters[0].cpu()


def host_tensor(parameters: list[nn.Parameter]) -> None:
    torch.ones(parameters[0].shape) + parameters[0]


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("planted", "error"),
    [
        (item, "_local_scalar_dense"),
        (branch, "_local_scalar_dense|is_nonzero"),
        (mask, "nonzero"),
        (to_host, "copies to the host"),
        (host_tensor, "device"),
    ],
)
def test_what_waits_or_mixes_devices_is_caught(planted: Callable[[list[nn.Parameter]], None], error: str) -> None:
    run = make_run(Recipe(optimizers["sam"], "resnet18"))
    gradient = run.optimizer.gradient  # type: ignore[attr-defined]

    def spoiled(closure: Any) -> Any:
        planted(run.parameters)
        return gradient(closure)

    run.optimizer.gradient = spoiled  # type: ignore[attr-defined]
    with pytest.raises(Exception, match=error) as caught:
        do_steps(run)
    assert isinstance(caught.value, (RuntimeError, AssertionError, DataDependentOutputException))
