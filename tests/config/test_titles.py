"""Titles that an override cannot make a lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.errors import BadValue
from bench.core.experiment import Experiment

Load = Callable[..., Experiment]


@pytest.fixture
def load(write_experiment: Callable[..., Path], tiny: Callable[..., dict[str, Any]]) -> Load:
    """load({...}, overrides...): the tiny experiment, changed and resolved."""

    def make(changes: Mapping[str, Any], *overrides: str) -> Experiment:
        return experiment.load(write_experiment(tiny(dict(changes))), overrides)

    return make


@pytest.mark.parametrize(
    ("title", "overrides", "shown"),
    [
        ("{task} with {label_noise} wrong labels, {model}: {{us}}", [], "Digits with 0 % wrong labels, MLP: {us}"),
        ("On {task}, {model}", ["model=resnet8"], "On digits, ResNet-8"),
        ("On {task}, {model}", ["model.name=resnet8", "model={name='mlp'}"], "On digits, MLP"),
        ("On {model}", ["model={name='mlp', width=4}"], "On MLP (model={name='mlp', width=4})"),
        ("On {model}", ['vary.model={name=["mlp", "resnet8"]}'], "On MLP and ResNet-8"),
        ("{label_noise} wrong", ["data.label_noise=0.25"], "25 % wrong"),
        ("{label_noise} wrong", ["vary.data.label_noise=[0.2, 0.4]"], "20 % and 40 % wrong"),
        ("{model}", ['vary.model.name=["mlp", "resnet8"]'], "MLP and ResNet-8"),
        ("ResNet-8", ["model=mlp"], "ResNet-8 (model=mlp)"),
        ("ResNet-8", ["data.label_noise=0.2", "model=mlp"], "ResNet-8 (data.label_noise=0.2, model=mlp)"),
        ("{model} on it", ["model.width=4"], "MLP on it (model.width=4)"),
        ("ResNet-8", ["train.epochs=3", "train.epochs = 4"], "ResNet-8 (train.epochs=4)"),
        ("ResNet-8", ["title=An MLP", "model=mlp"], "An MLP"),
        ("ResNet-8", ["optimizers.sam.sweep.rho=[0.1,\n 0.2]"], "ResNet-8 (optimizers.sam.sweep.rho=[0.1, 0.2])"),
    ],
)
def test_a_title_follows_its_placeholders_and_names_the_other_overrides(
    load: Load, title: str, overrides: list[str], shown: str
) -> None:
    assert load({"title": title, "model": "mlp"}, *overrides).title == shown


def test_a_title_that_is_the_name_has_the_overrides_already(load: Load) -> None:
    assert load({"title": ...}, "train.epochs=3").title == "tiny+train.epochs=3"


def test_the_title_in_the_results_is_the_shown_one(load: Load) -> None:
    assert load({"title": "{model}"}, "train.epochs=3").meta()["title"] == "MLP (train.epochs=3)"


@pytest.mark.parametrize(
    ("title", "problem"),
    [
        ("{modell}", 'title: unknown placeholder "{modell}"; did you mean "model"?'),
        ("{}", 'title: unknown placeholder "{}"; valid: '),
        ("{model.__class__}", 'title: unknown placeholder "{model.__class__}"; '),
        ("{model!r:>9}", 'title: unknown placeholder "{model!r:>9}"; '),
        ("a { b", "title: an unmatched brace"),
        ("a } b", "title: an unmatched brace"),
    ],
)
def test_a_placeholder_that_there_is_not_is_told_with_those_there_are(load: Load, title: str, problem: str) -> None:
    with pytest.raises(BadValue) as caught:
        load({"title": title})
    assert len(caught.value.problems) == 1
    assert next(iter(caught.value.problems)).startswith(problem)


def test_a_list_of_experiments_has_no_braces(bench: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "cwd" / "experiments"
    folder.mkdir()
    (folder / "fine.toml").write_text(
        'title = "{task}, {label_noise}, {model}"\nmodel = "mlp"\ntask = { name = "digits" }\n'
        "[vary]\ndata.label_noise = [0.1, 0.2]\n"
    )
    (folder / "odd.toml").write_text('title = "{task} {x"\n')
    (folder / "part.toml").write_text('title = "{task}, {model}"\ntask = "digits"\n')
    said = bench("list", "experiments").out
    assert "Digits, 10 % and 20 %, mlp" in said
    assert "{task} {x" in said
    assert "{task}, {model}" in said, "it has no model"
