"""What is held out and what is trained on: every class, or tenth of a number to predict, in its share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.spec import DataSettings
from bench.data.splits import Phase, Split, quantile_bins, stratified_order
from bench.tasks.base import Task, prepare_data
from bench.tasks.csv_table import CsvTable

UNEVEN = (np.arange(1200) >= 814).astype(np.int64)
MAJORITY = 814 / 1200
TEN = np.repeat(np.arange(10), 120)


class Labelled(Task):
    """Examples that are their own numbers, with these targets."""

    input_shape = (1,)

    def __init__(self, targets: Tensor, outputs: int) -> None:
        self.targets, self.num_outputs = targets, outputs

    def load(self) -> tuple[Split, Split]:
        numbers = torch.arange(len(self.targets), dtype=torch.float32)[:, None]
        return Split(numbers, self.targets), Split(numbers[:4], self.targets[:4])


def classes(targets: np.ndarray) -> Labelled:
    return Labelled(torch.from_numpy(targets), int(targets.max()) + 1)


def counts(split: Split, classes: int) -> list[int]:
    return torch.bincount(split.targets, minlength=classes).tolist()


@pytest.mark.parametrize("phase", [None, "tune"])
@pytest.mark.parametrize("validation", [0.05, 0.1, 0.2, 0.5])
def test_the_majority_has_the_same_share_in_validation_and_training(validation: float, phase: Phase) -> None:
    data = prepare_data(classes(UNEVEN), DataSettings(validation=validation), seed=3, phase=phase)
    for split in (data.train, data.val):
        assert counts(split, 2)[0] == pytest.approx(MAJORITY * len(split), abs=1)


@pytest.mark.parametrize("settings", [{"train_size": 100}, {"train_share": 100 / 1080}, {"train_size": 7}])
def test_a_part_of_the_training_set_has_every_class_in_its_share(settings: dict[str, float]) -> None:
    data = prepare_data(classes(TEN), DataSettings.model_validate(settings), seed=0)
    fewest, *_, most = sorted(counts(data.train, 10))
    assert most - fewest <= 1
    assert counts(data.val, 10) == [12] * 10
    uneven = prepare_data(classes(UNEVEN), DataSettings.model_validate(settings), seed=0)
    assert counts(uneven.train, 2)[0] == pytest.approx(MAJORITY * len(uneven.train), abs=1)


def test_a_smaller_part_is_the_beginning_of_a_larger_one_in_every_phase() -> None:
    phases: tuple[Phase, ...] = (None, "tune")
    for phase in phases:
        parts = [
            prepare_data(classes(TEN), DataSettings(train_size=size), seed=5, phase=phase).train
            for size in (30, 300, 1080)
        ]
        assert torch.equal(parts[0].inputs, parts[1].inputs[:30])
        assert torch.equal(parts[1].inputs, parts[2].inputs[:300])


def test_validation_belongs_to_the_seed_in_tuning_and_is_the_same_for_all_others() -> None:
    def held_out(seed: int, phase: Phase = None) -> set[float]:
        return set(prepare_data(classes(TEN), DataSettings(), seed, phase=phase).val.inputs[:, 0].tolist())

    assert held_out(0) == held_out(1)
    assert held_out(0, "tune") == held_out(0, "tune")
    # Independent tenths have a tenth of each other.
    assert len(held_out(0, "tune") & held_out(1, "tune")) < 30
    assert len(held_out(0, "tune") & held_out(0)) < 30


def test_what_is_trained_on_in_the_end_is_the_same_for_all_seeds() -> None:
    one, other = (prepare_data(classes(TEN), DataSettings(train_size=200), seed, phase="refit") for seed in (0, 1))
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert counts(one.train, 10) == [32] * 10


@pytest.mark.parametrize("phase", [None, "tune"])
@pytest.mark.parametrize("validation", [0.1, 0.5])
def test_no_class_is_held_out_whole(validation: float, phase: Phase) -> None:
    targets = np.concatenate([np.zeros(400, np.int64), np.arange(1, 41), np.arange(41, 61).repeat(2)])
    for seed in range(5):
        data = prepare_data(classes(targets), DataSettings(validation=validation), seed, phase=phase)
        assert min(counts(data.train, 61)) >= 1
        assert len(data.val) == round(validation * len(targets))


def test_classes_of_two_are_held_out_in_their_share() -> None:
    targets = np.concatenate([np.zeros(1000, np.int64), np.arange(1, 51).repeat(2)])
    (zeros, *others) = counts(prepare_data(classes(targets), DataSettings(), seed=0).val, 51)
    assert zeros == pytest.approx(100, abs=4)
    assert sum(others) == pytest.approx(10, abs=4)


def test_more_classes_than_training_examples_leave_no_more_held_out_than_was_asked_for() -> None:
    data = prepare_data(classes(np.arange(10)), DataSettings(validation=0.4), seed=0)
    assert (len(data.train), len(data.val)) == (6, 4)


def test_a_number_to_predict_has_its_tenths_in_all_parts() -> None:
    numbers = np.random.RandomState(0).exponential(size=1000).astype(np.float32)
    data = prepare_data(Labelled(torch.from_numpy(numbers), 1), DataSettings(train_size=200), seed=0)
    ends = np.quantile(numbers, np.arange(1, 10) / 10)
    for split, each in ((data.train, 20), (data.val, 10)):
        tenths = np.bincount(np.searchsorted(ends, split.targets.numpy()), minlength=10)
        assert tenths.tolist() == pytest.approx([each] * 10, abs=1)


def test_few_numbers_have_fewer_bins_and_equal_ones_are_told_apart_by_their_place() -> None:
    assert quantile_bins(np.arange(9)).tolist() == [0] * 9
    assert np.bincount(quantile_bins(np.arange(35.0))).tolist() == [12, 12, 11]
    assert np.bincount(quantile_bins(np.zeros(1000))).tolist() == [100] * 10
    assert quantile_bins(np.array([])).tolist() == []


def test_targets_of_several_axes_are_split_as_one() -> None:
    task = Labelled(torch.zeros(100, 3), 3)
    data = prepare_data(task, DataSettings(), seed=0)
    assert (len(data.train), len(data.val)) == (90, 10)


def test_every_class_gives_the_same_share_of_wrong_labels() -> None:
    clean = prepare_data(classes(UNEVEN), DataSettings(), seed=2).train
    noisy = prepare_data(classes(UNEVEN), DataSettings(label_noise=0.25), seed=2).train
    more = prepare_data(classes(UNEVEN), DataSettings(label_noise=0.5), seed=2).train
    assert noisy.noisy is not None
    assert more.noisy is not None
    for number in (0, 1):
        members = clean.targets == number
        assert noisy.noisy[members].sum() == pytest.approx(0.25 * members.sum().item(), abs=1)
    assert not (noisy.noisy & ~more.noisy).any(), "less noise is a part of more"


@pytest.mark.parametrize("sizes", [(1,), (7, 3), (1, 1, 1), (500, 1, 2, 30), (64,) * 5])
def test_an_order_has_everyone_once_and_names_the_first_of_each_stratum(sizes: tuple[int, ...]) -> None:
    stratum = np.repeat(np.arange(len(sizes)), sizes)
    order, first = stratified_order(stratum, np.random.RandomState(0))
    assert sorted(order) == list(range(len(stratum)))
    seen: set[int] = set()
    for place, is_first in zip(stratum[order].tolist(), first.tolist(), strict=True):
        assert is_first == (place not in seen)
        seen.add(place)


def test_a_single_stratum_is_in_the_order_of_a_permutation() -> None:
    order, _ = stratified_order(np.zeros(50, np.int64), np.random.RandomState(1))
    assert order.tolist() == np.random.RandomState(1).permutation(50).tolist()


def test_the_order_is_what_it_has_always_been() -> None:
    """If this fails, results before and after cannot be compared: raise PROTOCOL on purpose, or undo the change."""
    order, _ = stratified_order(np.array([0, 0, 0, 1, 1, 0, 0, 2, 0, 1]), np.random.RandomState(0))
    assert order.tolist() == [2, 8, 4, 1, 6, 9, 0, 5, 7, 3]


def test_the_test_set_of_a_table_has_the_tenths_of_a_number_to_predict(tmp_path: Path) -> None:
    numbers = np.random.RandomState(0).exponential(size=400)
    path = tmp_path / "own.csv"
    path.write_text("x,y\n" + "".join(f"{place},{number:.6f}\n" for place, number in enumerate(numbers)))
    train, test = CsvTable(path=str(path), target="y", regression=True, test=0.25).load()
    ends = np.quantile(torch.cat([train.targets, test.targets]).numpy(), np.arange(1, 10) / 10)
    tenths = np.bincount(np.searchsorted(ends, test.targets.numpy()), minlength=10)
    assert tenths.tolist() == pytest.approx([10] * 10, abs=1)
