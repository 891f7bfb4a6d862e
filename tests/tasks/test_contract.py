"""What every registered task must give, and what the protocol does to its data."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.config.file import load
from bench.core import registry
from bench.core.errors import BenchError
from bench.core.spec import DataSettings
from bench.data.splits import Split, split_sizes
from bench.launch.plan import make_plan
from bench.store.run_folder import Store
from bench.tasks import digits
from bench.tasks.base import ACCURACY, Task, prepare_data, replace_labels
from bench.tasks.digits import Digits

registry.load_builtins()
PLAIN, NOISY = DataSettings(), DataSettings(label_noise=0.3)


TASKS = [entry.name for entry in registry.tasks if not entry.members and not getattr(entry.factory, "text", False)]
TASKS += ["torchvision/svhn", "torchvision/eurosat"]
"""Those that give tensors; tests of GLUE and of text_lm are their own, since texts become tensors by a tokenizer.

Of torchvision's data sets the two of one size, with a test set and without; all five have tests of their own.
"""


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest, build_task: Callable[[str], Task]) -> Task:
    return build_task(request.param)


@pytest.fixture(scope="module")
def loaded(task: Task) -> tuple[Split, Split]:
    return task.load()


def rows(split: Split) -> list[str]:
    """A fingerprint of each example's input."""
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in split.inputs]


def same(a: Split, b: Split) -> bool:
    return torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets)


# ---- the contract of a task ----------------------------------------------------------------------------------


