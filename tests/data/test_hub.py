"""Data sets of the hub: `bench prepare` brings a copy into the data folder, runs read the copy and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from bench.core.errors import BenchError, NotPrepared
from bench.data import hub
from bench.data.hub import HubDataset
from bench.tasks.hf_dataset import HFDataset
from tests.hub import NONE_LISTENS, Hub, repository

REVISION = "c" * 40


def reviews(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"review {n}", "label": n % 2} for n in range(first, first + count)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def asked(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What was asked of a hub that has reviews of every name."""
    questions = list[tuple[Any, ...]]()

    def splits(*question: Any) -> tuple[Mapping[str, Any], str]:
        questions.append(question)
        of = {"train": reviews(12), "test": reviews(6, 50)}
        return {name: datasets.Dataset.from_list(rows) for name, rows in of.items()}, REVISION

    monkeypatch.setattr(hub, "hub_splits", splits)
    return questions


def task(**settings: Any) -> HFDataset:
    return HFDataset(**{"hub": "me/reviews", "text": "text", **settings})


def test_what_prepare_brings_is_read_from_the_data_folder_and_never_asked_for_again(
    asked: list[tuple[Any, ...]], root: Path
) -> None:
    one = task(config="small")
    assert (one.title, one.metric.key, one.note) == ("reviews", "acc", ""), "known without the data"
    one.fetch()
    again = task(config="small")
    again.fetch()
    assert asked == [("me/reviews", "small", None)]
    for made in (one, again):
        train, test = made.load()
        assert (made.num_outputs, made.train_examples(), len(test)) == (2, 12, 6)
        assert train.inputs.first[0] == "review 0"
    origin = json.loads((root / "hub" / "me" / "reviews" / "small" / "main" / "origin.json").read_text())
    assert (origin["repository"], origin["config"], origin["revision"]) == ("me/reviews", "small", REVISION)


def test_configurations_and_revisions_are_copies_of_their_own(asked: list[tuple[Any, ...]]) -> None:
    for settings in ({}, {"config": "b"}, {"revision": "refs/pr/1"}):
        HubDataset("me/reviews", **settings).fetch()
    assert asked == [("me/reviews", None, None), ("me/reviews", "b", None), ("me/reviews", None, "refs/pr/1")]


def test_without_a_copy_runs_say_what_to_do_and_download_nothing(asked: list[tuple[Any, ...]], root: Path) -> None:
    absent = task(config="small")
    for wanted in (absent.load, absent.train_examples, lambda: absent.num_outputs, lambda: absent.input_shape):
        with pytest.raises(NotPrepared) as said:
            wanted()
        assert str(said.value).startswith(
            f'the data set "me/reviews", config small of the hub is not in {root}: `bench prepare` downloads it.\n'
        )
        assert "bring hub/me/reviews/small/main/ out of that machine's data folder" in str(said.value)
    assert asked == []


def test_a_copy_that_was_changed_is_refused(asked: list[tuple[Any, ...]]) -> None:
    made = HubDataset("me/reviews")
    made.fetch()
    (file,) = (made.copy / "test").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole.replace(b"review 50", b"review 99"))
    with pytest.raises(BenchError, match=r"arrow is damaged: it is not what came from the hub"):
        task().load()
    file.write_bytes(whole)
    assert len(task().load()[1]) == 6
    (made.copy / "origin.json").unlink()
    with pytest.raises(BenchError, match=r"origin.json"):
        task().load()


def test_a_download_that_breaks_off_leaves_nothing_that_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking:
        def save_to_disk(self, folder: Path) -> None:
            folder.mkdir()
            raise KeyboardInterrupt

    monkeypatch.setattr(hub, "hub_splits", lambda *_: ({"train": Breaking()}, REVISION))
    with pytest.raises(KeyboardInterrupt):
        HubDataset("me/reviews").fetch()
    assert not [path for path in (root / "hub").rglob("*") if path.is_file() or path.name == "main"]


def fetch(endpoint: str, home: Path, settings: str = "") -> subprocess.CompletedProcess[str]:
    """Fetch in a process of its own from a hub at that address."""
    code = f"from bench.data.hub import HubDataset\nHubDataset('me/reviews'{settings}).fetch()\n"
    of_hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "no_proxy": "*", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | of_hub, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.mark.slow
def test_a_data_set_comes_from_the_hub_and_then_from_what_datasets_has_kept(root: Path, tmp_path: Path) -> None:
    splits = {"train": reviews(12), "test": reviews(6, 50)}
    with Hub(repository(tmp_path / "hub", {"small": splits}), "me/reviews") as server:
        done = fetch(server.address, tmp_path / "home", ", 'small'")
    assert done.returncode == 0, done.stderr
    made = HubDataset("me/reviews", "small")
    assert json.loads((made.copy / "origin.json").read_text())["revision"] == Hub.revision
    assert task(config="small").load()[1].inputs.first == [f"review {n}" for n in range(50, 56)]
    # Without a network, from the cache of `datasets`; of another revision nothing is there.
    shutil.rmtree(made.copy)
    done = fetch(NONE_LISTENS, tmp_path / "home", f", 'small', {Hub.revision[:8]!r}")
    assert done.returncode == 0, done.stderr
    done = fetch(NONE_LISTENS, tmp_path / "home", ", 'small', 'v2'")
    assert "it could not be downloaded ([Errno 111] Connection refused)." in done.stderr
    assert "Retrying" not in done.stderr


Prepare = Callable[..., Any]


def test_prepare_brings_what_an_experiment_names(asked: list[tuple[Any, ...]], bench: Prepare, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'task = { name = "hf_dataset", hub = "me/reviews", text = "text" }\nmodel = "minilm"\nbaseline = "adamw"\n'
        "seeds = 1\n\n[train]\nepochs = 1\nbatch_size = 4\n\n[optimizers.adamw]\nlr = 1e-3\n"
    )
    said = bench("run", tmp_path / "own.toml")
    assert (said.status != 0, asked) == (True, [])
    assert "`bench prepare` downloads it" in said.err
    assert bench("prepare", tmp_path / "own.toml").status == 0
    assert asked == [("me/reviews", None, None)]
