"""Hugging Face data sets of a user's own: every form on disk, which rows are examples, and what is refused."""

from __future__ import annotations

import io
import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from bench.config.file import load
from bench.core.errors import BenchError
from bench.core.spec import DataSettings
from bench.data.tokens import Texts
from bench.tasks.base import prepare_data
from bench.tasks.hf_dataset import HFDataset
from tests.conftest import Said
from tests.models.encoder_files import write as write_encoder

CLASSES = ["cat", "dog", "emu", "owl"]
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})


@pytest.fixture(autouse=True, scope="module")
def without_bars() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def picture(number: int) -> Image.Image:
    return Image.fromarray(np.random.RandomState(number).randint(256, size=(12, 12, 3)).astype(np.uint8))


def pictures(count: int, first: int = 0, labels: Sequence[int | None] | None = None) -> datasets.Dataset:
    """Cats, dogs and owls in turn, each its own noise; no emus."""
    labels = labels or [(0, 1, 3)[n % 3] for n in range(count)]
    images = [picture(first + n) for n in range(count)]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=FEATURES)


def parquet_of(folder: Path, **splits: datasets.Dataset) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        split.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """30 rows to train on and 9 to test, as `DatasetDict.save_to_disk` writes them."""
    datasets.DatasetDict(train=pictures(30), test=pictures(9, 100)).save_to_disk(tmp_path / "pets")
    return tmp_path / "pets"


def task(path: Path, **settings: Any) -> HFDataset:
    return HFDataset(path=str(path), **{"image": "image", **settings})


def words(path: Path, labels: list[Any], **columns: list[Any]) -> Path:
    """A Parquet file with a column of texts and one of labels."""
    table = {"text": [f"text {n}" for n in range(len(labels))], "label": labels, **columns}
    parquet.write_table(pyarrow.table(table), path)
    return path


def of_words(path: Path, **settings: Any) -> HFDataset:
    return HFDataset(path=str(path), **{"text": "text", **settings})


# ---- forms on disk -----------------------------------------------------------------------------------------------


def as_dict(folder: Path, train: datasets.Dataset, test: datasets.Dataset) -> Path:
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder)
    return folder


def in_several_files(folder: Path, train: datasets.Dataset, test: datasets.Dataset) -> Path:
    datasets.DatasetDict(train=train, test=test).save_to_disk(folder, num_shards={"train": 3, "test": 2})
    return folder


def by_names(folder: Path, train: datasets.Dataset, test: datasets.Dataset) -> Path:
    half = len(train) // 2
    parquet_of(folder, test=test)
    for number, rows in enumerate((range(half), range(half, len(train)))):
        train.select(rows).to_parquet(folder / f"train-0000{number}-of-00002.parquet")
    return folder


def by_folders(folder: Path, train: datasets.Dataset, test: datasets.Dataset) -> Path:
    for name, split in (("train", train), ("test", test)):
        (folder / name).mkdir(parents=True)
        split.to_parquet(folder / name / "part.parquet")
    return folder


@pytest.mark.parametrize("write", [as_dict, in_several_files, by_names, by_folders])
def test_every_form_gives_the_same_pixels_and_classes(
    tmp_path: Path, write: Callable[[Path, datasets.Dataset, datasets.Dataset], Path]
) -> None:
    train, test = pictures(30), pictures(9, 100)
    pets = task(write(tmp_path / "pets", train, test))
    for split, rows in zip(pets.load(), (train, test), strict=True):
        assert np.array_equal(split.inputs.numpy(), np.stack([np.array(row["image"]) for row in rows]))
        assert [pets.class_names[number] for number in split.targets] == [CLASSES[row["label"]] for row in rows]
    assert (pets.title, pets.num_outputs, pets.input_shape, pets.train_examples()) == ("pets", 3, (3, 12, 12), 30)


def test_without_a_test_split_a_share_of_each_class_is_held_out_the_same_in_every_form(tmp_path: Path) -> None:
    rows = pictures(30)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "one.parquet")
    tests = [task(tmp_path / name, test=0.3).load()[1] for name in ("saved", "one.parquet")]
    assert torch.equal(tests[0].inputs, tests[1].inputs)
    assert torch.bincount(tests[0].targets).tolist() == [3, 3, 3]
    assert 'The test set is a part of the split "train".' in task(tmp_path / "saved").note