def test_loading_is_deterministic(task: Task, loaded: tuple[Split, Split]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    again = task.load()
    assert same(again[0], loaded[0])
    assert same(again[1], loaded[1])


def test_train_examples_is_the_size_of_the_training_set(task: Task, loaded: tuple[Split, Split]) -> None:
    assert task.train_examples() == len(loaded[0]) == len(loaded[0].inputs)


def test_targets_are_class_numbers_or_floats(task: Task, loaded: tuple[Split, Split]) -> None:
    for split in loaded:
        assert split.targets.shape == (len(split.inputs),)
        assert split.noisy is None
        if split.targets.is_floating_point():
            assert task.num_outputs == 1
        else:
            assert split.targets.dtype == torch.int64
            assert set(split.targets.tolist()) == set(range(task.num_outputs))


def test_model_inputs_have_the_promised_shape_and_are_finite(task: Task, loaded: tuple[Split, Split]) -> None:
    for split in loaded:
        seen = task.model_inputs(split.inputs[:5])
        assert seen.shape == (5, *task.input_shape)
        if seen.is_floating_point():
            assert seen.dtype == torch.float32
            assert seen.isfinite().all()


def test_outside_training_nothing_is_random_and_no_example_depends_on_others(
    task: Task, loaded: tuple[Split, Split]
) -> None:
    batch = loaded[0].inputs[:20]
    before = batch.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    first = task.model_inputs(batch)
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(task.model_inputs(batch), first)
    assert torch.equal(torch.cat([task.model_inputs(batch[:7]), task.model_inputs(batch[7:])]), first)
    assert torch.equal(batch, before)


def test_augmentation_is_decided_by_its_stream_alone(task: Task, loaded: tuple[Split, Split]) -> None:
    inputs, targets = loaded[0].inputs[:20], loaded[0].targets[:20]
    before = inputs.clone()
    torch.manual_seed(1)
    np.random.seed(1)
    first, _ = task.training_batch(inputs, targets, np.random.RandomState(5))
    torch.manual_seed(2)
    np.random.seed(2)
    again, _ = task.training_batch(inputs, targets, np.random.RandomState(5))
    assert torch.equal(first, again)
    assert torch.equal(inputs, before)


def test_what_is_trained_on_has_the_shape_and_type_of_what_is_evaluated(
    task: Task, loaded: tuple[Split, Split]
) -> None:
    inputs, targets = loaded[0].inputs[:20], loaded[0].targets[:20]
    seen, told = task.training_batch(inputs, targets, np.random.RandomState(5))
    evaluated = task.model_inputs(inputs)
    assert (seen.shape, seen.dtype) == (evaluated.shape, evaluated.dtype)
    assert seen.is_contiguous(memory_format=task.memory_format)
    assert evaluated.is_contiguous(memory_format=task.memory_format)
    assert torch.equal(told, targets)
    assert task.losses(torch.zeros(20, task.num_outputs), told).shape == (20,)


def test_fetching_data_that_is_there_does_nothing_and_it_stays_what_it_was(
    task: Task, loaded: tuple[Split, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("urllib.request.urlopen", None)
    task.fetch()
    assert same(task.load()[0], loaded[0])


def test_the_protocol_records_whether_the_data_is_the_publishers(task: Task) -> None:
    reads_files = "allow_unverified_data" in vars(task)
    assert task.verified() is not reads_files, "the tiny files are not the real ones"
    assert prepare_data(task, PLAIN, seed=0).verified is task.verified()


def test_losses_are_one_number_an_example_and_score_is_its_metric(task: Task, loaded: tuple[Split, Split]) -> None:
    targets = loaded[0].targets[:12]
    outputs = torch.zeros(12, task.num_outputs)
    assert task.losses(outputs, targets).shape == (12,)
    if task.metric == ACCURACY:
        right = torch.nn.functional.one_hot(targets, task.num_outputs).float()
        assert task.score(right, targets) == 1
        assert task.score(right.roll(1, 1), targets) == 0
        half = torch.cat([right[:6], right[6:].roll(1, 1)])
        assert task.score(half, targets) == 0.5
        assert task.losses(outputs, targets).tolist() == pytest.approx([float(np.log(task.num_outputs))] * 12)


# ---- the protocol: held-out data -----------------------------------------------------------------------------


def test_training_and_validation_part_the_training_set_and_the_test_set_is_whole(
    task: Task, loaded: tuple[Split, Split]
) -> None:
    data = prepare_data(task, PLAIN, seed=0)
    full = list(zip(rows(loaded[0]), loaded[0].targets.tolist(), strict=True))
    parts = [*zip(rows(data.train), data.train.targets.tolist(), strict=True)]
    parts += zip(rows(data.val), data.val.targets.tolist(), strict=True)
    assert Counter(parts) == Counter(full)
    assert same(data.test, loaded[1])


def test_no_example_is_in_two_of_training_validation_and_test(task: Task, loaded: tuple[Split, Split]) -> None:
    counts = Counter(rows(loaded[0]) + rows(loaded[1]))
    data = prepare_data(task, PLAIN, seed=0)
    unique = [{row for row in rows(split) if counts[row] == 1} for split in (data.train, data.val, data.test)]
    assert len(set.union(*unique)) == sum(len(part) for part in unique)
    assert sum(len(part) for part in unique) > 0.9 * sum(counts.values())


@pytest.mark.parametrize("share", [0.05, 0.1, 0.1667, 0.5])
def test_the_parts_have_exactly_the_sizes_asked_for(task: Task, loaded: tuple[Split, Split], share: float) -> None:
    settings = DataSettings(validation=share)
    data = prepare_data(task, settings, seed=0)
    assert (len(data.train), len(data.val)) == split_sizes(len(loaded[0]), settings)
    assert len(data.val) == round(share * len(loaded[0]))
    assert len(data.train) + len(data.val) == len(loaded[0])


def test_validation_and_the_order_of_the_rest_are_the_same_for_every_seed(task: Task) -> None:
    one, other = prepare_data(task, PLAIN, seed=0), prepare_data(task, PLAIN, seed=1)
    assert same(one.val, other.val)
    assert same(one.train, other.train)


def test_a_smaller_training_set_is_a_part_of_a_larger_one_beside_the_same_validation(task: Task) -> None:
    whole, part = (prepare_data(task, DataSettings(train_size=size), seed=0) for size in (None, 40))
    assert len(part.train) == 40
    assert same(part.train, whole.train[torch.arange(40)])
    assert same(part.val, whole.val)
    assert part.fingerprint == whole.fingerprint
    assert len(prepare_data(task, DataSettings(train_share=0.5), seed=0).train) == round(len(whole.train) / 2)
    assert same(prepare_data(task, DataSettings(train_share=1e-9), seed=0).train, whole.train[torch.arange(1)])


def test_a_training_set_larger_than_what_is_left_is_refused_with_the_numbers(
    task: Task, loaded: tuple[Split, Split]
) -> None:
    left, _ = split_sizes(len(loaded[0]), PLAIN)
    assert split_sizes(len(loaded[0]), DataSettings(train_size=left))[0] == left
    with pytest.raises(
        BenchError, match=rf"data\.train_size = {left + 1}, but only {left} of {len(loaded[0])} training"
    ):
        prepare_data(task, DataSettings(train_size=left + 1), seed=0)


@pytest.mark.parametrize("share", [1e-6, 1 - 1e-6])
def test_a_validation_share_that_leaves_nothing_is_refused_with_the_numbers(task: Task, share: float) -> None:
    with pytest.raises(BenchError, match=r"data\.validation = .* training examples leaves \d+ to train on and \d+ to"):
        prepare_data(task, DataSettings(validation=share), seed=0)


# ---- the protocol: wrong labels ------------------------------------------------------------------------------


def test_exactly_the_share_of_training_labels_is_wrong_and_marked(task: Task) -> None:
    clean, noisy = prepare_data(task, PLAIN, seed=3).train, prepare_data(task, NOISY, seed=3).train
    assert noisy.noisy is not None
    assert torch.equal(clean.inputs, noisy.inputs)
    assert torch.equal(clean.targets != noisy.targets, noisy.noisy)
    assert noisy.noisy.sum() == round(0.3 * len(clean))
    assert set(noisy.targets.tolist()) <= set(range(task.num_outputs))


def test_wrong_labels_belong_to_the_seed(task: Task) -> None:
    one, again, other = (prepare_data(task, NOISY, seed).train for seed in (0, 0, 1))
    assert same(one, again)
    assert not torch.equal(one.targets, other.targets)


def test_validation_and_test_labels_stay_clean(task: Task) -> None:
    clean, noisy = prepare_data(task, PLAIN, seed=0), prepare_data(task, NOISY, seed=0)
    for before, after in ((clean.val, noisy.val), (clean.test, noisy.test)):
        assert same(before, after)
        assert after.noisy is None


def test_no_noise_marks_nothing(task: Task) -> None:
    assert prepare_data(task, PLAIN, seed=0).train.noisy is None


def test_wrong_labels_are_uniform_over_the_other_classes() -> None:
    split = Split(torch.zeros(9000, 1), torch.full((9000,), 4))
    noisy = replace_labels(split, Digits(), 0.9, seed=0)
    counts = torch.bincount(noisy.targets, minlength=10)
    assert counts[4] == 900
    others = torch.cat([counts[:4], counts[5:]]).float()
    assert others.min() > 0.85 * 900
    assert others.max() < 1.15 * 900


def test_the_original_labels_are_left_alone() -> None:
    split = Split(torch.zeros(50, 1), torch.arange(50) % 10)
    replace_labels(split, Digits(), 0.5, seed=0)
    assert torch.equal(split.targets, torch.arange(50) % 10)


class _Regression(Task):
    num_outputs = 1
    input_shape = (2,)
    metric = dataclasses.replace(ACCURACY, key="mse", higher_is_better=False)

    def load(self) -> tuple[Split, Split]:
        split = Split(torch.arange(40.0).view(20, 2), torch.linspace(0, 1, 20))
        return split, split[torch.arange(4)]


def test_label_noise_on_a_regression_is_refused() -> None:
    with pytest.raises(BenchError, match=r"data\.label_noise needs a task with classes"):
        prepare_data(_Regression(), NOISY, seed=0)
    assert len(prepare_data(_Regression(), PLAIN, seed=0).train) == 18


# ---- the protocol: fingerprint -------------------------------------------------------------------------------


class _Fixed(Task):
    num_outputs = 2
    input_shape = (2,)

    def __init__(self, train: Split, test: Split) -> None:
        self.splits = train, test

    def load(self) -> tuple[Split, Split]:
        return self.splits


def test_the_fingerprint_depends_on_the_data_alone(task: Task) -> None:
    fingerprints = {prepare_data(task, settings, seed).fingerprint for settings in (PLAIN, NOISY) for seed in (0, 1)}
    assert len(fingerprints) == 1


def test_any_change_of_the_data_changes_the_fingerprint() -> None:
    inputs, targets = torch.arange(40.0).view(20, 2), torch.arange(20) % 2
    one = Split(inputs, targets)
    other_input, other_target = inputs.clone(), targets.clone()
    other_input[3, 1] += 1e-3
    other_target[5] = 1 - other_target[5]
    variants = [
        (one, one),
        (Split(other_input, targets), one),
        (Split(inputs, other_target), one),
        (one, Split(other_input, targets)),
        (one, Split(inputs, other_target)),
        (Split(inputs.flip(0), targets.flip(0)), one),
        (Split(inputs.double(), targets), one),
        (Split(inputs.view(20, 1, 2), targets), one),
    ]
    assert len({prepare_data(_Fixed(*variant), PLAIN, seed=0).fingerprint for variant in variants}) == len(variants)


# ---- splits --------------------------------------------------------------------------------------------------


def test_a_split_is_indexed_and_moved_whole() -> None:
    split = Split(torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 0]), torch.tensor([False, True, False]))
    part = split[torch.tensor([1, 2])].to(torch.device("cpu"))
    assert part.noisy is not None
    assert (part.inputs.tolist(), part.targets.tolist(), part.noisy.tolist()) == (
        [[2.0, 3.0], [4.0, 5.0]],
        [1, 0],
        [True, False],
    )
    assert (len(split), len(part)) == (3, 2)


# ---- digits --------------------------------------------------------------------------------------------------


def test_digits_have_1200_examples_to_learn_from_597_to_test_and_none_twice() -> None:
    train, test = Digits().load()
    assert (len(train), len(test)) == (1200, 597)
    assert len(set(rows(train) + rows(test))) == 1797


def test_digits_and_their_split_are_what_they_have_always_been() -> None:
    """If this fails, results before and after cannot be compared: raise PROTOCOL on purpose, or undo the change."""
    digest = hashlib.sha256()
    for split in Digits().load():
        low, high = split.inputs.min(), split.inputs.max()
        pixels = ((split.inputs - low) / (high - low) * 16).round().to(torch.uint8)  # the same on every processor
        digest.update(pixels.numpy().tobytes() + split.targets.to(torch.uint8).numpy().tobytes())
    assert digest.hexdigest()[:16] == "c14b60f4aab4d522"


def test_digits_are_read_without_importing_scikit_learn_which_takes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    raw = load_digits()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # importing it is an error now
    table = digits._table()
    assert np.array_equal(table, np.column_stack([raw.data, raw.target]))
    assert Digits().train_examples() == len(Digits().load()[0])


def test_digits_whose_file_is_elsewhere_are_read_by_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = digits._table()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert np.array_equal(digits._table(), expected)


def test_digits_are_standardised_by_the_training_images() -> None:
    train, _ = Digits().load()
    assert train.inputs.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.inputs.std().item() == pytest.approx(1, abs=1e-5)


def slow_shift(images: Tensor, offsets: Tensor, fill: float) -> Tensor:
    """out[r, c] = image[r + dr, c + dc], one pixel at a time."""
    moved = torch.full_like(images, fill)
    count, channels, height, width = images.shape
    for n in range(count):
        down, right = (int(offset) - 1 for offset in offsets[:, n, 0])
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if 0 <= i + down < height and 0 <= j + right < width:
                        moved[n, c, i, j] = images[n, c, i + down, j + right]
    return moved


def test_shifted_digits_are_moved_one_pixel_at_most_and_filled_with_blank_paper() -> None:
    task = Digits(augment="shift")
    train, _ = task.load()
    inputs, targets = train.inputs[:40], train.targets[:40]
    moved, told = task.training_batch(inputs, targets, np.random.RandomState(9))
    offsets = torch.from_numpy(np.random.RandomState(9).randint(3, size=(2, 40, 1)))
    assert len({tuple(pair) for pair in offsets[:, :, 0].T.tolist()}) == 9, "all nine moves are tried"
    blank = train.inputs.min().item()  # pixel value 0
    torch.testing.assert_close(moved, slow_shift(inputs, offsets, blank))
    assert torch.equal(told, targets)
    assert torch.equal(task.model_inputs(inputs), inputs)


def test_digits_are_not_augmented_unless_asked_to_be() -> None:
    task = Digits()
    train, _ = task.load()
    moved, _ = task.training_batch(train.inputs[:9], train.targets[:9], np.random.RandomState(0))
    assert torch.equal(moved, train.inputs[:9])


def test_label_noise_on_a_regression_stops_before_any_run(
    registries: Any, write_experiment: Any, write_plugin: Any, tiny: Any, tmp_path: Path
) -> None:
    plugin = write_plugin(
        textwrap.dedent("""
        import torch
        from bench import Split, Task, register_task

        @register_task("line")
        class Line(Task):
            num_outputs = 1
            input_shape = (1,)

            def load(self):
                x = torch.arange(20.0)[:, None]
                return Split(x, x[:, 0]), Split(x, x[:, 0])
        """)
    )
    path = write_experiment(tiny({"task": "line", "plugins": [plugin.name], "data.label_noise": 0.2}))
    with pytest.raises(BenchError, match=r"data\.label_noise needs a task with classes"):
        make_plan(load(path), Store(tmp_path / "results"))
