"""A run's identity: what decides the numbers is in it, what does not is not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from bench.core import spec as specs
from bench.core.experiment import PlannedRun
from bench.core.spec import DataSettings, RunSpec, TrainSettings

FULL: dict[str, Any] = {
    "task": {"name": "digits", "params": {"augment": "shift"}},
    "model": {"name": "mlp", "params": {"width": 8, "depth": 2, "dropout": 0.25}},
    "optimizer": {
        "name": "sam",
        "params": {"rho": 0.05},
        "base": {"name": "sgd", "params": {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0005}},
    },
    "data": {"validation": 0.1, "train_size": None, "train_share": None, "label_noise": 0.2},
    "train": {
        "epochs": 20,
        "batch_size": 64,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "warmup_ratio": 0.0,
        "weight_decay_on": "all",
        "clip_norm": None,
        "precision": "fp32",
        "compile": True,
        "cuda_graphs": False,
        "deterministic": False,
        "eval_every": 1,
        "eval_train": 5000,
        "random": "all",
        "processes": 1,
    },
    "seed": 0,
    "phase": None,
    "files_sha256": None,
    "plugins": [{"path": "/home/me/mine.py", "sha256": "ab" * 32}],
}
FULL_ID = "b51a55846c99"
PLAIN_ID = "99718403af58"


def changed(path: tuple[str | int, ...], value: Any) -> RunSpec:
    """FULL with one field set to something else."""

    def put(node: Any, path: tuple[str | int, ...]) -> Any:
        if not path:
            return value
        if isinstance(node, list):
            return [put(item, path[1:]) if index == path[0] else item for index, item in enumerate(node)]
        return {key: put(item, path[1:]) if key == path[0] else item for key, item in node.items()}

    return RunSpec.model_validate(put(FULL, path))


def leaves(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield path, node
        return
    for key, item in items:
        yield from leaves(item, (*path, key))


OTHER_WORD = {"cosine": "constant", "fp32": "bf16", "all": "matrices"}


def something_else(value: Any) -> Any:
    if value is None:
        return 1
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHER_WORD.get(value, value + "x")
    return (value / 2 or 0.5) if isinstance(value, float) else value + 1


# ---- run_id --------------------------------------------------------------------------------------------------


def test_run_ids_are_what_they_have_always_been() -> None:
    """If this fails, every result ever made would be made again: raise PROTOCOL on purpose, or undo the change."""
    plain = {**FULL, "plugins": [], "optimizer": {"name": "sgd", "params": {"lr": 0.1}}}
    assert (RunSpec.model_validate(FULL).run_id, RunSpec.model_validate(plain).run_id) == (FULL_ID, PLAIN_ID)


def test_defaults_are_what_they_have_always_been() -> None:
    """What stands at its default is not in the run_id, so a default that changes would mix two kinds of runs."""
    data = {"validation": 0.1, "train_size": None, "train_share": None, "label_noise": 0.0}
    assert DataSettings().model_dump() == data
    assert TrainSettings(epochs=1).model_dump() == {
        "epochs": 1,
        "batch_size": 128,
        "schedule": "cosine",
        "warmup_epochs": 0,
        "warmup_ratio": 0.0,
        "weight_decay_on": "all",
        "clip_norm": None,
        "precision": "fp32",
        "compile": False,
        "cuda_graphs": False,
        "deterministic": False,
        "eval_every": 1,
        "eval_train": 5000,
        "random": "all",
        "processes": 1,
    }


def test_a_setting_at_its_default_is_no_part_of_the_run_id() -> None:
    """So that runs made before the setting existed keep their ids."""
    plain = {**FULL, "train": {"epochs": 20}, "data": {}}
    spelled_out = {**FULL, "train": TrainSettings(epochs=20).model_dump(), "data": DataSettings().model_dump()}
    assert RunSpec.model_validate(plain).run_id == RunSpec.model_validate(spelled_out).run_id
    with_m = changed(("optimizer", "params"), {"rho": 0.05, "m": None})
    assert with_m.run_id == FULL_ID
    assert changed(("optimizer", "params"), {"rho": 0.05, "m": 32}).run_id != FULL_ID


def test_cuda_graphs_need_compiled_code() -> None:
    with pytest.raises(ValidationError, match="needs compile = true"):
        changed(("train",), {"epochs": 1, "cuda_graphs": True})


@pytest.mark.parametrize(
    ("table", "settings", "words"),
    [
        ("train", {"epochs": 3, "warmup_epochs": 1, "warmup_ratio": 0.1}, "warmup_epochs sets the same thing"),
        ("data", {"train_size": 10, "train_share": 0.5}, "train_size sets the same thing"),
    ],
)
def test_two_ways_to_say_the_same_are_not_mixed(table: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        changed((table,), settings)


@pytest.mark.parametrize("value", ["yes", "Auto", 1, None])
def test_compile_is_true_false_or_auto(value: Any) -> None:
    with pytest.raises(ValidationError, match='must be true, false or "auto"'):
        changed(("train", "compile"), value)


def test_every_field_of_a_spec_is_in_the_list_of_the_tests_below() -> None:
    assert RunSpec.model_validate(FULL).model_dump(mode="json") == FULL


OF_ANY_VALUE = [leaf for leaf in leaves(FULL) if leaf[0] not in {("plugins", 0, "path"), ("phase",), ("files_sha256",)}]


@pytest.mark.parametrize(("path", "value"), OF_ANY_VALUE)
def test_every_field_changes_the_run_id(path: tuple[str | int, ...], value: Any) -> None:
    other = "init" if path == ("train", "random") else something_else(value)
    assert changed(path, other).run_id != RunSpec.model_validate(FULL).run_id


def test_what_a_run_does_with_the_three_sets_is_part_of_its_id() -> None:
    ids = [changed(("phase",), phase).run_id for phase in (None, "tune", "refit")]
    assert ids[0] == FULL_ID, "runs of experiments without phases, and of files written before there were any"
    assert len(set(ids)) == 3
    assert RunSpec.model_validate({key: value for key, value in FULL.items() if key != "phase"}).run_id == FULL_ID


def test_of_a_users_own_files_the_content_and_not_the_place_is_part_of_the_run_id() -> None:
    def of(path: str, sha256: str | None) -> str:
        own = {"name": "csv", "params": {"path": path, "target": "y"}}
        return RunSpec.model_validate({**FULL, "task": own, "files_sha256": sha256}).run_id

    assert of("/a.csv", "ab") == of("/b.csv", "ab") != of("/a.csv", "cd")
    assert of("/a.csv", None) != of("/b.csv", None), "a plug-in's setting of that name"


def test_the_place_of_a_plugin_is_no_part_of_the_run_id() -> None:
    assert changed(("plugins", 0, "path"), "/scratch/other.py").run_id == FULL_ID


def test_the_order_of_plugins_and_of_hyperparameters_is_no_part_of_the_run_id() -> None:
    two = [{"path": "/a.py", "sha256": "a"}, {"path": "/b.py", "sha256": "b"}]
    params = FULL["optimizer"]["base"]["params"]
    assert changed(("plugins",), two).run_id == changed(("plugins",), two[::-1]).run_id
    assert changed(("optimizer", "base", "params"), dict(reversed(params.items()))).run_id == FULL_ID


def test_a_base_optimizer_makes_another_run_than_none() -> None:
    assert changed(("optimizer", "base"), None).run_id != RunSpec.model_validate(FULL).run_id


def test_the_protocol_version_is_part_of_the_run_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "PROTOCOL", specs.PROTOCOL + 1)
    assert RunSpec.model_validate(FULL).run_id != FULL_ID


def test_a_run_id_is_12_hex_digits() -> None:
    assert re.fullmatch(r"[0-9a-f]{12}", RunSpec.model_validate(FULL).run_id)


# ---- the spec as a file --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [FULL["optimizer"], {"name": "sgd", "params": {"lr": 1e-5}, "base": None}])
def test_a_spec_survives_json_with_its_id(optimizer: dict[str, Any]) -> None:
    spec = changed(("optimizer",), optimizer)
    again = RunSpec.model_validate_json(spec.model_dump_json(indent=1))
    assert again == spec
    assert again.run_id == spec.run_id


def test_a_spec_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="momentun"):
        RunSpec.model_validate({**FULL, "momentun": 1})


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunSpec.model_validate(FULL).seed = 1


# ---- columns -------------------------------------------------------------------------------------------------


def test_hyperparameters_name_every_setting_once_for_records() -> None:
    columns = RunSpec.model_validate(FULL).hyperparameters()
    assert columns == {
        "method": "sam",
        "base": "sgd",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0005,
        "rho": 0.05,
        **FULL["train"],
        **FULL["data"],
        "task.augment": "shift",
        "model.width": 8,
        "model.depth": 2,
        "model.dropout": 0.25,
    }


def test_a_plain_optimizer_has_an_empty_base_column() -> None:
    columns = changed(("optimizer",), {"name": "sgd", "params": {"lr": 0.1}}).hyperparameters()
    assert (columns["method"], columns["base"], columns["lr"]) == ("sgd", None, 0.1)


def test_config_text_writes_swept_values_the_short_way() -> None:
    config = {"rho": 0.05, "lr": 1.0, "epochs": 40, "schedule": "cosine"}
    run = PlannedRun("sam", config, RunSpec.model_validate(FULL))
    assert run.config_text == "rho=0.05, lr=1, epochs=40, schedule=cosine"
    assert PlannedRun("sgd", {}, run.spec).config_text == ""


def test_a_condition_is_told_first_and_without_the_table_that_it_is_in() -> None:
    condition = {"label_noise": 0.4, "task.augment": "basic", "task": "cifar100"}
    run = PlannedRun("sam", {"rho": 0.1}, RunSpec.model_validate(FULL), condition)
    assert run.condition_text == "label_noise=0.4, augment=basic, task=cifar100"
    assert run.name == "label_noise=0.4, augment=basic, task=cifar100 sam rho=0.1 seed 0"
