"""What of the training set is evaluated in the course of training, and that all of it is at the end."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.config import file as experiment
from bench.core.errors import BenchError
from bench.core.registry import load_builtins, tasks
from bench.core.spec import ComponentSpec, DataSettings, OptimizerSpec, RunSpec, TrainSettings
from bench.data.splits import Split
from bench.launch.estimate import Speed, measure_speed
from bench.store.run_folder import Store
from bench.tasks.base import prepare_data, replace_labels, sampled
from bench.train import train

load_builtins()
CPU = torch.device("cpu")
DIGITS = tasks["digits"].factory()


def make_spec(**settings: Any) -> RunSpec:
    return RunSpec(
        task=ComponentSpec(name="digits", params={"augment": "none"}),
        model=ComponentSpec(name="mlp", params={"width": 8, "depth": 1, "dropout": 0.0}),
        optimizer=OptimizerSpec(name="sgd", params={"lr": 0.1}),
        data=DataSettings(label_noise=0.2),
        train=TrainSettings(**({"epochs": 3, "batch_size": 200} | settings)),
        seed=0,
    )


def do(spec: RunSpec, root: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    folder = Store(root).run(spec.run_id)
    with folder.claim():
        return train(spec, folder, CPU), folder.curve()


# ---- the sample ----------------------------------------------------------------------------------------------


def labelled(classes: list[int], *, noisy: bool = True) -> Split:
    targets = torch.tensor(classes)
    return Split(torch.arange(len(targets)), targets, torch.arange(len(targets)) % 5 == 0 if noisy else None)


def test_each_class_has_its_share_and_so_have_replaced_labels() -> None:
    train_set = replace_labels(prepare_data(DIGITS, DataSettings(), 0).train, DIGITS, 0.2, 0)
    some = sampled(train_set, 400)
    assert len(some) == 400
    assert some.noisy is not None
    assert train_set.noisy is not None
    assert some.noisy.sum() == pytest.approx(80, abs=3)
    share = 400 / len(train_set)
    counted = zip(some.targets.bincount(), train_set.targets.bincount(), strict=True)
    assert all(abs(found - share * of) <= 2 for found, of in counted)


def test_no_example_comes_twice_and_the_draw_is_always_the_same() -> None:
    split = labelled([0, 1, 2] * 40)
    some, again = sampled(split, 30), sampled(split, 30)
    assert torch.equal(some.inputs, again.inputs)
    assert len(set(some.inputs.tolist())) == 30
    assert some.inputs.tolist() == sorted(some.inputs.tolist())
    assert some.inputs.tolist() != list(range(30))


def test_a_rare_class_is_not_left_out() -> None:
    some = sampled(labelled([0] * 500 + [1], noisy=False), 2)
    assert sorted(some.targets.tolist()) == [0, 1]


@pytest.mark.parametrize("size", ["all", 60, 61])
def test_a_set_that_is_no_larger_is_left_as_it_is(size: Any) -> None:
    split = labelled([0, 1] * 30)
    assert sampled(split, size) is split


def test_numbers_to_predict_are_drawn_in_their_range() -> None:
    split = Split(torch.arange(100), torch.arange(100).float())
    tenths = (sampled(split, 20).targets // 10).long().bincount(minlength=10)
    assert (tenths >= 1).all()


# ---- in a run ------------------------------------------------------------------------------------------------


def test_the_last_epoch_measures_all_and_those_before_it_some(tmp_path: Path) -> None:
    (whole, full), (result, curve) = (do(make_spec(eval_train=size), tmp_path / str(size)) for size in ("all", 100))
    assert whole["weights_sha256"] == result["weights_sha256"]
    assert result["metrics"] == whole["metrics"]
    assert {k: v for k, v in curve[-1].items() if "seconds" not in k} == {
        k: v for k, v in full[-1].items() if "seconds" not in k
    }
    for point, of_all in zip(curve[:-1], full[:-1], strict=True):
        assert point["val_loss"] == of_all["val_loss"]
        assert point["test_loss"] == of_all["test_loss"]
        assert point["train_loss"] != of_all["train_loss"]
        assert point["train_acc"] * 100 == pytest.approx(round(point["train_acc"] * 100)), "of 100 examples"
        assert point["train_clean_acc"] == pytest.approx(of_all["train_clean_acc"], abs=0.15)
        assert point["gap_loss"] == point["test_loss"] - point["train_clean_loss"]
        assert point["val_dummy_acc"] == of_all["val_dummy_acc"], "learned from all, not from some"


def test_a_small_training_set_gives_the_records_and_the_run_id_of_before(tmp_path: Path) -> None:
    plain, whole = make_spec(), make_spec(eval_train="all")
    assert plain.run_id == make_spec(eval_train=5000).run_id != whole.run_id
    (result, curve), (other, full) = do(plain, tmp_path / "plain"), do(whole, tmp_path / "whole")
    assert result["metrics"] == other["metrics"]
    assert [point["train_loss"] for point in curve] == [point["train_loss"] for point in full]


def test_an_estimate_counts_all_of_the_training_set_once() -> None:
    assert Speed(1.0, 2.0, 10.0, more=5.0).run(make_spec(epochs=3), 4) == 1 + 4 * 2 + 3 * 10 + 5
    some, whole = (measure_speed(make_spec(eval_train=size), CPU, seconds=0.0) for size in (108, "all"))
    assert whole.more == 0
    sizes = [len(split) for split in prepare_data(DIGITS, DataSettings(), 0).splits().values()]
    assert some.more / some.an_evaluation == pytest.approx((sizes[0] - 108) / (108 + sum(sizes[1:])))


# ---- in a file -----------------------------------------------------------------------------------------------

TOML = """
task = "digits"
model = "mlp"
baseline = "sgd"
seeds = 1
[train]
epochs = 1
eval_train = {value}
[optimizers.sgd]
lr = 0.1
"""


@pytest.mark.parametrize(
    ("value", "shown"), [("0", "0"), ("-3", "-3"), ("2.5", "2.5"), ("true", "True"), ('"some"', "'some'")]
)
def test_another_value_is_one_clear_error(tmp_path: Path, value: str, shown: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML.format(value=value))
    words = f'train.eval_train: must be a whole number of at least 1, or "all", got {shown}'
    with pytest.raises(BenchError, match=re.escape(words)) as caught:
        experiment.load(path)
    assert str(caught.value).count("eval_train") == 1


def test_all_and_a_number_are_taken_from_the_file_and_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML.format(value='"all"'))
    assert experiment.load(path).runs[0].spec.train.eval_train == "all"
    assert experiment.load(path, ["train.eval_train=70"]).runs[0].spec.train.eval_train == 70
