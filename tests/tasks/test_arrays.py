"""Arrays of a user's own: what becomes of each dtype and shape, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.config.file import load
from bench.core.errors import BenchError
from bench.tasks.arrays import Arrays
from tests.conftest import Said

Array = np.ndarray[Any, Any]
RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(256, size=(40, 6, 5, 3)).astype(np.uint8)
FEATURES = RANDOM.randn(40, 7) * 3 + 2
LABELS = np.arange(40) % 4


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture
def own(tmp_path: Path) -> Callable[..., Path]:
    """own(x, y, ...): a file whose first 30 examples are to train on, the others to test; further arrays replace."""

    def make(x: Any = PIXELS, y: Any = LABELS, **others: Any) -> Path:
        arrays = {"x_train": x[:30], "y_train": y[:30], "x_test": x[30:], "y_test": y[30:]} | others
        return write(tmp_path / "own.npz", **{name: array for name, array in arrays.items() if array is not None})

    return make


def task(path: Path, **settings: Any) -> Arrays:
    return Arrays(path=str(path), **settings)


Own = Callable[..., Path]


# ---- what becomes of them ----------------------------------------------------------------------------------------


def test_bytes_in_colour_and_grey_stay_what_they_are(own: Own) -> None:
    colour = task(own())
    train, test = colour.load()
    assert (colour.input_shape, colour.num_outputs, colour.class_names) == ((3, 6, 5), 4, ["0", "1", "2", "3"])
    assert np.array_equal(torch.cat([train.inputs, test.inputs]).numpy(), PIXELS)
    assert torch.cat([train.targets, test.targets]).tolist() == LABELS.tolist()
    grey = task(own(PIXELS[..., 0]))
    assert grey.input_shape == (1, 6, 5)
    assert np.array_equal(grey.load()[1].inputs.numpy(), PIXELS[30:, ..., :1])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_images_of_any_dtype_are_standardised_by_the_training_images_without_rounding(
    own: Own, dtype: type[np.generic]
) -> None:
    images = (PIXELS * (1 if dtype == np.uint8 else 1 / 512 if np.issubdtype(dtype, np.floating) else 200)).astype(
        dtype
    )
    made = task(own(images))
    train, test = made.load()
    seen = made.model_inputs(train.inputs)
    assert (seen.shape, seen.dtype) == ((30, 3, 6, 5), torch.float32)
    raw = images.astype(np.float64)
    mean, deviation = raw[:30].mean(axis=(0, 1, 2)), raw[:30].std(axis=(0, 1, 2))
    expected = ((raw[30:] - mean) / deviation).transpose(0, 3, 1, 2)
    assert np.allclose(made.model_inputs(test.inputs).numpy(), expected, atol=2e-5)
    assert (train.inputs.min(), train.inputs.max()) == (PIXELS[:30].min() if dtype == np.uint8 else 0, 255)


def test_images_of_floats_are_augmented_as_bytes_are(own: Own) -> None:
    """The same pixels on another scale give the same batches: what is moved in is the darkest value."""
    pixels = PIXELS.copy()
    pixels[0].flat[:2] = 0, 255
    batches = []
    for images in (pixels, pixels / 255 - 3):
        made = task(own(images), augment="cutout", mixup=0.3)
        train, _ = made.load()
        batches.append(made.training_batch(train.inputs, train.targets, np.random.RandomState(1)))
    torch.testing.assert_close(batches[0], batches[1], atol=1e-4, rtol=0)


def test_features_are_standardised_by_the_training_examples_and_a_constant_is_0(own: Own) -> None:
    x = FEATURES.copy()
    x[:, 2] = 5
    made = task(own(x))
    train, test = made.load()
    assert (made.input_shape, train.inputs.dtype, made.images) == ((7,), torch.float32, False)
    expected = (x - x[:30].mean(0)) / np.where(x[:30].std(0), x[:30].std(0), 1)
    assert np.allclose(torch.cat([train.inputs, test.inputs]).numpy(), expected, atol=1e-6)
    assert torch.equal(made.model_inputs(test.inputs), test.inputs)
    batch, _ = made.training_batch(train.inputs, train.targets, np.random.RandomState(0))
    assert torch.equal(batch, train.inputs)


def test_a_folder_of_files_is_read_as_one_file_with_all_is(tmp_path: Path, own: Own) -> None:
    (tmp_path / "folder").mkdir()
    with np.load(own()) as arrays:
        for name, array in arrays.items():
            np.save(tmp_path / "folder" / f"{name}.npy", array)
    np.save(tmp_path / "folder" / "more.npy", LABELS)
    for one, other in zip(task(tmp_path / "folder").load(), task(tmp_path / "own.npz").load(), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    assert [file.stem for file in Arrays.files(tmp_path / "folder")] == ["x_train", "y_train", "x_test", "y_test"]


def test_without_a_test_set_a_share_of_each_class_is_held_out(own: Own) -> None:
    made = task(own(x_train=PIXELS, y_train=LABELS, x_test=None, y_test=None), test=0.3)
    train, test = made.load()
    assert (len(train), torch.bincount(test.targets).tolist()) == (28, [3, 3, 3, 3])
    assert torch.equal(test.inputs, task(Path(made.path), test=0.3).load()[1].inputs)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (LABELS.astype(np.uint8), ["0", "1", "2", "3"]),
        (LABELS.astype(np.float64), ["0", "1", "2", "3"]),
        (LABELS[:, None] * 10, ["0", "10", "20", "30"]),
        (LABELS % 2 == 0, ["False", "True"]),
        (np.array(["d", "b", "c", "a"])[LABELS], ["a", "b", "c", "d"]),
    ],
)
def test_labels_of_any_kind_are_numbered_in_order(own: Own, labels: Array, names: list[str]) -> None:
    made = task(own(y=labels))
    assert made.class_names == names
    train, test = made.load()
    numbers = torch.cat([train.targets, test.targets]).tolist()
    given = labels.reshape(-1).tolist()
    assert [names[number] for number in numbers] == [str(int(one) if isinstance(one, float) else one) for one in given]


def test_numbers_to_predict_are_standardised_and_scored_in_their_units(own: Own) -> None:
    y = FEATURES[:, 0] * 100
    made = task(own(FEATURES, y), regression=True, metric="mae")
    train, test = made.load()
    assert (made.num_outputs, train.targets.dtype, made.metric.key) == (1, torch.float32, "mae")
    assert train.targets.mean().item() == pytest.approx(0, abs=1e-6)
    off = test.targets[:, None] + 0.5
    assert made.score(off, test.targets) == pytest.approx(0.5 * y[:30].std())
    assert made.losses(off, test.targets).tolist() == pytest.approx([0.25] * 10, rel=1e-5)
    held = task(own(x_train=FEATURES, y_train=y, x_test=None, y_test=None), regression=True)
    assert [len(split) for split in held.load()] == [32, 8]


def test_classes_and_their_weights_are_told(own: Own, capsys: pytest.CaptureFixture[str]) -> None:
    y = np.where(np.arange(40) % 4, 1, 0)
    made = task(own(y=y), class_weights="balanced", report=["auroc"])
    made.fetch()
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(
        'training: 30 examples, 8 of "0" (26.7 %), 22 of "1" (73.3 %); '
        'test: 10 examples, 2 of "0" (20.0 %), 8 of "1" (80.0 %).'
    )
    losses = made.losses(torch.zeros(30, 2), made.load()[0].targets) / np.log(2)
    assert sorted({round(loss, 3) for loss in losses.tolist()}) == [0.682, 1.875]


def test_a_file_that_changes_is_read_again(own: Own) -> None:
    before = task(own()).load()[0].inputs
    assert not torch.equal(task(own(PIXELS[::-1])).load()[0].inputs, before)


EXPERIMENT = """
task = { name = "arrays", path = "own.npz" }
model = "resnet8"
baseline = "sgd"
seeds = 1