def test_mean_and_deviation_are_those_of_the_training_images(saved: Path) -> None:
    pets = task(saved)
    seen = pets.model_inputs(pets.load()[0].inputs).double()
    assert seen.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert seen.std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_images_are_brought_to_a_size_and_16_bits_keep_their_contrast(tmp_path: Path) -> None:
    ramp = np.linspace(0, 60000, 144).reshape(12, 12).astype(np.uint16)

    def encoded(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        return {"bytes": file.getvalue(), "path": None}

    rows = [{"image": encoded(ramp if n % 2 else ramp // 2), "label": n % 2} for n in range(12)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "deep.parquet")
    deep = task(tmp_path / "deep.parquet", channels=1)
    train, _ = deep.load()
    assert (deep.input_shape, train.inputs.dtype) == ((1, 12, 12), torch.uint8)
    assert {int(pixels.max()) for pixels in train.inputs} == {128, 255}
    assert task(tmp_path / "deep.parquet", size=6).load()[0].inputs.shape == (len(train), 6, 6, 3)


def test_a_column_of_bytes_is_one_of_images(tmp_path: Path) -> None:
    content = [row["image"]["bytes"] for row in pictures(12).cast_column("image", datasets.Image(decode=False))]
    table = pyarrow.table({"photo": content, "kind": [n % 2 for n in range(12)]})
    parquet.write_table(table, tmp_path / "own.parquet")
    train, test = HFDataset(path=str(tmp_path / "own.parquet"), image="photo", label="kind").load()
    assert len(train) + len(test) == 12
    assert {tuple(image.flatten()[:9].tolist()) for image in torch.cat([train.inputs, test.inputs])} == {
        tuple(np.array(picture(n)).flatten()[:9].tolist()) for n in range(12)
    }


# ---- rows and classes --------------------------------------------------------------------------------------------


def test_rows_without_label_or_image_are_left_out_and_told_before_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = pictures(12, labels=[-1, 0, 0, 0, 0, 3, 3, 3, 3, None, 0, 3]).to_dict()
    train["image"][10] = None
    rows = datasets.Dataset.from_dict(train, features=FEATURES)
    pets = task(parquet_of(tmp_path / "pets", train=rows, test=pictures(9, 100, labels=[0, 3, 3] * 3)))
    assert pets.note == (
        'Left out of the split "train": 2 rows without label and 1 row without image. '
        "No training row is of these classes: dog, emu."
    )
    assert pets.load()[0].inputs[0].numpy().tolist() == np.array(picture(1)).tolist()
    pets.fetch()
    assert (
        'training: 9 examples, 4 of "cat" (44.4 %), 5 of "owl" (55.6 %); '
        'test: 9 examples, 3 of "cat" (33.3 %), 6 of "owl" (66.7 %). Left ' in " ".join(capsys.readouterr().err.split())
    )


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -3], ["-3", "9", "10"]),
        (["b", "a", " a "], ["a", "b"]),
        ([True, False], ["False", "True"]),
        ([2.0, 1.0, float("nan")], ["1", "2"]),
        (["no", "", None, "yes"], ["no", "yes"]),
    ],
)
def test_classes_of_any_column_are_numbers_by_size_or_words_by_name(
    tmp_path: Path, labels: list[Any], names: list[str]
) -> None:
    assert of_words(words(tmp_path / "own.parquet", labels * 10)).class_names == names


def test_splits_that_are_named_are_taken_and_others_told(tmp_path: Path) -> None:
    folder = parquet_of(tmp_path / "pets", train=pictures(30), validation=pictures(9, 50), test=pictures(9, 100))
    assert task(folder).note.startswith('Not used: "validation".')
    pets = task(folder, train_split="test", test_split="validation")
    assert np.array_equal(pets.load()[1].inputs[0].numpy(), np.array(picture(50)))
    assert pets.train_examples() == 9


def test_weights_scores_and_augmentation_are_those_of_other_tasks(tmp_path: Path) -> None:
    rows = pictures(30, labels=[0] * 20 + [3] * 10)
    pets = task(
        parquet_of(tmp_path / "pets", train=rows), metric="macro_f1", report=["auroc"], class_weights="balanced",
        augment="cutout", mixup=0.2,
    )  # fmt: skip
    train, _ = pets.load()
    assert pets.metric.key == "macro_f1"
    assert set(pets.details(torch.zeros(24, 2), train.targets)) == {"auroc"}
    losses = pets.losses(torch.zeros(24, 2), train.targets) / np.log(2)
    assert {round(loss, 4) for loss in losses.tolist()} == {0.75, 1.5}
    images, targets = pets.training_batch(train.inputs, train.targets, np.random.RandomState(0))
    assert (images.shape, targets.shape) == ((24, 3, 12, 12), (24, 2))


# ---- texts -------------------------------------------------------------------------------------------------------


