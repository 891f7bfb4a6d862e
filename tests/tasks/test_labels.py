"""Tables whose rows may have several labels: how they are read, split, learned from and scored."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_multilabel_classification

from bench.core.errors import BenchError
from bench.core.spec import DataSettings
from bench.data.splits import rarest_label
from bench.tasks.base import check_label_noise, prepare_data, replace_labels
from bench.tasks.csv_table import CsvTable
from tests import prefork

NAMES = ["sky", "sea", "rare"]


@pytest.fixture(scope="module", name="path")
def _path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    x, y = make_multilabel_classification(400, 12, n_classes=3, n_labels=2, random_state=0)
    y[:, 2] &= np.random.RandomState(0).rand(400) < 0.2
    path = tmp_path_factory.mktemp("labels") / "photos.csv"
    columns = {f"x{number}": x[:, number] for number in range(12)}
    pd.DataFrame({**columns, **dict(zip(NAMES, y.T, strict=True))}).to_csv(path, index=False)
    return path


def test_labels_are_columns_and_the_rare_one_has_its_share_everywhere(path: Path) -> None:
    task = CsvTable(path=str(path), target=NAMES)
    assert (task.num_outputs, task.input_shape, task.metric.key) == (3, (12,), "macro_f1")
    data = prepare_data(task, DataSettings(validation=0.2), seed=0)
    whole = torch.cat([data.train.targets, data.val.targets, data.test.targets])
    assert whole.shape == (400, 3)
    assert {*whole.flatten().tolist()} == {0.0, 1.0}
    shares = [split.targets[:, 2].mean().item() for split in (data.train, data.val, data.test)]
    assert shares == pytest.approx([whole[:, 2].mean().item()] * 3, abs=0.02)


def test_the_rarest_label_of_each_by_hand() -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert rarest_label(labels).tolist() == [1, 2, 3, 0, 1]


def test_loss_and_scores_by_hand(path: Path) -> None:
    task = CsvTable(path=str(path), target=NAMES, metric="accuracy", report=["macro_f1", "micro_f1", "auroc"])
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    outputs = torch.tensor([[2.0, -1, -1], [1, 1, -2], [3, -1, -3], [-1, -2, 1]])
    expected = torch.nn.functional.softplus(-outputs * (2 * targets - 1)).mean(dim=1)
    torch.testing.assert_close(task.losses(outputs, targets), expected)
    # Right: all but rows 0 (third), 1 (first), 2 (second).
    assert task.score(outputs, targets) == 9 / 12
    # F1 of the labels: (2 * 2) / (3 + 2), 2 / (1 + 2), 2 / (1 + 2); over all: 2 * 4 / (5 + 6).
    details = task.details(outputs, targets)
    assert details["macro_f1"] == pytest.approx((4 / 5 + 2 / 3 + 2 / 3) / 3)
    assert details["micro_f1"] == pytest.approx(8 / 11)
    assert details["auroc"] == pytest.approx((1.0 + 0.875 + 1.0) / 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": ["sky"]}, "task.target as a list is for at least 2 different columns"),
        ({"target": ["sky", "sky"]}, "task.target as a list is for at least 2 different columns"),
        ({"target": NAMES, "regression": True}, "without regression and class_weights"),
        ({"target": NAMES, "class_weights": "balanced"}, "without regression and class_weights"),
        ({"target": ["sky", "see"]}, 'no column "see"; did you mean "sea"?'),
        ({"target": ["sky", "x1"]}, 'line 2, column "x1"'),
        ({"target": NAMES, "metric": "balanced_accuracy"}, '"balanced_accuracy" is no score of several labels'),
        ({"target": "sky", "metric": "micro_f1"}, '"micro_f1" is no score of classes'),
    ],
)
def test_wrong_settings_say_what_is_wrong(path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError) as error:
        CsvTable(path=str(path), **settings)
    assert said in str(error.value)


def test_a_label_that_hardly_any_row_has(path: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(path)
    frame["never"] = [1, 1, *[0] * 398]
    frame.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(BenchError, match=r'column "never" has 1 in 2 of 400 rows; a label needs at least 3 rows'):
        CsvTable(path=str(tmp_path / "few.csv"), target=["sky", "never"])


def test_there_is_no_wrong_class_to_put_in_place_of_several_labels(path: Path) -> None:
    task = CsvTable(path=str(path), target=NAMES)
    with pytest.raises(BenchError, match="this one predicts several labels each"):
        check_label_noise(task, 0.2)
    task.multi_label = False
    with pytest.raises(BenchError, match="targets of this task have several axes"):
        replace_labels(task.load()[0], task, 0.2, seed=0)


@pytest.mark.slow
def test_a_run_learns_them(path: Path, write_experiment: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "photos.csv").write_bytes(path.read_bytes())
    write_experiment(
        {
            "task": {"name": "csv", "path": "photos.csv", "target": NAMES, "report": ["auroc", "per_class"]},
            "model": {"name": "mlp", "width": 32},
            "baseline": "sgd",
            "seeds": 1,
            "data": {"validation": 0.2},
            "train": {"epochs": 12, "batch_size": 32},
            "optimizers": {"sgd": {"lr": 0.3}, "sam": {"base": "sgd", "lr": 0.3, "rho": 0.05}},
        }
    )
    done = prefork.run([sys.executable, "-m", "bench", "run", "tiny.toml", "--jobs", "1"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = pd.read_csv(tmp_path / "results" / "tiny" / "records.csv")
    assert (records["test_macro_f1"] > 0.5).all()
    assert (records["test_auroc"] > 0.75).all()
    mean = records[[f"test_f1.{name}" for name in NAMES]].mean(axis=1)
    assert mean.to_numpy() == pytest.approx(records["test_macro_f1"].to_numpy())
    table = (tmp_path / "results" / "tiny" / "tables" / "classes.md").read_text()
    shown = re.findall(r"^\| (\w+) +\| +([\d.]+) \| +([\d.]+) \|$", table, flags=re.M)
    by_hand = {name: [f"{100 * value:.1f}" for value in records[f"test_f1.{name}"]] for name in NAMES}
    assert {name: list(cells) for name, *cells in shown} == by_hand


def test_recall_of_each_class_by_hand(tmp_path: Path) -> None:
    rows = "".join(f"{number},{'a-b' if number % 3 else 'c|d'}\n" for number in range(30))
    (tmp_path / "two.csv").write_text("x,kind\n" + rows)
    task = CsvTable(path=str(tmp_path / "two.csv"), target="kind", report=["per_class"])
    outputs, targets = torch.tensor([[2.0, 1], [0, 1], [1, 0], [0, 1]]), torch.tensor([0, 0, 0, 1])
    assert task.details(outputs, targets) == {"recall.a-b": pytest.approx(2 / 3), "recall.c_d": 1.0}
    task.class_names = ["c#", "c+"]
    assert task.details(outputs, targets) == {"recall.c_ 0": pytest.approx(2 / 3), "recall.c_ 1": 1.0}
    with pytest.raises(BenchError, match='"per_class" is no score of numbers'):
        CsvTable(path=str(tmp_path / "two.csv"), target="x", regression=True, report=["per_class"])
