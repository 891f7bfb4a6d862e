"""GLUE's tasks: their official metrics by hand, what they say about themselves, and that others' data is not taken."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.registry import tasks
from bench.core.spec import DataSettings
from bench.data.datasets import Dataset
from bench.data.glue_files import TASKS
from bench.tasks.base import Task, prepare_data
from bench.tasks.glue import Glue


def logits(predicted: list[int], classes: int = 2) -> Tensor:
    """Outputs whose largest is the predicted class."""
    return F.one_hot(torch.tensor(predicted), classes).float() * 3 - 1


def column(values: list[float]) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder without any data."""
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    return tmp_path


def lay_mnli(folder: Path) -> Path:
    place = folder / "glue" / "MNLI"
    place.mkdir(parents=True)
    for name, classes in {
        "train": ("entailment", "neutral", "neutral", "contradiction"),
        "dev_matched": ("neutral",),
        "dev_mismatched": ("contradiction", "neutral"),
    }.items():
        rows = [f"{name} {n}\tb\t{label}\n" for n, label in enumerate(classes)]
        (place / f"{name}.tsv").write_text("".join(["sentence1\tsentence2\tgold_label\n", *rows]))
    return place


# ---- metrics -------------------------------------------------------------------------------------------------

TRUE = [1, 1, 1, 0, 0, 0, 1, 0]
GUESS = [1, 1, 0, 0, 0, 1, 1, 1]
"""3 hits, 2 false alarms, 1 miss, 2 correct rejections."""


def test_cola_is_scored_by_matthews_correlation() -> None:
    expected = (3 * 2 - 2 * 1) / math.sqrt((3 + 2) * (3 + 1) * (2 + 2) * (2 + 1))
    task, outputs, targets = Glue("cola"), logits(GUESS), torch.tensor(TRUE)
    assert task.details(outputs, targets) == {"mcc": pytest.approx(expected)}
    assert task.score(outputs, targets) == pytest.approx(expected)
    assert task.score(-outputs, targets) == pytest.approx(-expected)


@pytest.mark.parametrize("name", ["mrpc", "qqp"])
def test_paraphrases_are_scored_by_accuracy_and_f1_of_class_1(name: str) -> None:
    task, outputs, targets = Glue(name), logits(GUESS), torch.tensor(TRUE)
    assert task.details(outputs, targets) == {"acc": pytest.approx(5 / 8), "f1": pytest.approx(6 / 9)}
    assert task.score(outputs, targets) == pytest.approx((5 / 8 + 6 / 9) / 2)
    none = task.details(logits([0, 0]), torch.tensor([0, 0]))
    assert none == {"acc": 1.0, "f1": 0.0}, "no paraphrase, none predicted"


@pytest.mark.parametrize("name", ["sst2", "mnli", "qnli", "rte", "wnli"])
def test_the_others_are_scored_by_accuracy(name: str) -> None:
    task = Glue(name)
    outputs, targets = logits(GUESS, task.num_outputs), torch.tensor(TRUE)
    assert task.details(outputs, targets) == {"acc": 5 / 8}
    assert task.score(outputs, targets) == 5 / 8


