"""What every registered model must do, and the shapes of ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bench import registry
from bench.models.resnet import BasicBlock
from bench.tasks.base import Task

registry.load_builtins()
MODELS = [entry.name for entry in registry.models]
TASKS = [entry.name for entry in registry.tasks]


def build(model: str, task: Task, seed: int = 0, **params: object) -> nn.Module:
    torch.manual_seed(seed)
    built: nn.Module = registry.models[model].factory(task, **params)
    return built


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    made: Task = registry.tasks[request.param].factory()
    return made


@pytest.fixture(scope="module")
def batch(task: Task) -> tuple[Tensor, Tensor]:
    train, _ = task.load()
    return task.model_inputs(train.inputs[:6]), train.targets[:6]


@pytest.fixture(scope="module")
def digits() -> Task:
    made: Task = registry.tasks["digits"].factory()
    return made


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- the contract of a model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_model_takes_every_task_and_gives_one_row_of_outputs_an_example(
    model: str, task: Task, batch: tuple[Tensor, Tensor]
) -> None:
    outputs = build(model, task)(batch[0])
    assert outputs.shape == (6, task.num_outputs)
    assert outputs.dtype == torch.float32
    assert outputs.isfinite().all()


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(model: str, task: Task) -> None:
    one, again, other = (build(model, task, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", MODELS)
def test_every_parameter_of_every_model_learns(model: str, task: Task, batch: tuple[Tensor, Tensor]) -> None:
    built = build(model, task)
    task.losses(built(batch[0]), batch[1]).mean().backward()  # type: ignore[no-untyped-call]
    for name, parameter in built.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("model", MODELS)
def test_in_eval_mode_an_example_does_not_see_its_batch(model: str, task: Task, batch: tuple[Tensor, Tensor]) -> None:
    built = build(model, task).eval()
    with torch.no_grad():
        together, alone = built(batch[0]), torch.cat([built(batch[0][i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


# ---- mlp -----------------------------------------------------------------------------------------------------


def test_an_mlp_has_depth_hidden_layers_of_width(digits: Task) -> None:
    linear = [layer for layer in build("mlp", digits, width=8, depth=3) if isinstance(layer, nn.Linear)]  # type: ignore[attr-defined]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(64, 8), (8, 8), (8, 8), (8, 10)]


def test_an_mlp_drops_out_only_if_asked(digits: Task) -> None:
    def dropouts(model: nn.Module) -> list[float]:
        return [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)]

    assert dropouts(build("mlp", digits)) == []
    assert dropouts(build("mlp", digits, depth=2, dropout=0.25)) == [0.25, 0.25]


# ---- resnet --------------------------------------------------------------------------------------------------


def test_resnet8_has_the_parameters_counted_by_hand(digits: Task) -> None:
    stem = 1 * 16 * 9 + 2 * 16
    stage_1 = 2 * 16 * 16 * 9 + 2 * 2 * 16
    stage_2 = 16 * 32 * 9 + 32 * 32 * 9 + 2 * 2 * 32
    stage_3 = 32 * 64 * 9 + 64 * 64 * 9 + 2 * 2 * 64
    head = 64 * 10 + 10
    assert parameters(build("resnet8", digits)) == stem + stage_1 + stage_2 + stage_3 + head == 75_002


def test_resnet8_has_8_layers_with_weights(digits: Task) -> None:
    weighted = [m for m in build("resnet8", digits).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 8


def test_the_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = BasicBlock(2, 6, stride=2).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 2, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert out.shape == (3, 6, 4, 4)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert out[:, :2].abs().sum() == out[:, 4:].abs().sum() == 0


def test_a_block_that_keeps_its_shape_has_the_identity_as_shortcut() -> None:
    block = BasicBlock(4, 4, stride=1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(3, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(block(x), x)
