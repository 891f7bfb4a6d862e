"""Registries: names, hyperparameters read off signatures, and users' plug-ins."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import torch
from pydantic import Field, ValidationError

from bench.config import file as experiment
from bench.core import registry
from bench.core.errors import BenchError, nearest
from bench.core.registry import Registry
from bench.store.run_folder import RunFolder
from bench.train import train

Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Forget = Callable[[], None]

SIGN_SGD = """
import torch
from bench import register_optimizer

class Sign(torch.optim.SGD):
    pass

@register_optimizer("sign_sgd", passes=lambda params: 3)
def sign_sgd(params, *, lr: float, decay: float = 0.5):
    return Sign(params, lr=lr)
"""

EVERYTHING = """
import torch
from torch import nn
from bench import OptimizerWrapper, Split, Task, register_model, register_optimizer, register_task

@register_task("parity")
class Parity(Task):
    '''Whether the sum of four bits is even.'''

    num_outputs = 2
    input_shape = (4,)

    def __init__(self, *, copies: int = 3) -> None:
        self.copies = copies

    def load(self):
        bits = (torch.arange(16)[:, None] >> torch.arange(4)) & 1
        whole = Split(bits.float(), bits.sum(dim=1) % 2)
        return Split(whole.inputs.repeat(self.copies, 1), whole.targets.repeat(self.copies)), whole

@register_model("line")
def line(task, *, bias: bool = True):
    return nn.Linear(task.input_shape[0], task.num_outputs, bias=bias)

@register_optimizer("halved", wraps_base=True)
def halved(base, model, *, times: int = 1):
    return OptimizerWrapper(base, model=model)