def test_similarities_are_scored_by_two_correlations() -> None:
    true, guess = [0.0, 1.0, 2.0, 5.0], [0.5, 0.0, 3.0, 10.0]
    mean_true, mean_guess = sum(true) / 4, sum(guess) / 4
    shared = sum((a - mean_true) * (b - mean_guess) for a, b in zip(true, guess, strict=True))
    squares = [sum((a - mean) ** 2 for a in values) for values, mean in ((true, mean_true), (guess, mean_guess))]
    pearson = shared / math.sqrt(squares[0] * squares[1])
    spearman = 1 - 6 * (1 + 1) / (4 * (4 * 4 - 1))  # the first two change places
    task, outputs, targets = Glue("stsb"), column(guess), torch.tensor(true)
    assert task.details(outputs, targets) == {"pearson": pytest.approx(pearson), "spearman": pytest.approx(spearman)}
    assert task.score(outputs, targets) == pytest.approx((pearson + spearman) / 2)


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("cola", logits([1, 1, 1]), torch.tensor([0, 1, 1])),
        ("cola", logits([1, 0]), torch.tensor([1, 1])),
        ("cola", logits([1, 1]), torch.tensor([1, 1])),
        ("cola", logits([0]), torch.tensor([0])),
        ("stsb", column([2.5, 2.5, 2.5]), torch.tensor([0.0, 1.0, 2.0])),
        ("stsb", column([1.0, 2.0]), torch.tensor([3.0, 3.0])),
        ("stsb", column([1.0]), torch.tensor([3.0])),
        ("stsb", column([1.0, math.nan, 2.0]), torch.tensor([0.0, 1.0, 2.0])),
        ("stsb", column([1.0, math.inf, 2.0]), torch.tensor([0.0, 1.0, 2.0])),
    ],
)
def test_a_correlation_that_is_not_defined_is_0(name: str, outputs: Tensor, targets: Tensor) -> None:
    task = Glue(name)
    assert list(task.details(outputs, targets).values()) == [0.0] * len(task.official)
    assert task.score(outputs, targets) == 0.0


def test_predictions_that_are_almost_constant_have_a_correlation_without_a_warning() -> None:
    outputs = torch.tensor([[1.0], [1.0 + 1e-15], [1.0]], dtype=torch.float64)
    details = Glue("stsb").details(outputs, torch.tensor([0.0, 1.0, 2.0]))
    assert all(math.isfinite(value) for value in details.values())


def test_losses_are_of_each_example() -> None:
    outputs, targets = column([1.0, 4.5]), torch.tensor([3.0, 4.0])
    assert Glue("stsb").losses(outputs, targets).tolist() == [4.0, 0.25]
    assert Glue("stsb").loss_name == "squared error"
    three, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    assert torch.equal(Glue("mnli").losses(three, labels), F.cross_entropy(three, labels, reduction="none"))
    assert Glue("mnli").loss_name == Task.loss_name


# ---- what they say -------------------------------------------------------------------------------------------


def test_each_task_is_known_by_its_name() -> None:
    for name in ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli"):
        task = tasks[f"glue/{name}"].build(max_length=64)
        assert (task.files.name, task.max_length, task.text) == (name, 64, True)
    assert len(TASKS) == 9 == Glue.suite.tasks
    with pytest.raises(BenchError, match='unknown task "glue/mrcp"; did you mean "glue/mrpc"'):
        tasks["glue/mrcp"]
    assert tasks["glue/rte"].description.startswith("One of GLUE's nine tasks")


def test_outputs_and_names() -> None:
    outputs = {name: Glue(name).num_outputs for name in TASKS}
    assert outputs == dict.fromkeys(TASKS, 2) | {"mnli": 3, "stsb": 1}
    assert " ".join(Glue(name).title for name in TASKS) == "CoLA SST-2 MRPC QQP STS-B MNLI QNLI RTE WNLI"
    assert {name: Glue(name).reported for name in ("cola", "mrpc", "stsb", "mnli", "rte")} == {
        "cola": {"test_mcc": "Matthews corr."},
        "mrpc": {"test_acc": "accuracy", "test_f1": "F1"},
        "stsb": {"test_pearson": "Pearson corr.", "test_spearman": "Spearman corr."},
        "mnli": {"test_acc": "matched accuracy", "mismatched_acc": "mismatched accuracy"},
        "rte": {"test_acc": "accuracy"},
    }
    assert {name: Glue(name).others for name in TASKS if Glue(name).others} == {"mnli": ("mismatched",)}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_reported_is_what_is_recorded(name: str) -> None:
    task = Glue(name)
    values = [0.0, 1.0, 1.0, 0.0]
    targets = torch.tensor(values) if name == "stsb" else torch.tensor(values).long()
    keys = task.details(torch.randn(4, task.num_outputs), targets)
    assert set(task.reported) == {f"{split}_{key}" for split in ("test", *task.others) for key in keys}


