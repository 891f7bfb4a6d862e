"""Conditions: every optimizer under every combination of what `[vary]` lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.errors import BadValue
from bench.core.experiment import Experiment

Load = Callable[..., Experiment]


@pytest.fixture
def load(tiny: Any, write_experiment: Callable[..., Path]) -> Load:
    """load({"vary.data.label_noise": [...]}, "key=value"): the tiny experiment, changed, resolved."""
    return lambda changes=None, *overrides: experiment.load(write_experiment(tiny(changes)), overrides)


def problems(load: Load, changes: dict[str, Any]) -> list[str]:
    with pytest.raises(BadValue) as caught:
        load(changes)
    return caught.value.problems


# ---- what comes of it ----------------------------------------------------------------------------------------


def test_every_optimizer_runs_under_every_condition_in_the_order_of_the_file(load: Load) -> None:
    resolved = load({"vary.data.label_noise": [0.4, 0.2], "vary.task.augment": ["none", "shift"]})
    places = [(run.condition_text, run.label) for run in resolved.runs if run.spec.seed == 0]
    conditions = [f"label_noise={noise}, augment={augment}" for noise in (0.4, 0.2) for augment in ("none", "shift")]
    assert places == [(condition, label) for condition in conditions for label in ("sgd", "sam", "sam")]
    assert len({run.spec.run_id for run in resolved.runs}) == 4 * 6
    for run in resolved.runs:
        assert run.condition == {
            "label_noise": run.spec.data.label_noise,
            "task.augment": run.spec.task.params["augment"],
        }


def test_meta_names_the_conditions_and_the_columns_that_vary(load: Load) -> None:
    meta = load({"vary.data.label_noise": [0, 0.2], "vary.model.width": [8, 16], "model": "mlp"}).meta()
    assert meta["vary"] == {"label_noise": [0.0, 0.2], "model.width": [8, 16]}
    assert meta["conditions"] == [f"label_noise={noise}, width={width}" for noise in ("0", "0.2") for width in (8, 16)]


def test_the_model_itself_can_vary(load: Load) -> None:
    resolved = load({"model": {"name": "mlp", "width": 4}, "vary.model.name": ["mlp", "resnet8"]})
    assert resolved.meta()["model"] == "mlp, resnet8"
    assert [run.condition for run in resolved.runs][::6] == [{"model": "mlp"}, {"model": "resnet8"}]
    assert all(run.spec.model.params["width"] == 4 for run in resolved.runs)
    assert load({"model": "mlp", "vary.model": ["mlp", "resnet8"]}).vary == {"model": ["mlp", "resnet8"]}


def test_nothing_varied_is_one_condition_without_a_name(load: Load) -> None:
    resolved = load()
    assert {run.condition_text for run in resolved.runs} == {""}
    assert resolved.vary == {}


def test_the_same_run_in_two_experiments_is_the_same_run(load: Load) -> None:
    varied = {run.spec.run_id for run in load({"vary.data.label_noise": [0.2, 0.4]}).runs}
    fixed = {run.spec.run_id for run in load({"data.label_noise": 0.4}).runs}
    assert fixed < varied


def test_a_setting_of_a_task_given_by_name_can_be_overridden(load: Load) -> None:
    resolved = load(None, "task.augment=shift")
    assert all(run.spec.task.params == {"augment": "shift"} for run in resolved.runs)


# ---- what is wrong with it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vary.data.label_nois": [0.2]}, 'vary.data.label_nois: unknown key; did you mean "label_noise"?'),
        ({"vary.data.label_noise": [0.2, 7]}, "vary.data.label_noise: must be less than or equal to 0.9, got 7"),
        ({"vary.data.label_noise": 0.2}, "vary.data.label_noise: must be a list of at least one value, got 0.2"),
        ({"vary.data.label_noise": []}, "vary.data.label_noise: must be a list of at least one value, got []"),
        ({"vary.data.label_noise": [0.2, 0.2]}, "vary.data.label_noise: the same value twice: [0.2, 0.2]"),
        ({"vary.task.augment": ["shfit"]}, "vary.task.augment: must be 'none' or 'shift', got 'shfit'"),
        ({"vary.model.name": ["mlp", "resnet9"]}, 'vary.model: unknown model "resnet9"; did you mean "resnet8"?'),
        ({"vary.train.epochs": [1, 2]}, "vary.train.epochs: only keys of task, model and data can be varied"),
        ({"vary.seeds": [1, 2]}, "vary.seeds: only keys of task, model and data can be varied"),
        (
            {"vary.data.label_noise": [0.2], "data.label_noise": 0.1},
            "data.label_noise: both fixed and varied; keep one of the two",
        ),
        ({"vary": 3}, "vary: must be a valid table, got 3"),
    ],
)
def test_one_problem_is_one_line_with_its_key(load: Load, changes: dict[str, Any], problem: str) -> None:
    (line,) = problems(load, changes)
    assert line.startswith(problem)


def test_a_problem_that_is_not_of_the_varied_key_is_told_once_and_where_it_is(load: Load) -> None:
    found = problems(load, {"data.validation": 2, "vary.data.label_noise": [0.1, 0.2, 0.3]})
    assert found == ["data.validation: must be less than 1, got 2"]


def test_tasks_of_different_metrics_do_not_stand_in_one_experiment(
    load: Load, write_plugin: Any, registries: Callable[[], None]
) -> None:
    plugin = """
        import torch
        from bench import Metric, Split, Task, register_task

        @register_task("slope")
        class Slope(Task):
            num_outputs, input_shape = 1, (1,)
            metric = Metric("mse", "squared error", "", 1.0, False, "mean squared error")

            def load(self):
                x = torch.arange(10.0)[:, None]
                return Split(x, x[:, 0]), Split(x, x[:, 0])
    """
    import textwrap

    write_plugin(textwrap.dedent(plugin))
    (line,) = problems(load, {"plugins": ["mine.py"], "vary.task": ["digits", "slope"]})
    assert line == 'vary.task: "digits" and "slope" have different metrics; make two experiments'


def test_m_divides_the_batch(load: Load) -> None:
    changes = {"optimizers.sam.m": 48, "train.batch_size": 64}
    assert problems(load, changes) == ["optimizers.sam.m: must divide batch_size (64), got 48"]
    assert load({"optimizers.sam.m": 16, "train.batch_size": 64})
