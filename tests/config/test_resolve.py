"""From an experiment file to its runs: what resolves, and what is refused, with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.config import file as experiment
from bench.core.errors import BadValue, BenchError
from bench.core.experiment import Experiment
from bench.core.spec import DataSettings, RunSpec, TrainSettings

Tiny = Callable[..., dict[str, Any]]
Write = Callable[..., Path]
Load = Callable[..., Experiment]

COMMITTED = sorted((Path(__file__).parents[2] / "experiments").glob("*.toml"))


@pytest.fixture
def load(write_experiment: Write, tiny: Tiny) -> Load:
    """load({"train.epochs": 3}, overrides...): the tiny experiment, changed and resolved."""

    def make(changes: dict[str, Any] | None = None, *overrides: str, seeds: int | None = None) -> Experiment:
        return experiment.load(write_experiment(tiny(changes)), overrides, seeds)

    return make


def specs(resolved: Experiment, label: str) -> list[RunSpec]:
    return [run.spec for run in resolved.runs if run.label == label]


# ---- what resolves -------------------------------------------------------------------------------------------


def test_a_file_resolves_to_every_run_in_the_order_label_configuration_seed(load: Load) -> None:
    resolved = load()
    assert (resolved.name, resolved.title, resolved.baseline) == ("tiny", "Tiny", "sgd")
    assert (resolved.labels, resolved.seeds, resolved.sweeps) == (("sgd", "sam"), (0, 1), {"sam": ["rho"]})
    assert [(run.label, run.config_text, run.spec.seed) for run in resolved.runs] == [
        ("sgd", "", 0),
        ("sgd", "", 1),
        ("sam", "rho=0.05", 0),
        ("sam", "rho=0.05", 1),
        ("sam", "rho=0.1", 0),
        ("sam", "rho=0.1", 1),
    ]
    assert len({run.spec.run_id for run in resolved.runs}) == 6


def test_every_default_is_filled_in(load: Load) -> None:
    spec = specs(load(), "sgd")[0]
    assert spec.task.params == {"augment": "none"}
    assert spec.model.params == {"width": 8, "depth": 2, "dropout": 0.0}
    assert spec.optimizer.params == {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    assert spec.data == DataSettings()
    assert spec.train == TrainSettings(epochs=2, batch_size=256)


def test_a_method_keeps_its_hyperparameters_and_hands_the_rest_to_its_base(load: Load) -> None:
    optimizer = specs(load({"optimizers.sam.momentum": 0.5}), "sam")[0].optimizer
    given = {name: value for name, value in optimizer.params.items() if value is not None}
    assert (optimizer.name, given) == ("sam", {"rho": 0.05})
    assert optimizer.base is not None
    assert (optimizer.base.name, optimizer.base.params["lr"], optimizer.base.params["momentum"]) == ("sgd", 0.1, 0.5)


def test_use_names_the_optimizer_where_the_label_is_another(load: Load) -> None:
    resolved = load({"optimizers": {"sgd": {"lr": 0.1}, "SGD_2.x+c-1": {"use": "sgd", "lr": 0.05}}})
    assert resolved.labels == ("sgd", "SGD_2.x+c-1")
    assert specs(resolved, "SGD_2.x+c-1")[0].optimizer.name == "sgd"


def test_an_optimizers_train_table_overrides_the_common_one_for_it_alone(load: Load) -> None:
    resolved = load({"optimizers.sgd.train": {"epochs": 4, "schedule": "constant"}})
    assert {(spec.train.epochs, spec.train.schedule, spec.train.batch_size) for spec in specs(resolved, "sgd")} == {
        (4, "constant", 256)
    }
    assert {(spec.train.epochs, spec.train.schedule) for spec in specs(resolved, "sam")} == {(2, "cosine")}


def test_a_sweep_of_several_keys_is_their_grid_the_last_key_fastest(load: Load) -> None:
    resolved = load(
        {
            "seeds": 1,
            "optimizers.sam": {
                "base": "sgd",
                "sweep": {"rho": [0.1, 0.2], "lr": [1, 0.5], "train": {"epochs": [3, 4]}},
            },
        }
    )
    runs = [run for run in resolved.runs if run.label == "sam"]
    assert resolved.sweeps == {"sam": ["rho", "lr", "epochs"]}
    assert [tuple(run.config.values()) for run in runs] == [
        (rho, lr, epochs) for rho in (0.1, 0.2) for lr in (1.0, 0.5) for epochs in (3, 4)
    ]
    for run in runs:
        assert run.spec.optimizer.base is not None
        used = (run.spec.optimizer.params["rho"], run.spec.optimizer.base.params["lr"], run.spec.train.epochs)
        assert used == tuple(run.config.values())
    assert isinstance(runs[0].config["lr"], float)


def test_a_swept_training_setting_overrides_the_common_one(load: Load) -> None:
    resolved = load({"optimizers.sgd.sweep": {"train": {"batch_size": [32, 64]}}})
    assert [spec.train.batch_size for spec in specs(resolved, "sgd")] == [32, 32, 64, 64]


@pytest.mark.parametrize(("given", "seeds"), [(1, (0,)), (3, (0, 1, 2)), ([7], (7,)), ([5, 0, 12], (5, 0, 12))])
def test_seeds_are_a_number_of_them_or_a_list(load: Load, given: Any, seeds: tuple[int, ...]) -> None:
    resolved = load({"seeds": given})
    assert resolved.seeds == seeds
    assert [spec.seed for spec in specs(resolved, "sgd")] == list(seeds)


def test_seeds_of_the_command_replace_those_of_the_file_and_keep_the_name(load: Load) -> None:
    resolved = load({"seeds": [4, 9]}, seeds=3)
    assert (resolved.seeds, resolved.name) == ((0, 1, 2), "tiny")


def test_a_missing_title_is_the_name(load: Load) -> None:
    assert load({"title": ...}).title == "tiny"


def test_the_same_file_gives_the_same_runs_wherever_it_lies(
    load: Load, tiny: Tiny, write_experiment: Write, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = write_experiment(tiny()).rename(tmp_path / "elsewhere" / "tiny.toml")
    assert experiment.load(moved) == load()


def test_meta_tells_tables_and_plots_what_records_cannot(load: Load) -> None:
    meta = load().meta()
    assert {key: meta[key] for key in ("name", "title", "baseline", "task", "model", "labels", "seeds", "sweeps")} == {
        "name": "tiny",
        "title": "Tiny",
        "baseline": "sgd",
        "task": "digits",
        "model": "mlp",
        "labels": ["sgd", "sam"],
        "seeds": [0, 1],
        "sweeps": {"sam": ["rho"]},
    }
    assert meta["metric"]["key"] == "acc"
    assert meta["data"] == DataSettings().model_dump()
    assert (meta["vary"], meta["conditions"]) == ({}, [""])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_committed_experiment_resolves_and_its_specs_survive_json(path: Path) -> None:
    resolved = experiment.load(path)
    assert resolved.runs
    assert resolved.title != resolved.name
    for run in resolved.runs:
        again = RunSpec.model_validate_json(run.spec.model_dump_json())
        assert (again, again.run_id) == (run.spec, run.spec.run_id)


def test_there_are_committed_experiments() -> None:
    assert "digits_noise" in [path.stem for path in COMMITTED]


# ---- one problem, one line: key, what is wrong, what would be right ------------------------------------------

INF, NAN = float("inf"), float("nan")

UNKNOWN_KEYS = [
    ({"titel": "x"}, "titel", ["unknown key", 'did you mean "title"?']),
    ({"train.epoch": 3}, "train.epoch", ["unknown key", 'did you mean "epochs"?']),
    ({"data.label_nois": 0.1}, "data.label_nois", ["unknown key", 'did you mean "label_noise"?']),
    ({"model.widht": 8}, "model.widht", ["unknown key", 'did you mean "width"?']),
    ({"task": {"name": "digits", "augmentt": "none"}}, "task.augmentt", ["unknown key", 'did you mean "augment"?']),
    ({"optimizers.sgd.momentun": 0.9}, "optimizers.sgd.momentun", ["unknown key", 'did you mean "momentum"?']),
    ({"optimizers.sam.momentun": 0.9}, "optimizers.sam.momentun", ["sam over sgd", 'did you mean "momentum"?']),
    ({"optimizers.sam.rhoo": 0.9}, "optimizers.sam.rhoo", ["sam over sgd", 'did you mean "rho"?']),
    ({"optimizers.sgd.rho": 0.1}, "optimizers.sgd.rho", ["unknown key", "valid: lr, momentum"]),
    ({"optimizers.sgd.train": {"epoch": 3}}, "optimizers.sgd.train.epoch", ["unknown key", '"epochs"?']),
    ({"optimizers.sam.sweep": {"rhoo": [1]}}, "optimizers.sam.rhoo", ["sam over sgd", 'did you mean "rho"?']),
    ({"optimizers.sgd.sweep": {"momentun": [1]}}, "optimizers.sgd.momentun", ["unknown key", '"momentum"?']),
    (
        {"optimizers.sgd.sweep": {"train": {"epoch": [1]}}},
        "optimizers.sgd.train.epoch",
        ["unknown key", 'did you mean "epochs"?'],
    ),
]
WRONG_TYPES = [
    ({"title": 3}, "title", ["must be a valid string", "got 3"]),
    ({"baseline": ["sgd"]}, "baseline", ["must be a valid string", "got ['sgd']"]),
    ({"train": 3}, "train", ["must be a valid table", "got 3"]),
    ({"data": [1]}, "data", ["must be a valid table", "got [1]"]),
    ({"optimizers": 3}, "optimizers", ["must be a valid table", "got 3"]),
    ({"optimizers.sgd": 3}, "optimizers.sgd", ["must be a table", "got 3"]),
    ({"optimizers.sgd.train": 3}, "optimizers.sgd.train", ["must be a table", "got 3"]),
    ({"plugins": "mine.py"}, "plugins", ["must be a valid list", "got 'mine.py'"]),
    ({"train.epochs": "3"}, "train.epochs", ["must be a valid integer", "got '3'"]),
    ({"train.epochs": 2.0}, "train.epochs", ["must be a valid integer", "got 2.0"]),
    ({"train.epochs": True}, "train.epochs", ["must be a valid integer", "got True"]),
    ({"train.clip_norm": True}, "train.clip_norm", ["must be a valid number", "got True"]),
    ({"train.schedule": "step"}, "train.schedule", ["must be 'cosine', 'linear' or 'constant'", "got 'step'"]),
    ({"data.validation": "0.1"}, "data.validation", ["must be a valid number", "got '0.1'"]),
    ({"data.label_noise": False}, "data.label_noise", ["must be a valid number", "got False"]),
    ({"model.width": 8.5}, "model.width", ["must be a valid integer", "got 8.5"]),
    ({"optimizers.sgd.lr": "fast"}, "optimizers.sgd.lr", ["must be a valid number", "got 'fast'"]),
    ({"optimizers.sgd.lr": True}, "optimizers.sgd.lr", ["must be a valid number", "got True"]),
    ({"optimizers.sgd.nesterov": 1}, "optimizers.sgd.nesterov", ["must be a valid boolean", "got 1"]),
    ({"optimizers.sam.sweep": {"rho": ["a"]}}, "optimizers.sam.rho", ["must be a valid number", "got 'a'"]),
]
IMPOSSIBLE_VALUES = [
    ({"train.epochs": 0}, "train.epochs", ["must be greater than or equal to 1", "got 0"]),
    ({"train.batch_size": 0}, "train.batch_size", ["must be greater than or equal to 1", "got 0"]),
    ({"train.clip_norm": 0.0}, "train.clip_norm", ["must be greater than 0", "got 0.0"]),
    ({"train.warmup_epochs": -1}, "train.warmup_epochs", ["must be greater than or equal to 0", "got -1"]),
    ({"data.validation": 1.2}, "data.validation", ["must be less than 1", "got 1.2"]),
    ({"data.validation": 0}, "data.validation", ["must be greater than 0", "got 0"]),
    ({"data.label_noise": 0.95}, "data.label_noise", ["must be less than or equal to 0.9", "got 0.95"]),
    ({"data.label_noise": -0.1}, "data.label_noise", ["must be greater than or equal to 0", "got -0.1"]),
    ({"data.label_noise": NAN}, "data.label_noise", ["must be a finite number", "got nan"]),
    ({"model.width": 0}, "model.width", ["must be greater than or equal to 1", "got 0"]),
    ({"optimizers.sgd.lr": NAN}, "optimizers.sgd.lr", ["must be a finite number", "got nan"]),
    ({"optimizers.sgd.lr": INF}, "optimizers.sgd.lr", ["must be a finite number", "got inf"]),
    ({"optimizers.sgd.lr": 0}, "optimizers.sgd.lr", ["must be greater than 0", "got 0"]),
    ({"optimizers.sam.sweep": {"rho": [-0.1]}}, "optimizers.sam.rho", ["greater than or equal to 0", "got -0.1"]),
    ({"optimizers.sam.sweep": {"rho": [0.1, INF]}}, "optimizers.sam.rho", ["must be a finite number", "got inf"]),
    ({"optimizers.sam.train": {"epochs": 0}}, "optimizers.sam.train.epochs", ["greater than or equal to 1", "got 0"]),
    *[
        ({"seeds": seeds}, "seeds", ["a number >= 1, or a list of different numbers >= 0", f"got {seeds!r}"])
        for seeds in (0, -1, [], [0, -1], [3, 3], True, [0, True], "five", 1.5, ["0"])
    ],
]
SWEEPS = [
    ({"optimizers.sam.sweep": {"rho": []}}, "optimizers.sam.sweep.rho", ["a list of at least one value", "got []"]),
    ({"optimizers.sam.sweep": {"rho": 0.1}}, "optimizers.sam.sweep.rho", ["a list of at least one", "got 0.1"]),
    ({"optimizers.sam.sweep": {"rho": [1, 0.5, 1.0]}}, "optimizers.sam.sweep.rho", ["the same value twice: [1, 0.5"]),
    ({"optimizers.sam.sweep": [0.1]}, "optimizers.sam.sweep", ["must be a table of lists", "got [0.1]"]),
    ({"optimizers.sam.rho": 0.3}, "optimizers.sam.rho", ["both fixed and swept"]),
    ({"optimizers.sam.sweep.lr": [0.1, 0.2]}, "optimizers.sam.lr", ["both fixed and swept"]),
    (
        {"optimizers.sgd.train": {"epochs": 3}, "optimizers.sgd.sweep": {"train": {"epochs": [1, 2]}}},
        "optimizers.sgd.train.epochs",
        ["both fixed and swept"],
    ),
    ({"optimizers.sam.sweep": {"base": ["sgd", "adam"]}}, "optimizers.sam.sweep.base", ["cannot be swept"]),
    ({"optimizers.sgd.sweep": {"use": ["sgd", "adam"]}}, "optimizers.sgd.sweep.use", ["cannot be swept"]),
]
NAMES = [
    ({"task": "digit"}, "task", ['unknown task "digit"', 'did you mean "digits"?']),
    ({"task": {"name": "digit"}}, "task", ['unknown task "digit"', 'did you mean "digits"?']),
    ({"task": {"augment": "none"}}, "task", ["unknown task", "digits"]),
    ({"task": 3}, "task", ["must be a name, or a table of a name and its settings, got 3"]),
    ({"model": "mpl"}, "model", ['unknown model "mpl"', 'did you mean "mlp"?']),
    ({"optimizers.sdg": {"lr": 1}}, "optimizers.sdg", ['unknown optimizer "sdg"', 'did you mean "sgd"?']),
    ({"optimizers.x": {"use": "sdg"}}, "optimizers.x.use", ['unknown optimizer "sdg"', 'did you mean "sgd"?']),
    ({"optimizers.x": {"use": ["sgd"]}}, "optimizers.x.use", ["unknown optimizer", "valid: "]),
    ({"optimizers.a b": {"use": "adam"}}, "optimizers.a b", ["a label is letters, digits and . _ + - only"]),
    ({"baseline": "sdg"}, "baseline", ['no optimizer "sdg"', 'did you mean "sgd"? (valid: sam, sgd)']),
    ({"optimizers.sam.base": "sdg"}, "optimizers.sam.base", ["'sdg' is not a plain optimizer", '"sgd"?']),
    (
        {"optimizers.sam.base": "asam"},
        "optimizers.sam.base",
        ["'asam' is not a plain optimizer", "adam, adamw, lion, muon, "],
    ),
    ({"optimizers.sam.base": 3}, "optimizers.sam.base", ["3 is not a plain optimizer", "adam, adamw, lion, muon, "]),
    ({"optimizers.sam.base": ...}, "optimizers.sam.base", ["required", '"sam" wraps', "adam, adamw, lion, muon, "]),
    ({"optimizers.sgd.base": "adam"}, "optimizers.sgd.base", ['"sgd" wraps no other optimizer']),
]
MISSING = [
    ({"task": ...}, "task", ["required, but missing"]),
    ({"model": ...}, "model", ["required, but missing"]),
    ({"baseline": ...}, "baseline", ["required, but missing"]),
    ({"seeds": ...}, "seeds", ["required, but missing"]),
    ({"train": ...}, "train", ["required, but missing"]),
    ({"optimizers": ...}, "optimizers", ["required, but missing"]),
    ({"optimizers": {}}, "optimizers", ["at least one optimizer is needed"]),
    ({"train.epochs": ...}, "train.epochs", ["required, but missing"]),
    ({"optimizers.sgd.lr": ...}, "optimizers.sgd.lr", ["required, but missing"]),
    ({"optimizers.sam.lr": ...}, "optimizers.sam.lr", ["required, but missing"]),
]


@pytest.mark.parametrize(
    ("changes", "key", "fragments"),
    [*UNKNOWN_KEYS, *WRONG_TYPES, *IMPOSSIBLE_VALUES, *SWEEPS, *NAMES, *MISSING],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_input_is_told_once_under_its_key(
    write_experiment: Write, tiny: Tiny, changes: dict[str, Any], key: str, fragments: list[str]
) -> None:
    path = write_experiment(tiny(changes))
    with pytest.raises(BadValue) as caught:
        experiment.load(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{key}: ")
    for fragment in fragments:
        assert fragment in problem
    assert str(caught.value) == f"{path}: 1 problem\n  {problem}"


def test_all_problems_of_a_file_are_told_at_once(write_experiment: Write, tiny: Tiny) -> None:
    path = write_experiment(
        tiny(
            {
                "titel": "x",
                "seeds": 0,
                "model": "mpl",
                "task": {"name": "digits", "augment": "flip"},
                "data": {"validation": 2, "label_noise": 1},
                "train": {"epochs": 0, "batchsize": 3},
                "baseline": "sdg",
                "optimizers.sgd.lr": ...,
                "optimizers.sam.sweep": {"rho": [-1, -2]},
                "optimizers.adan": {},
            }
        )
    )
    with pytest.raises(BadValue) as caught:
        experiment.load(path)
    assert sorted(problem.partition(":")[0] for problem in caught.value.problems) == [
        "baseline",
        "data.label_noise",
        "data.validation",
        "model",
        "optimizers.adan",
        "optimizers.sam.rho",
        "optimizers.sam.rho",
        "optimizers.sgd.lr",
        "seeds",
        "task.augment",
        "titel",
        "train.batchsize",
        "train.epochs",
    ]
    assert str(caught.value).startswith(f"{path}: 13 problems\n")


def test_values_that_read_the_same_are_refused(load: Load) -> None:
    near = [0.1234567, 0.1234568]
    with pytest.raises(BadValue, match=r"optimizers\.sam: two points are the same to six digits \(rho=0\.123457\)"):
        load({"optimizers.sam.sweep": {"rho": near}})
    with pytest.raises(BadValue, match=r"vary: two points are the same to six digits"):
        load({"vary": {"data.label_noise": near}})


def test_a_problem_that_a_sweep_meets_at_every_point_is_told_once(load: Load) -> None:
    with pytest.raises(BadValue) as caught:
        load({"optimizers.sam": {"base": "sgd", "sweep": {"rho": [0.1, 0.2, 0.3]}}})
    assert caught.value.problems == ["optimizers.sam.lr: required, but missing"]


# ---- files that cannot be read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"), [('title = "x"\ntask = digits\n', 2), ("seeds = 1\n\nseeds = 2\n", 3), ("[train\n", 1)]
)
def test_broken_toml_is_told_with_its_line(write_experiment: Write, text: str, line: int) -> None:
    path = write_experiment(text)
    with pytest.raises(BadValue, match=rf"broken TOML: .*\(at line {line}, column \d+\)") as caught:
        experiment.load(path)
    assert caught.value.source == str(path)


def test_a_file_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes('title = "é"\n'.encode("latin-1"))
    with pytest.raises(BadValue, match=r"not UTF-8 text: .* position 9"):
        experiment.load(path)


def test_a_file_is_utf8_whatever_the_locale(load: Load) -> None:
    assert load({"title": "Größe × 2"}).title == "Größe × 2"


def test_an_empty_file_misses_every_required_key(write_experiment: Write) -> None:
    with pytest.raises(BadValue) as caught:
        experiment.load(write_experiment(""))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        *("task", "model", "baseline", "train", "optimizers", "seeds"),
    ]


def test_a_folder_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"cannot read {tmp_path}"):
        experiment.load(tmp_path)


def test_a_failing_plugin_is_told_by_its_own_file(registries: Any, load: Load, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"plug-in {tmp_path / 'nope.py'} does not exist"):
        load({"plugins": ["nope.py"]})


# ---- finding the file ----------------------------------------------------------------------------------------


def test_a_name_is_found_under_experiments_here_before_those_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert experiment.find("digits_noise").resolve() == COMMITTED[0].parent / "digits_noise.toml"
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "digits_noise.toml").touch()
    assert experiment.find("digits_noise") == Path("experiments/digits_noise.toml")


def test_a_path_is_found_as_it_is(write_experiment: Write) -> None:
    path = write_experiment("")
    assert experiment.find(str(path)) == path


def test_an_unknown_experiment_answers_with_the_nearest_of_both_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "my_own.toml").touch()
    with pytest.raises(BenchError, match=r'unknown experiment "digit_noise"; did you mean "digits_noise"\?'):
        experiment.find("digit_noise")
    with pytest.raises(BenchError, match=r'unknown experiment "myown"; did you mean "my_own"\?'):
        experiment.find("myown")


def test_a_missing_file_is_named_with_the_nearest_beside_it(write_experiment: Write, tmp_path: Path) -> None:
    write_experiment("", "tiny")
    with pytest.raises(BenchError) as caught:
        experiment.find(str(tmp_path / "tinny.toml"))
    assert str(caught.value) == (
        f'experiment file {tmp_path / "tinny.toml"} does not exist; did you mean "tiny"? (valid: tiny)'
    )


def test_a_folder_of_results_is_told_from_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "experiment.json").write_text("{}")
    with pytest.raises(BenchError, match="is a folder of results; give the experiment, its file or its name: tiny"):
        experiment.find(str(tmp_path / "tiny"))


# ---- --set KEY=VALUE -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("train.epochs=7", "epochs", 7),
        (" train.epochs = 7 ", "epochs", 7),
        ("train.clip_norm=1e-1", "clip_norm", 0.1),
        ("train.schedule=constant", "schedule", "constant"),
        ('train.schedule="constant"', "schedule", "constant"),
        ("optimizers.sgd.train.epochs=7", "epochs", 7),
        ("optimizers.sgd.train={epochs = 7}", "epochs", 7),
    ],
)
def test_an_override_is_a_dotted_key_and_a_toml_value_or_bare_word(
    load: Load, override: str, field: str, value: Any
) -> None:
    assert getattr(specs(load(None, override), "sgd")[0].train, field) == value


def test_an_override_can_set_a_list_a_boolean_and_what_the_file_does_not_have(load: Load) -> None:
    resolved = load(None, "optimizers.sam.sweep.rho=[1, 2, 3]", "optimizers.sgd.nesterov=true", "optimizers.adam={}")
    assert resolved.labels == ("sgd", "sam", "adam")
    assert [run.config["rho"] for run in resolved.runs if run.label == "sam" and run.spec.seed == 0] == [1.0, 2.0, 3.0]
    assert specs(resolved, "sgd")[0].optimizer.params["nesterov"] is True


def test_the_last_of_two_overrides_of_a_key_counts(load: Load) -> None:
    assert specs(load(None, "train.epochs=3", "train.epochs=4"), "sgd")[0].train.epochs == 4


def test_overrides_make_it_another_experiment_so_that_results_do_not_mix(load: Load) -> None:
    names = [
        load(None, *overrides).name
        for overrides in (
            [],
            ["train.epochs=3"],
            ["train.epochs=4"],
            ["train.epochs=3", "seeds=1"],
            ["optimizers.sam.sweep.rho=[0.1, 0.2]"],
            ["optimizers.sam.sweep.rho=[0.1]"],
        )
    ]
    assert names[:3] == ["tiny", "tiny+train.epochs=3", "tiny+train.epochs=4"]
    assert len(set(names)) == len(names)
    assert all("/" not in name and " " not in name for name in names)


def test_an_override_cannot_leave_the_results_folder(load: Load) -> None:
    assert "/" not in load(None, "title=../../etc/x").name


@pytest.mark.parametrize("override", ["train.epochs", "=3", ""])
def test_an_override_without_key_or_value_is_told_with_an_example(load: Load, override: str) -> None:
    with pytest.raises(BadValue, match=r"expected KEY=VALUE, for example train\.epochs=10"):
        load(None, override)


@pytest.mark.parametrize(
    ("override", "key"), [("title.x=3", "title"), ("train.epochs.x=3", "train.epochs"), ("seeds.a.b=1", "seeds")]
)
def test_an_override_through_something_that_is_no_table_is_told(load: Load, override: str, key: str) -> None:
    with pytest.raises(BadValue) as caught:
        load(None, override)
    assert caught.value.source == f"--set {override}"
    assert caught.value.problems == [f"{key} is a value, not a table"]


def test_a_wrong_override_is_checked_like_the_file(load: Load) -> None:
    with pytest.raises(BadValue, match=r"train\.epoch: unknown key; did you mean"):
        load(None, "train.epoch=3")
    with pytest.raises(BadValue, match=r"train\.epochs: must be a valid integer, got 'many'"):
        load(None, "train.epochs=many")


def test_warm_up_is_not_longer_than_training(write_experiment: Any, tiny: Any) -> None:
    path = write_experiment(tiny({"train.epochs": 3, "train.warmup_epochs": 4}))
    with pytest.raises(BadValue, match=r"train\.warmup_epochs: must be at most epochs \(3\), got 4"):
        experiment.load(path)