def test_the_settings_are_what_an_experiment_file_may_say() -> None:
    schema = tasks["glue/rte"].schema
    assert schema().model_dump() == {"max_length": 128, "allow_unverified_data": False}
    for length in (8, 512):
        schema.model_validate({"max_length": length})
    for wrong in ({"max_length": 7}, {"max_length": 513}, {"max_length": 9.5}, {"member": "cola"}):
        with pytest.raises(ValueError, match="validation error"):
            schema.model_validate(wrong)


def test_only_who_fetches_imports_the_hub_s_libraries() -> None:
    code = "import sys, bench.tasks.glue; print({'datasets', 'huggingface_hub'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# ---- data ----------------------------------------------------------------------------------------------------


def test_mnli_is_tested_on_both_dev_sets(folder: Path) -> None:
    lay_mnli(folder)
    task = Glue("mnli", allow_unverified_data=True)
    train, test = task.load()
    assert train.targets.tolist() == [0, 1, 1, 2]
    assert (test.inputs.first, test.targets.tolist()) == (["dev_matched 0"], [1])
    others = task.load_others()
    assert list(others) == ["mismatched"]
    assert others["mismatched"].inputs.first == ["dev_mismatched 0", "dev_mismatched 1"]
    assert others["mismatched"].targets.tolist() == [2, 1]


def test_tasks_with_one_dev_set_have_no_others_and_look_for_none(folder: Path) -> None:
    assert Glue("rte").load_others() == {}


def test_the_size_of_the_training_set_is_that_of_the_files_or_of_those_that_will_come(folder: Path) -> None:
    assert Glue("mnli").train_examples() == 392_702
    lay_mnli(folder)
    assert Glue("mnli", allow_unverified_data=True).train_examples() == 4
    with pytest.raises(BenchError, match="not the official GLUE's MNLI"):
        Glue("mnli").train_examples()


def test_the_size_of_verified_data_is_known_without_reading_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = lay_mnli(folder)
    parts = TASKS["mnli"].parts
    md5s = [hashlib.md5((place / part.name).read_bytes()).hexdigest() for part in parts]
    exact = tuple(replace(part, md5=md5) for part, md5 in zip(parts, md5s, strict=True))
    monkeypatch.setitem(TASKS, "mnli", replace(TASKS["mnli"], parts=exact))
    assert Glue("mnli").verified()
    assert Glue("mnli").train_examples() == 392_702


def test_data_that_is_not_the_real_one_needs_the_setting(folder: Path) -> None:
    lay_mnli(folder)
    assert not Glue("mnli").verified()
    Glue("mnli", allow_unverified_data=True).fetch()
    for refuse in (Glue("mnli").load, Glue("mnli").fetch, Glue("mnli").load_others):
        with pytest.raises(BenchError, match=r'name = "glue/mnli", allow_unverified_data = true'):
            refuse()


def test_similarities_have_no_classes_to_draw_wrong_labels_from(real_data: Callable[[Dataset], None]) -> None:
    real_data(TASKS["stsb"].tables)
    with pytest.raises(BenchError, match=r"data\.label_noise needs a task with classes"):
        prepare_data(Glue("stsb"), DataSettings(label_noise=0.1), seed=0)


@pytest.mark.parametrize("name", ["cola", "sst2", "mrpc", "stsb", "rte", "wnli"])
def test_of_real_data_sizes_are_told_and_perfect_answers_score_1(
    real_data: Callable[[Dataset], None], name: str
) -> None:
    real_data(TASKS[name].tables)
    task = Glue(name)
    assert task.verified()
    task.fetch()
    train, test = task.load()
    assert task.train_examples() == len(train) == TASKS[name].parts[0].rows
    answers = test.targets.unsqueeze(1) if name == "stsb" else logits(test.targets.tolist(), task.num_outputs)
    assert task.score(answers, test.targets) == pytest.approx(1.0)