"""


# ---- names ---------------------------------------------------------------------------------------------------


def test_an_unknown_name_answers_with_the_nearest_valid_one() -> None:
    registry.load_builtins()
    with pytest.raises(BenchError, match=r'unknown optimizer "sdg"; did you mean "sgd"\? \(valid: adam, '):
        registry.optimizers["sdg"]
    with pytest.raises(BenchError, match=r'unknown task "zzz"; valid: '):
        registry.tasks["zzz"]


@pytest.mark.parametrize(
    ("name", "valid", "answer"),
    [
        ("digit", ["digits", "cifar10"], 'did you mean "digits"? (valid: cifar10, digits)'),
        ("SGD", ["adam", "sgd"], 'did you mean "sgd"? (valid: adam, sgd)'),
        ("sam-2x", ["SAM-2x", "sgd"], 'did you mean "SAM-2x"? (valid: SAM-2x, sgd)'),
        ("xyz", ["b", "a"], "valid: a, b"),
        ("xyz", [], "there are none"),
    ],
)
def test_nearest_offers_the_closest_name_whatever_its_case_else_all(name: str, valid: list[str], answer: str) -> None:
    assert nearest(name, valid) == answer


def test_a_name_registered_twice_is_an_error_that_tells_both_places() -> None:
    things = Registry("thing")

    @things.register("one")
    def first() -> None: ...

    def second() -> None: ...

    with pytest.raises(BenchError, match=r'thing "one" is registered twice: by .*first and by .*second; rename one'):
        things.register("one")(second)
    assert things["one"].factory is first


def test_a_registry_iterates_in_the_order_of_names() -> None:
    things = Registry("thing")
    for name in ("b", "c", "a"):
        things.register(name)(lambda: None)
    assert [entry.name for entry in things] == ["a", "b", "c"]
    assert "a" in things
    assert "d" not in things


def test_the_decorator_gives_the_factory_back_unchanged() -> None:
    def factory() -> None: ...

    assert Registry("thing").register("x")(factory) is factory


# ---- hyperparameters -----------------------------------------------------------------------------------------


def _factory(
    params: object,
    *,
    lr: Annotated[float, Field(gt=0)],
    steps: int = 3,
    mode: Literal["slow", "fast"] = "slow",
    limit: float | None = None,
) -> None:
    """The first line describes it.

    The second does not.
    """


@pytest.fixture
def entry() -> registry.Entry:
    things = Registry("thing")
    things.register("x")(_factory)
    return things["x"]


def test_keyword_only_arguments_are_the_hyperparameters_with_their_defaults(entry: registry.Entry) -> None:
    assert list(entry.schema.model_fields) == ["lr", "steps", "mode", "limit"]
    assert entry.schema.model_validate({"lr": 1}).model_dump() == {
        "lr": 1.0,
        "steps": 3,
        "mode": "slow",
        "limit": None,
    }
    assert entry.description == "The first line describes it."


@pytest.mark.parametrize(
    ("values", "key", "kind"),
    [
        ({}, "lr", "missing"),
        ({"lr": 0}, "lr", "greater_than"),
        ({"lr": "1"}, "lr", "float_type"),
        ({"lr": True}, "lr", "float_type"),
        ({"lr": float("nan")}, "lr", "finite_number"),
        ({"lr": float("inf")}, "lr", "finite_number"),
        ({"lr": 1, "steps": 2.0}, "steps", "int_type"),
        ({"lr": 1, "steps": True}, "steps", "int_type"),
        ({"lr": 1, "mode": "medium"}, "mode", "literal_error"),
        ({"lr": 1, "params": 1}, "params", "extra_forbidden"),
        ({"lr": 1, "lrr": 1}, "lrr", "extra_forbidden"),
    ],
)
def test_types_bounds_and_names_of_hyperparameters_are_strict(
    entry: registry.Entry, values: dict[str, Any], key: str, kind: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        entry.schema.model_validate(values)
    assert [(fault["loc"], fault["type"]) for fault in caught.value.errors()] == [((key,), kind)]


def test_a_class_gives_its_hyperparameters_by_its_constructor() -> None:
    class Plain:
        pass

    class Configured:
        def __init__(self, *, size: int = 2) -> None: ...

    things = Registry("thing")
    things.register("plain")(Plain)
    things.register("configured")(Configured)
    assert list(things["plain"].schema.model_fields) == []
    assert things["configured"].schema.model_validate({}).model_dump() == {"size": 2}


def test_every_registered_name_has_a_description_and_valid_defaults() -> None:
    registry.load_builtins()
    for kind in (registry.tasks, registry.models, registry.optimizers):
        assert list(kind), kind.kind
        for entry in kind:
            assert entry.description.endswith((".", ")")), entry.name
            fields = entry.schema.model_fields
            required = {
                # A type of its own, or one of several: str | list[str].
                key: "x" if str in (field.annotation, *get_args(field.annotation)) else 1e-3
                for key, field in fields.items()
                if field.is_required()
            }
            for name, field in fields.items():
                if not field.is_required():
                    entry.schema.model_validate({**required, name: field.default})


# ---- plug-ins ------------------------------------------------------------------------------------------------


def test_a_plugin_adds_task_model_and_optimizer_that_an_experiment_trains(
    registries: Forget, write_plugin: Write, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    write_plugin(EVERYTHING)
    path = write_experiment(
        tiny(
            {
                "plugins": ["mine.py"],
                "task": {"name": "parity", "copies": 4},
                "model": "line",
                "optimizers": {"mine": {"use": "halved", "base": "sgd", "lr": 0.1}},
                "baseline": "mine",
                "seeds": 1,
            }
        )
    )
    (run,) = experiment.load(path).runs
    assert run.spec.task.params == {"copies": 4}
    assert run.spec.model.params == {"bias": True}
    assert run.spec.optimizer.params == {"times": 1}
    result = train(run.spec, RunFolder(tmp_path / run.spec.run_id), torch.device("cpu"))
    assert result["status"] == "done"
    assert 0 <= result["metrics"]["test_acc"] <= 1


def test_a_plugin_is_relative_to_the_experiment_file(
    registries: Forget,
    write_plugin: Write,
    write_experiment: Write,
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    plugin = write_plugin(SIGN_SGD)
    path = write_experiment(tiny({"plugins": ["mine.py"], "optimizers.sign_sgd": {"lr": 0.1}}))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    runs = experiment.load(path).runs
    assert {run.spec.plugins[0].path for run in runs if run.label == "sign_sgd"} == {str(plugin)}


def test_a_plugin_is_imported_once(registries: Forget, write_plugin: Write) -> None:
    path = write_plugin(SIGN_SGD)
    assert registry.load_plugin(path) is registry.load_plugin(path.parent / "." / path.name)


def _ids(path: Path) -> dict[tuple[str, str, int], str]:
    runs = experiment.load(path).runs
    return {(run.label, run.config_text, run.spec.seed): run.spec.run_id for run in runs}


def test_a_changed_plugin_changes_the_run_id_of_the_runs_that_use_it_and_of_no_other(
    registries: Forget, write_plugin: Write, write_experiment: Write, tiny: Tiny
) -> None:
    plugin = write_plugin(SIGN_SGD)
    path = write_experiment(tiny({"plugins": ["mine.py"], "optimizers.sign_sgd": {"lr": 0.1}}))
    before = _ids(path)
    registries()
    plugin.write_text(SIGN_SGD + "# another thought\n")
    after = _ids(path)
    assert before.keys() == after.keys()
    for key in before:
        assert (before[key] != after[key]) == (key[0] == "sign_sgd"), key


def test_runs_that_use_no_plugin_have_the_id_they_would_have_without_one(
    registries: Forget, write_plugin: Write, write_experiment: Write, tiny: Tiny
) -> None:
    without = _ids(write_experiment(tiny(), "plain"))
    write_plugin(SIGN_SGD)
    assert _ids(write_experiment(tiny({"plugins": ["mine.py"]}))) == without


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("import math\n\nraise ValueError('no such thing')\n", "ValueError: no such thing", 3),
        ("x = 1\ndef f(:\n", "SyntaxError: invalid syntax", 2),
        ("\nimport a_module_that_is_not_there\n", "ModuleNotFoundError: No module named", 2),
        ("def f():\n    return 1 / 0\n\nf()\n", "ZeroDivisionError", 2),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3", 2),
        (
            "from bench import register_task\n\n@register_task('digits')\ndef mine(): ...\n",
            'task "digits" is registered twice: by bench.tasks.digits.Digits and by',
            3,
        ),
        (
            "from __future__ import annotations\nfrom bench import register_model\n\n@register_model('mine')\n"
            "def mine(task, *, width: Integer = 1): ...\n",
            "NameError: name 'Integer' is not defined",
            4,
        ),
    ],
    ids=["exception", "syntax", "import", "deeper", "exit", "duplicate", "signature"],
)
def test_a_plugin_that_fails_is_one_error_with_file_and_line_and_registers_nothing(
    registries: Forget, write_plugin: Write, text: str, said: str, line: int
) -> None:
    path = write_plugin(text)
    before = [dict(kind._entries) for kind in (registry.tasks, registry.models, registry.optimizers)]
    modules = set(sys.modules)
    with pytest.raises(BenchError) as caught:
        registry.load_plugin(path)
    message = str(caught.value)
    assert message.startswith(f"plug-in {path} fails to import: {said}")
    assert re.findall(r"line (\d+)\)", message) == [str(line)]
    assert "\n" not in message
    assert [dict(kind._entries) for kind in (registry.tasks, registry.models, registry.optimizers)] == before
    assert not [name for name in set(sys.modules) - modules if name.startswith("bench_plugin_")]


def test_a_plugin_that_fails_halfway_leaves_no_name_and_loads_once_it_is_mended(
    registries: Forget, write_plugin: Write
) -> None:
    path = write_plugin(SIGN_SGD + "\nraise RuntimeError('later')\n")
    with pytest.raises(BenchError, match="RuntimeError: later"):
        registry.load_plugin(path)
    assert "sign_sgd" not in registry.optimizers
    path.write_text(SIGN_SGD)
    plugin = registry.load_plugin(path)
    assert registry.optimizers["sign_sgd"].plugin == plugin


@pytest.mark.parametrize(
    ("name", "said"), [("nope.py", "does not exist"), ("folder", "does not exist"), ("a.txt", "is not a Python file")]
)
def test_a_plugin_that_is_no_python_file_is_named(registries: Forget, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text("x = 1")
    with pytest.raises(BenchError, match=re.escape(f"plug-in {tmp_path / name} {said}")):
        registry.load_plugin(tmp_path / name)


def test_a_run_refuses_a_plugin_that_changed_since_it_was_planned(
    registries: Forget, write_plugin: Write, write_experiment: Write, tiny: Tiny, tmp_path: Path
) -> None:
    plugin = write_plugin(SIGN_SGD)
    path = write_experiment(tiny({"plugins": ["mine.py"], "optimizers.sign_sgd": {"lr": 0.1}}))
    run = next(run for run in experiment.load(path).runs if run.label == "sign_sgd")
    registries()
    plugin.write_text(SIGN_SGD + "# changed\n")
    with pytest.raises(BenchError, match=re.escape(f"plug-in {plugin} has changed since this run was planned")):
        train(run.spec, RunFolder(tmp_path / "run"), torch.device("cpu"))


# ---- installed packages --------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, registries: Forget) -> Callable[[str], None]:
    """installed("module text"): as if a package with that module had been installed, entry point and all."""

    def install(text: str) -> None:
        (tmp_path / "a_package_of_tests.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "a_package_of_tests", raising=False)
        point = importlib.metadata.EntryPoint("extra", "a_package_of_tests", registry.ENTRY_POINT_GROUP)
        monkeypatch.setattr(
            importlib.metadata, "entry_points", lambda group: [point] if group == "bench.plugins" else []
        )

    return install


def test_installed_packages_register_through_their_entry_points(installed: Callable[[str], None]) -> None:
    installed(SIGN_SGD)
    registry.load_builtins.__wrapped__()
    assert registry.optimizers["sign_sgd"].passes({}) == 3
    assert registry.optimizers["sign_sgd"].plugin is None


def test_an_entry_point_that_fails_is_named_with_its_error(installed: Callable[[str], None]) -> None:
    installed("raise OSError('no licence')")
    with pytest.raises(BenchError, match=r"entry point extra = a_package_of_tests fails to import: .*no licence"):
        registry.load_builtins.__wrapped__()