def test_texts_and_pairs_are_those_of_the_rows_that_have_both(tmp_path: Path) -> None:
    second: list[Any] = [f"second {n}" for n in range(20)]
    second[3] = None
    path = words(tmp_path / "own.parquet", [n % 2 for n in range(20)], other=second)
    single, pairs = of_words(path), of_words(path, text_pair="other", max_length=32)
    assert (single.text, single.input_shape, pairs.max_length) == (True, (), 32)
    assert isinstance(single.load()[0].inputs, Texts)
    assert sum(map(len, single.load())) == 20
    texts = [split.inputs for split in pairs.load()]
    found = {pair for split in texts for pair in zip(split.first, split.second, strict=True)}
    assert found == {(f"text {n}", f"second {n}") for n in range(20) if n != 3}
    assert pairs.note.startswith('Left out of the split "train": 1 row without text.')


EXPERIMENT = """
task = { name = "hf_dataset", path = "own.parquet", text = "text" }
model = { name = "encoder", checkpoint = "./bert" }
baseline = "adamw"
seeds = 1

[train]
epochs = 1
batch_size = 8

[optimizers.adamw]
lr = 1e-3
"""


@pytest.mark.slow
def test_an_encoder_is_trained_on_texts(bench: Callable[..., Said], tmp_path: Path) -> None:
    words(tmp_path / "own.parquet", ["good", "bad"] * 20)
    write_encoder(tmp_path / "bert", "bert")
    text = EXPERIMENT.replace("./bert", str(tmp_path / "bert"))
    (tmp_path / "own.toml").write_text(text)
    said = bench("run", tmp_path / "own.toml")
    assert said.status == 0, said.err
    assert 'own.parquet: training: 32 examples, 16 of "bad" (50.0 %), 16 of "good" (50.0 %); test: 8' in said.err


@pytest.mark.parametrize(
    ("column", "model", "message"),
    [
        ("text", "mlp", '"mlp" does not read text, which "hf_dataset" is'),
        ("image", "minilm", '"minilm" reads text, which "hf_dataset" is not'),
    ],
)
def test_the_model_must_read_what_the_task_is_of(
    tmp_path: Path, saved: Path, column: str, model: str, message: str
) -> None:
    document = EXPERIMENT.replace('text = "text"', f'{column} = "{column}"').replace("own.parquet", "pets")
    document = document.replace('{ name = "encoder", checkpoint = "./bert" }', f'"{model}"')
    (tmp_path / "own.toml").write_text(document)
    with pytest.raises(BenchError, match=message):
        load(tmp_path / "own.toml")


# ---- identity ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ids(tmp_path: Path) -> Callable[[], set[str]]:
    def planned() -> set[str]:
        document = tomllib.loads(EXPERIMENT)
        document["task"] = {"name": "hf_dataset", "path": "pets", "image": "image"}
        lines = EXPERIMENT.replace('text = "text"', 'image = "image"').replace("own.parquet", "pets")
        lines = lines.replace('{ name = "encoder", checkpoint = "./bert" }', '"resnet8"')
        (tmp_path / "own.toml").write_text(lines + "\n[vary.task]\nsize = [8, 12]\n")
        return {run.spec.run_id for run in load(tmp_path / "own.toml").runs}

    return planned


def test_rows_and_not_what_datasets_caches_beside_them_are_part_of_a_run(
    saved: Path, ids: Callable[[], set[str]]
) -> None:
    before = ids()
    assert len(before) == 2, "one for each size"
    shutil.copy(saved / "train" / "data-00000-of-00001.arrow", saved / "train" / "cache-0123.arrow")
    assert ids() == before
    shutil.rmtree(saved)
    as_dict(saved, pictures(30), pictures(9, 101))
    assert ids().isdisjoint(before)


