"""A method that is registered as the class it is: what of its arguments an experiment file may say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from bench.core import registry
from bench.core.registry import Entry, Registry
from bench.optim.sam import SAM

registry.load_builtins()

PLUGIN = """
from typing import Annotated
from pydantic import Field
from typing_extensions import Unpack
from bench import SAM, register_optimizer
from bench.optim.base.options import AscentOptions

@register_optimizer("late-sam", wraps_base=True, rename={"begin": "late_from"}, without=["secret"])
class LateSAM(SAM):
    '''SAM that a user has made something of (nobody 2026).'''

    def __init__(
        self,
        base,
        rho: Annotated[float, Field(ge=0)] = 0.2,
        model=None,
        begin: float = 0.5,
        secret: int = 3,
        clip_norm=None,
        total_steps=None,
        **options: Unpack[AscentOptions],
    ):
        super().__init__(base, rho, model=model, **{**options, "perturb_from": begin})
        self.secret = secret
"""


@pytest.fixture
def late_sam(tmp_path: Path, registries: Callable[[], None]) -> Entry:
    path = tmp_path / "late.py"
    path.write_text(PLUGIN)
    registry.load_plugin(path)
    return registry.optimizers["late-sam"]


def base_and_model() -> tuple[torch.optim.Optimizer, nn.Module]:
    model = nn.Linear(2, 2)
    return torch.optim.SGD(model.parameters(), lr=0.1), model


def test_a_users_class_has_its_own_arguments_as_hyperparameters(late_sam: Entry) -> None:
    fields = late_sam.schema.model_fields
    assert [*fields][:2] == ["rho", "late_from"]
    assert "m" in fields, "options of a TypedDict"
    assert not {"base", "model", "begin", "secret", "clip_norm", "total_steps"} & fields.keys()
    assert late_sam.description == "SAM that a user has made something of (nobody 2026)."
    with pytest.raises(ValidationError):
        late_sam.schema(rho=-1.0)


def test_a_users_class_is_built_around_base_and_model(late_sam: Entry) -> None:
    base, model = base_and_model()
    optimizer = late_sam.build(base, model, **late_sam.schema(late_from=0.25).model_dump())
    assert (optimizer.base, optimizer.model, optimizer.perturb_from, optimizer.secret) == (base, model, 0.25, 3)
    assert optimizer.param_groups[0]["rho"] == 0.2


class Positional(SAM):
    def __init__(self, base: torch.optim.Optimizer, net: nn.Module, *, rho: float = 0.3) -> None:
        super().__init__(base, rho, model=net)


class ByName(SAM):
    def __init__(self, base: torch.optim.Optimizer, model: nn.Module, *, rho: float = 0.3) -> None:
        super().__init__(base, rho, model=model)


def function(base: torch.optim.Optimizer, model: nn.Module, *, rho: float = 0.3, clip_norm: float = 1.0) -> SAM:
    return SAM(base, rho, model=model, clip_norm=clip_norm)


@pytest.mark.parametrize(
    ("factory", "names"), [(Positional, ["rho"]), (ByName, ["rho"]), (function, ["rho", "clip_norm"])]
)
def test_factories_with_a_model_for_second_argument_stay_what_they_were(factory: Any, names: list[str]) -> None:
    things = Registry("thing")
    things.register("one", wraps_base=True)(factory)
    base, model = base_and_model()
    assert [*things["one"].schema.model_fields] == names
    assert things["one"].build(base, model, rho=0.1).model is model


WRAPPERS = [entry for entry in registry.optimizers if entry.wraps_base]


@pytest.mark.parametrize("entry", WRAPPERS, ids=lambda entry: entry.name)
def test_every_method_is_registered_as_a_class(entry: Entry) -> None:
    assert inspect.isclass(entry.factory), f"{entry.name}: register the class itself, no factory that repeats it"
