"""What several test files need: experiment files of a few seconds, plug-ins, registries that forget them again, and
tiny stand-ins for the data sets that would have to be downloaded."""

from __future__ import annotations

import copy
import gc
import gzip
import io
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import cli
from bench.analysis import report
from bench.core import registry
from bench.data.datasets import Dataset
from tests import prefork

REAL_DATA = os.environ.get("BENCH_DATA")
"""The user's data folder, for tests that ask for real data; no other test sees it."""

TINY: dict[str, Any] = {
    "title": "Tiny",
    "task": "digits",
    "model": {"name": "mlp", "width": 8},
    "baseline": "sgd",
    "seeds": 2,
    "train": {"epochs": 2, "batch_size": 256},
    "optimizers": {
        "sgd": {"lr": 0.1},
        "sam": {"base": "sgd", "lr": 0.1, "sweep": {"rho": [0.05, 0.1]}},
    },
}
"""Six runs of a few milliseconds each: sgd, and sam at two rho, two seeds."""


LONGEST = ("tests/launch/slurm/", "tests/launch/", "tests/distributed/", "tests/analysis/")
"""What takes longest or waits most, in this order first: at the end short tests are left, which share out well."""


def pytest_configure() -> None:
    """Hear Ctrl-C, also where a script has started these tests in its background, which makes them deaf to it.

    What tests start inherits the deafness, and tests send Ctrl-C to it.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item: [item.nodeid.startswith(name) for name in LONGEST] for item in items}
    items.sort(key=lambda item: places[item].index(True) if any(places[item]) else len(LONGEST))


def pytest_collection_finish() -> None:
    """Take what is imported by now out of every garbage collection: a million objects that stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tiny() -> Callable[..., dict[str, Any]]:
    """tiny({"train.epochs": 3, "optimizers.sgd.lr": ...}): the tiny experiment, changed; `...` takes a key out."""

    def make(changes: dict[str, Any] | None = None) -> dict[str, Any]:
        document = copy.deepcopy(TINY)
        for dotted, value in (changes or {}).items():
            *parents, last = dotted.split(".")
            table = document
            for parent in parents:
                table = table.setdefault(parent, {})
            if value is ...:
                del table[last]
            else:
                table[last] = value
        return document

    return make


@pytest.fixture
def write_experiment(tmp_path: Path) -> Callable[..., Path]:
    """write_experiment(text or document, name="tiny"): the path of an experiment file with that content."""

    def write(content: str | dict[str, Any], name: str = "tiny") -> Path:
        if not isinstance(content, str):
            content = "".join(f"{key} = {toml(value)}\n" for key, value in content.items())
        path = tmp_path / f"{name}.toml"
        path.write_text(content, encoding="utf-8")
        return path

    return write