def test_every_row_is_in_the_fingerprint_of_the_data(saved: Path) -> None:
    def fingerprint() -> str:
        return prepare_data(task(saved), DataSettings(), 0).fingerprint

    before = fingerprint()
    shutil.rmtree(saved)
    as_dict(saved, pictures(30), pictures(9, 101))
    changed = fingerprint()
    shutil.rmtree(saved)
    by_names(saved, pictures(30), pictures(9, 100))
    assert changed != before == fingerprint()


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "neither task.path and task.hub"),
        ({"path": "x", "hub": "a/b", "image": "i"}, "both task.path and task.hub"),
        ({"path": "x", "config": "c", "image": "i"}, "task.config is for task.hub"),
        ({"path": "x"}, "neither task.image and task.text"),
        ({"path": "x", "image": "i", "text": "t"}, "both task.image and task.text"),
        ({"path": "x", "image": "i", "text_pair": "t"}, "task.text_pair is not for images"),
        ({"path": "x", "text": "t", "size": 8}, "task.size is not for texts"),
        ({"hub": "a b", "image": "i"}, 'task.hub = "a b" is no name of the hub'),
        ({"hub": "a/b", "revision": "..", "image": "i"}, r'task.revision = "\.\." is no name'),
        ({"path": "/nowhere/x", "image": "i"}, "/nowhere/x is neither a file nor a folder"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        HFDataset(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image": "imag"}, r'arrow has no column "imag"; did you mean "image"'),
        ({"image": "label"}, r'column "label" is of type int64, not of images'),
        ({"label": "image"}, r'row 0, column "image": .* is no class'),
        ({"image": None, "text": "label"}, r'column "label" is of type int64, not of texts'),
        ({"test_split": "tset"}, r'task.test_split: there is no split "tset"; did you mean "test"'),
        ({"test_split": "train"}, r'are both "train"; take two splits'),
        ({"metric": "r2"}, '"r2" is no score of classes'),
        ({"channels": 1, "augment": "autoaugment"}, "needs images in colour"),
    ],
)
def test_settings_that_do_not_fit_the_data(saved: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        task(saved, **settings)


def test_augmentation_of_texts(tmp_path: Path) -> None:
    path = words(tmp_path / "own.parquet", [0, 1] * 10)
    with pytest.raises(BenchError, match=r"task.augment is for images, and these are texts"):
        of_words(path, augment="basic")
    with pytest.raises(BenchError, match=r"task.mixup is for images"):
        of_words(path, mixup=0.1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1] * 20, 'has one class only, "1"'),
        (list(range(20)), "has 20 different values in 20 examples, too many for classes"),
        ([0.5, 1.0] * 10, r"row 0, column \"label\": 0.5 is no class"),
        ([None] * 20, "none of its 20 rows has both a label"),
        ([0] * 18 + [1] * 2, '2 of class "1"; at least 3 are needed'),
    ],
)
def test_labels_that_make_no_classes(tmp_path: Path, labels: list[Any], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        of_words(words(tmp_path / "own.parquet", labels))


def test_a_test_split_without_labels_or_with_classes_of_its_own(tmp_path: Path) -> None:
    folder = parquet_of(tmp_path / "pets", train=pictures(30), test=pictures(9, labels=[-1] * 9))
    with pytest.raises(BenchError, match=r'split "test": none of its 9 rows has both a label .* name another split'):
        task(folder)
    parquet_of(folder, test=pictures(9, labels=[0, 1, 2] * 3))
    with pytest.raises(BenchError, match=r'split "test" has the class "emu", of which there is no training example'):
        task(folder)


def test_splits_that_are_none_of_the_usual_ask_for_a_name(tmp_path: Path) -> None:
    datasets.DatasetDict(old=pictures(30), new=pictures(9)).save_to_disk(tmp_path / "pets")
    with pytest.raises(BenchError, match=r"has the splits new, old; name the one to train on: task.train_split"):
        task(tmp_path / "pets")
    assert task(tmp_path / "pets", train_split="old").train_examples() == 24


def test_an_image_that_cannot_be_read_is_named_by_its_row_before_any_run(tmp_path: Path) -> None:
    rows = pictures(12).cast_column("image", datasets.Image(decode=False)).to_dict()
    rows["image"][7]["bytes"] = rows["image"][7]["bytes"][:60]
    folder = parquet_of(tmp_path / "pets", train=datasets.Dataset.from_dict(rows, features=FEATURES))
    with pytest.raises(BenchError, match=r'pets, split "train", row 7, column "image" cannot be read as an image'):
        task(folder).fetch()


def test_places_of_images_are_no_images(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": None, "path": f"/{n}.png"}, "label": n % 2} for n in range(12)]
    schema = pyarrow.schema({"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": "string"}), "label": "int64"})
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), tmp_path / "pets.parquet")
    with pytest.raises(BenchError, match=r"has the place of an image \('/\d+\.png'\) and not the image itself"):
        task(tmp_path / "pets.parquet")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "train" / "data-00000-of-00001.arrow").unlink(), "train lacks data-00000-of-00001"),
        (lambda folder: (folder / "train" / "state.json").write_text("{"), "state.json does not list the files"),
        (lambda folder: (folder / "test" / "data-00000-of-00001.arrow").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_damaged_files_are_named(saved: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(saved)
    with pytest.raises(BenchError, match=message):
        task(saved)


def test_other_files_and_empty_folders(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("x")
    with pytest.raises(BenchError, match=r"own.csv is no .parquet file"):
        task(tmp_path / "own.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match=r"empty has no .parquet files in it"):
        task(tmp_path / "empty")
    parquet_of(tmp_path / "odd", train=pictures(3), test=pictures(3))
    (tmp_path / "odd" / "train-00000-of-00001.parquet").rename(tmp_path / "odd" / "mine.parquet")
    with pytest.raises(BenchError, match=r"mine.parquet belongs to none of the splits test by its name"):
        task(tmp_path / "odd")
