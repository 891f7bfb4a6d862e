"""What a run's settings do to its steps: m, precision, compilation, memory format, warm-up."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench.core.errors import BenchError
from bench.core.process_group import ProcessGroup
from bench.core.registry import load_builtins, optimizers
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.batching import Batch
from bench.optim.base.wrapper import OptimizerWrapper
from bench.train import weights_sha256
from bench.training import precision as numerics
from bench.training.step import TrainingRun, set_up, share_out

load_builtins()
CPU = torch.device("cpu")


def make_spec(model: str = "resnet8", method: dict[str, Any] | None = None, **train: Any) -> RunSpec:
    base = ComponentSpec(name="sgd", params=optimizers["sgd"].schema.model_validate({"lr": 0.05}).model_dump())
    optimizer = OptimizerSpec(name="sgd", params=base.params)
    if method is not None:
        params = optimizers["sam"].schema.model_validate(method).model_dump()
        optimizer = OptimizerSpec(name="sam", params=params, base=base)
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "shift"}),
        model=ComponentSpec(name=model, params={"width": 4} if model == "resnet8" else {"width": 8, "dropout": 0.5}),
        optimizer=optimizer,
        data=DataSettings(validation=0.25),
        train=TrainSettings(**({"epochs": 1, "batch_size": 64} | train)),
        seed=0,
    )


def losses(run: TrainingRun, steps: int = 6) -> list[float]:
    run.network.train()
    augment = np.random.RandomState(0)
    batches = torch.split(torch.arange(64 * steps), 64)
    return [run.step(Batch(batch), augment).item() for batch in batches]


# ---- m -------------------------------------------------------------------------------------------------------


def test_m_cuts_the_batch_into_parts_and_counts_whole_passes() -> None:
    sizes: list[int] = []
    run = set_up(make_spec(method={"rho": 0.1, "m": 16}), CPU)
    run.model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    losses(run, steps=3)
    assert sizes == [16] * (3 * 4 * 2)
    assert run.passes == 3 * 2


def test_m_of_the_whole_batch_is_no_m() -> None:
    one, other = (set_up(make_spec(method={"rho": 0.1, "m": m}), CPU) for m in (64, None))
    assert losses(one) == losses(other)


def test_m_that_does_not_divide_a_small_training_set_is_told() -> None:
    spec = make_spec(method={"rho": 0.1, "m": 64}, batch_size=2048)
    with pytest.raises(BenchError, match="m = 64 does not divide the batch of 900"):
        set_up(spec, CPU)


# ---- methods that do not fit, and those that need something of the loop ------------------------------------------


def method_spec(name: str, params: dict[str, Any], model: str = "mlp", **base: Any) -> RunSpec:
    sgd = ComponentSpec(name="sgd", params=optimizers["sgd"].schema.model_validate({"lr": 0.05, **base}).model_dump())
    settings = optimizers[name].schema.model_validate(params).model_dump()
    choice = OptimizerSpec(name=name, params=settings, base=sgd)
    return make_spec(model, epochs=2).model_copy(update={"optimizer": choice})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (method_spec("momentum-sam", {}, momentum=0.0), "SGD has no momentum; set"),
        (method_spec("sam", {"perturb_only": "norm"}), "needs normalisation layers"),
    ],
)
def test_a_method_that_can_do_nothing_with_its_base_or_its_model_is_told_in_one_line(spec: RunSpec, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        set_up(spec, CPU)


def test_a_method_knows_how_long_the_training_is_and_draws_from_the_runs_seed() -> None:
    spec = method_spec("random-direction", {"rho": 0.5, "perturb_from": 0.5})
    one, other = (set_up(s, CPU) for s in (spec, spec.model_copy(update={"seed": 1})))
    assert isinstance(one.optimizer, OptimizerWrapper)
    assert isinstance(other.optimizer, OptimizerWrapper)
    assert one.optimizer.total_steps == 2 * one.steps == 28
    assert one.optimizer.seed != other.optimizer.seed


def test_a_method_that_chooses_examples_needs_an_m_over_several_processes() -> None:
    optimizer = set_up(method_spec("esam", {}), CPU).optimizer
    assert share_out(optimizer, 64, ProcessGroup()) == (64, True)
    with pytest.raises(BenchError, match=r"ESAM chooses .* each of 2 processes needs .* set an m that divides 32"):
        share_out(optimizer, 64, ProcessGroup(rank=0, size=2))


def test_passes_over_part_of_a_batch_count_as_that_part() -> None:
    run = set_up(method_spec("esam", {"gamma": 0.5}), CPU)
    losses(run, steps=6)
    assert run.work == pytest.approx(6 * (1 + 1 / 3 + 1 / 2))
    assert run.passes == 11


def test_what_is_measured_is_the_average_with_batch_norms_statistics_of_its_own() -> None:
    run = set_up(method_spec("ema", {"ema_decay": 0.9}, model="resnet8"), CPU)
    losses(run, steps=4)
    before = weights_sha256(run.model)
    weights = [p.detach().clone() for p in run.model.parameters()]
    statistics = next(m for m in run.model.modules() if isinstance(m, nn.BatchNorm2d)).running_mean
    assert statistics is not None
    trained = statistics.clone()
    with run.measured_weights():
        assert weights_sha256(run.model) != before
        assert all((a - b).abs().max() < 0.5 for a, b in zip(run.model.parameters(), weights, strict=True))
        assert not torch.equal(statistics, trained)
    assert weights_sha256(run.model) == before


# ---- compilation ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, {"rho": 0.1}, {"rho": 0.1, "m": 32}])
def test_compiled_and_uncompiled_losses_are_equal_within_rounding(method: dict[str, Any] | None) -> None:
    plain, compiled = (set_up(make_spec(method=method, compile=flag), CPU) for flag in (False, True))
    assert compiled.network is not compiled.model
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-2)  # how kernels round depends on the processor
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()


@pytest.mark.slow
def test_the_second_pass_of_a_compiled_model_has_the_same_dropout_mask() -> None:
    """With a radius next to nothing SAM is its base, if and only if both passes drop the same."""
    sam = set_up(make_spec("mlp", method={"rho": 1e-30}, compile=True), CPU)
    base = set_up(make_spec("mlp", compile=True), CPU)
    torch.manual_seed(0)
    first = losses(sam)
    torch.manual_seed(0)
    assert losses(base) == first


def test_an_optimizer_that_leaves_the_closure_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = set_up(make_spec(), CPU)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, closure=None: None)
    with pytest.raises(BenchError, match=r"SGD\.step\(closure\) returned .* NoneType: it has to evaluate the closure"):
        run.step(run.batches(0)[0], np.random.RandomState(0))


def test_a_model_that_cannot_be_compiled_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import TorchDynamoException

    run = set_up(make_spec(), CPU)

    def fails(*inputs: Any) -> None:
        raise TorchDynamoException("no compiler\nand pages\nof more")

    monkeypatch.setattr(run, "network", fails)
    monkeypatch.setattr(fails, "train", lambda: None, raising=False)
    monkeypatch.setattr(fails, "eval", lambda: None, raising=False)
    with pytest.raises(
        BenchError, match=r"torch\.compile fails .*: no compiler\); .* train\.compile = false"
    ) as caught:
        run.warm_up()
    assert "pages" not in str(caught.value)


# ---- warm-up -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["resnet8", "mlp"])
def test_a_warm_up_leaves_nothing_behind(model: str) -> None:
    cold, warm = set_up(make_spec(model), CPU), set_up(make_spec(model), CPU)
    torch.manual_seed(1)
    warm.warm_up()
    assert weights_sha256(warm.model) == weights_sha256(cold.model)
    assert warm.passes == 0
    assert all(parameter.grad is None for parameter in warm.model.parameters())
    after = losses(warm)
    torch.manual_seed(1)
    assert losses(cold) == after


# ---- precision, determinism, memory format -------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_precision_sets_the_switches_whatever_the_last_run_left(precision: Any, tf32: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not tf32
    autocast = numerics.set_precision(TrainSettings(epochs=1, precision=precision), CPU)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (tf32, tf32)
    with autocast:
        product = nn.Linear(2, 2)(torch.ones(1, 2))
    assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    numerics.set_precision(TrainSettings(epochs=1), CPU)


def test_deterministic_kernels_are_for_gpus_and_do_not_outlast_the_run() -> None:
    gpu = torch.device("cuda")
    numerics.set_precision(TrainSettings(epochs=1, deterministic=True), gpu)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    numerics.set_precision(TrainSettings(epochs=1), gpu)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_cublas_is_told_once_and_the_users_own_choice_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(numerics.CUBLAS_WORKSPACE[0], raising=False)
    numerics.allow_deterministic_kernels()
    assert os.environ[numerics.CUBLAS_WORKSPACE[0]] == ":4096:8"
    monkeypatch.setenv(numerics.CUBLAS_WORKSPACE[0], ":16:8")
    numerics.allow_deterministic_kernels()
    assert os.environ[numerics.CUBLAS_WORKSPACE[0]] == ":16:8"


@pytest.mark.usefixtures("data_folder")
def test_images_in_colour_and_the_weights_that_meet_them_are_channels_last() -> None:
    task = ComponentSpec(name="cifar10", params={"augment": "basic", "mixup": 0.0, "allow_unverified_data": True})
    spec = make_spec().model_copy(update={"task": task, "train": TrainSettings(epochs=1, batch_size=8)})
    run = set_up(spec, CPU)
    split = run.data.train
    inputs, _ = run.task.training_batch(split.inputs[:8], split.targets[:8], np.random.RandomState(0))
    convolution = next(m for m in run.model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1)
    for tensor in (inputs, convolution.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    run.step(Batch(torch.arange(8)), np.random.RandomState(0))
    assert convolution.weight.grad is not None
    assert convolution.weight.grad.is_contiguous(memory_format=torch.channels_last)


# ---- weight decay --------------------------------------------------------------------------------------------


def test_decay_on_matrices_leaves_biases_and_norms_alone() -> None:
    """Without a gradient a step of SGD is its weight decay: w - lr * decay * w, where there is any."""
    spec = make_spec(weight_decay_on="matrices")
    params = {**spec.optimizer.params, "weight_decay": 0.1, "lr": 0.5, "momentum": 0.0}
    spec = spec.model_copy(update={"optimizer": OptimizerSpec(name="sgd", params=params)})
    run = set_up(spec, CPU)
    for parameter in run.model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    for name, parameter in run.model.named_parameters():
        expected = 0.95 if parameter.ndim > 1 else 1.0
        assert torch.allclose(parameter, torch.full_like(parameter, expected)), name
    assert {p.ndim for p in run.model.parameters()} >= {1, 4}


@pytest.mark.parametrize("where", ["all", "matrices"])
def test_every_parameter_is_trained_wherever_decay_is(where: str) -> None:
    run = set_up(make_spec(method={"rho": 0.1}, weight_decay_on=where), CPU)
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in run.model.parameters()}
    assert len(trained) == len(list(run.model.parameters()))
    assert len(run.optimizer.param_groups) == (1 if where == "all" else 2)