def toml(value: Any) -> str:
    """A value as TOML writes it within a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


@pytest.fixture
def write_plugin(tmp_path: Path) -> Callable[..., Path]:
    """write_plugin(text, name="mine"): the path of a plug-in file with that content."""

    def write(text: str, name: str = "mine") -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        return path

    return write


@contextmanager
def _registries_kept() -> Iterator[Callable[[], None]]:
    registry.load_builtins()
    kinds = (registry.tasks, registry.models, registry.optimizers)
    before = [dict(kind._entries) for kind in kinds]
    loaded, modules = dict(registry._loaded), set(sys.modules)

    def forget() -> None:
        for kind, entries in zip(kinds, before, strict=True):
            kind._entries = dict(entries)
        registry._loaded.clear()
        registry._loaded.update(loaded)
        for name in [name for name in sys.modules if name.startswith("bench_plugin_") and name not in modules]:
            del sys.modules[name]

    yield forget
    forget()


@pytest.fixture
def registries() -> Iterator[Callable[[], None]]:
    """What a test registers is gone after it; call it to forget earlier, as a new process would have."""
    with _registries_kept() as forget:
        yield forget


@pytest.fixture(scope="module", autouse=True)
def registries_of_a_module() -> Iterator[None]:
    """What a module's fixtures and its tests register never reaches another module."""
    with _registries_kept():
        yield


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """machine(cores, gpus): from here on the test is on a machine that has so many."""

    def of(cores: int, gpus: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return of


# ---- the command line ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    """bench("run", ...): the command, in this process, from an empty working folder."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capsys.readouterr()
        status: object = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = exit_.code or 0
        said = capsys.readouterr()
        assert isinstance(status, int)
        return Said(status, said.out, said.err)

    return call


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands in this process draw no figures and leave the page empty, for tests that look at neither."""
    for name, value in prefork.NO_REPORT.items():
        monkeypatch.setattr(report, name, value)


# ---- data sets -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _no_data_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(tmp_path_factory.mktemp("no_data")))
        # matplotlib's list of fonts stays where it is: a command that has to make it anew says so after five seconds.
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(Path.home() / ".cache" / "matplotlib"))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("no_cache")))
        yield


@pytest.fixture
def real_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[Dataset], None]:
    """real_data(dataset): from here on the test sees the user's data; it is skipped if the data set is not there."""

    def use(dataset: Dataset) -> None:
        if not REAL_DATA:
            pytest.skip("needs real data: set BENCH_DATA to its folder")
        monkeypatch.setenv("BENCH_DATA", REAL_DATA)
        if not dataset.is_there():
            pytest.skip(f"needs {dataset.title}, which is not in {REAL_DATA}")

    return use


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with some tens of images of noise for each data set, in files like the real ones; read only."""
    folder = tmp_path_factory.mktemp("tiny_data")
    random = np.random.RandomState(0)
    write_cifar(folder / "cifar-10-batches-py", [f"data_batch_{n}" for n in range(1, 6)], "test_batch", 20, 10, random)
    write_cifar(folder / "cifar-100-python", ["train"], "test", 200, 100, random)
    write_idx(folder / "FashionMNIST" / "raw", {"train": 60, "t10k": 20}, random)
    write_images(folder / "images", ("cat", "dog", "owl"), 20, random)
    write_table(folder / "table.csv", 60, random)
    pixels = random.randint(256, size=(72, 12, 12, 3)).astype(np.uint8)
    kinds = np.arange(72) % 3
    np.savez(folder / "arrays.npz", x_train=pixels[12:], y_train=kinds[12:], x_test=pixels[:12], y_test=kinds[:12])
    write_svhn(folder / "torchvision", {"train": 60, "test": 20}, random)
    write_eurosat(folder / "torchvision", 6, random)
    write_parquet(folder / "pictures", {"train": 60, "test": 12}, random)
    return folder


@pytest.fixture
def data_folder(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny data as the test's own data folder, to be spoilt at will."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data, folder)
    monkeypatch.setenv("BENCH_DATA", str(folder))
    return folder


@pytest.fixture(scope="module")
def build_task(tiny_data: Path) -> Iterator[Callable[[str], Any]]:
    """build_task(name): a registered task with its defaults, on the tiny data where it reads files."""

    def build(name: str) -> Any:
        entry = registry.tasks[name]
        unverified = {"allow_unverified_data": True} if "allow_unverified_data" in entry.schema.model_fields else {}
        own = {
            "image_folder": {"path": str(tiny_data / "images")},
            "arrays": {"path": str(tiny_data / "arrays.npz")},
            "csv": {"path": str(tiny_data / "table.csv"), "target": "kind"},
            "hf_dataset": {"path": str(tiny_data / "pictures"), "image": "image"},
        }
        return entry.build(**unverified, **own.get(name, {}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(tiny_data))
        yield build


def write_cifar(
    folder: Path, train: list[str], test: str, count: int, classes: int, random: np.random.RandomState
) -> None:
    """Files as Krizhevsky's: `count` images each, the classes in turn."""
    folder.mkdir()
    for name in [*train, test]:
        labels = {"fine_labels" if classes == 100 else "labels": [n % classes for n in range(count)]}
        images = random.randint(256, size=(count, 3072)).astype(np.uint8)
        batch = {"batch_label": name, "data": images, **labels}
        (folder / name).write_bytes(b"\x80\x02" + python2_pickle(batch) + b".")
    meta = {"label_names": [f"class {n}" for n in range(classes)]}
    (folder / ("meta" if classes == 100 else "batches.meta")).write_bytes(b"\x80\x02" + python2_pickle(meta) + b".")


def python2_pickle(value: Any) -> bytes:
    """The opcodes of a value as Python 2 wrote them, with byte strings and numpy 1's names: Python 3 cannot."""
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_pickle(key) + python2_pickle(item) for key, item in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, str | bytes):
        raw = value.encode() if isinstance(value, str) else value
        return b"T" + struct.pack("<i", len(raw)) + raw
    assert isinstance(value, np.ndarray)
    assert value.dtype == np.uint8
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    shape = b"(" + b"".join(map(python2_pickle, value.shape)) + b"t"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return empty + b"(K\x01" + shape + dtype + b"\x89" + python2_pickle(value.tobytes()) + b"tb"


def write_images(folder: Path, classes: tuple[str, ...], count: int, random: np.random.RandomState) -> None:
    """Folders of `count` colour images of 12x12 for each class."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(random.randint(256, size=(12, 12, 3)).astype(np.uint8)).save(
                folder / name / f"{number}.png"
            )


def write_parquet(folder: Path, counts: dict[str, int], random: np.random.RandomState) -> None:
    """A Parquet file per split, as the hub has them, with colour images of 12x12 and a kind that is one of three."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir()
    for split, count in counts.items():
        rows = []
        for number in range(count):
            file = io.BytesIO()
            Image.fromarray(random.randint(256, size=(12, 12, 3)).astype(np.uint8)).save(file, "png")
            rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": "abc"[number % 3]})
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")


def write_svhn(root: Path, counts: dict[str, int], random: np.random.RandomState) -> None:
    """Files as SVHN's: pixels (32, 32, 3, N) and labels (N, 1), the digits in turn, of which 0 is 10 there."""
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        pixels = random.randint(256, size=(32, 32, 3, count)).astype(np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels})


def write_eurosat(root: Path, count: int, random: np.random.RandomState) -> None:
    """Folders as EuroSAT's: `count` images of 64x64 for each of ten classes."""
    for number in range(10):
        folder = root / "eurosat" / "2750" / f"Land{number}"
        folder.mkdir(parents=True)
        for image in range(count):
            pixels = random.randint(256, size=(64, 64, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"Land{number}_{image + 1}.jpg")


def write_table(path: Path, rows: int, random: np.random.RandomState) -> None:
    """Two columns of numbers, one of words, and a kind that is one of three."""
    lines = [f"{random.randn():.3f},{random.randint(90)},{('red', 'blue')[n % 2]},{'abc'[n % 3]}" for n in range(rows)]
    path.write_text("\n".join(["size,age,colour,kind", *lines]) + "\n")


def write_idx(folder: Path, counts: dict[str, int], random: np.random.RandomState) -> None:
    """Files as Fashion-MNIST's, gzipped."""
    folder.mkdir(parents=True)
    for name, count in counts.items():
        images = random.randint(256, size=(count, 28, 28)).astype(np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images", images), ("labels", labels)):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape)
            with gzip.open(folder / f"{name}-{kind}-idx{array.ndim}-ubyte.gz", "wb") as file:
                file.write(header + array.tobytes())