[data]
validation = 0.2

[train]
epochs = 1
batch_size = 8

[optimizers.sgd]
lr = 0.1

[vary.task]
augment = ["none", "basic"]

[vary.data]
label_noise = [0.0, 0.25]
"""


@pytest.mark.slow
def test_an_experiment_runs_under_several_conditions(bench: Callable[..., Said], own: Own, tmp_path: Path) -> None:
    own()
    (tmp_path / "own.toml").write_text(EXPERIMENT)
    said = bench("run", tmp_path / "own.toml")
    assert said.status == 0, said.err
    ids = {run.spec.run_id for run in load(tmp_path / "own.toml").runs}
    assert len(ids) == 4
    own(PIXELS[::-1])
    assert {run.spec.run_id for run in load(tmp_path / "own.toml").runs}.isdisjoint(ids)


# ---- what is refused ---------------------------------------------------------------------------------------------

HOLED = FEATURES.copy()
HOLED[3, 2] = np.nan


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS[:, 0, 0, 0]}, r"x_train has shape \(30,\); wanted are images"),
        ({"x": PIXELS.transpose(0, 3, 1, 2)}, r"channels seem to come first; put them last: x_train\.transpose\(0, 2"),
        ({"x": PIXELS.astype(complex)}, "x_train is of dtype complex128"),
        ({"x": PIXELS.astype(str)}, "x_train is of dtype <U"),
        ({"x": HOLED}, r"x_train\[3, 2\] is nan; 1 number of x_train are not finite"),
        ({"x": PIXELS[:, :0]}, r"x_train has shape \(30, 0, 5, 3\), so its examples are empty"),
        ({"x_test": PIXELS[30:, :4]}, r"examples of x_test have shape \(4, 5, 3\), of x_train \(6, 5, 3\)"),
        ({"x_train": PIXELS[:29]}, r"x_train has shape \(29, 6, 5, 3\) and y_train \(30,\)"),
        ({"x_train": PIXELS[:0], "y_train": LABELS[:0]}, "x_train has no examples"),
        ({"y_test": None}, "has no array y_test; wanted are x_train and y_train"),
        ({"x_train": None, "X_train": PIXELS}, 'has no array x_train; .* did you mean "X_train"'),
        ({"y": np.eye(4)[LABELS]}, r"y_train has shape \(30, 4\), not \(N,\); .* y_train\.argmax\(1\)"),
        ({"y": LABELS - 1}, r"y_train\[0\] = -1 is no class: classes are numbers from 0"),
        ({"y": LABELS / 2}, r"y_train\[1\] = 0\.5 is no class; .* set task\.regression = true"),
        ({"y": np.arange(40)}, "y_train has 30 different values in 30 examples, too many for classes"),
        ({"y": LABELS * 0}, 'y_train has one class only, "0"'),
        ({"y_test": np.arange(10)}, 'y_test has the class "4", of which there is no training example'),
    ],
)
def test_arrays_that_do_not_fit(own: Own, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=rf"own\.npz.*{message}"):
        task(own(**arrays))


@pytest.mark.parametrize(
    ("x", "settings", "message"),
    [
        (FEATURES, {"augment": "basic"}, r"task\.augment is for images, and these are features"),
        (FEATURES, {"mixup": 0.1}, r"task\.mixup is for images"),
        (PIXELS / 255, {"augment": "autoaugment"}, r"works on bytes; save the images as uint8"),
        (PIXELS[..., 0], {"augment": "autoaugment"}, "needs images in colour"),
        (PIXELS, {"regression": True, "class_weights": "balanced"}, r"task\.class_weights is for classes"),
        (PIXELS, {"regression": True, "mixup": 0.1}, r"task\.mixup is for classes"),
        (PIXELS, {"regression": True, "metric": "auroc"}, '"auroc" is no score of numbers'),
        (PIXELS, {"metric": "mae"}, '"mae" is no score of classes'),
    ],
)
def test_settings_that_do_not_fit_the_arrays(own: Own, x: Array, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        task(own(x), **settings)


def test_python_objects_are_not_read_and_damaged_files_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.npz", x_train=np.array([{}, []], dtype=object), y_train=LABELS[:2])
    with pytest.raises(BenchError, match=r"own\.npz cannot be read: it holds Python objects, which are not read"):
        task(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BenchError, match=r"own\.npz cannot be read"):
        task(path)
    for name in ("x_train", "y_train"):
        (tmp_path / f"{name}.npy").write_bytes(b"x")
    with pytest.raises(BenchError, match=r"x_train\.npy cannot be read"):
        task(tmp_path)
    with pytest.raises(BenchError, match=r"has NaN or infinity in it; task\.regression = true needs finite"):
        task(write(tmp_path / "own.npz", x_train=FEATURES, y_train=HOLED[:, 2]), regression=True)


def test_other_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("x")
    with pytest.raises(BenchError, match=r"own\.csv is no \.npz file"):
        Arrays.files(tmp_path / "own.csv")
    with pytest.raises(BenchError, match="nowhere is neither"):
        Arrays.files(tmp_path / "nowhere")
    with pytest.raises(BenchError, match="has no array x_train"):
        Arrays.files(tmp_path)
