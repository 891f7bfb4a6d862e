"""Checks of files: this package, data sets and weights. They need torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.config.file import experiment_folders
from bench.core import data_folder as folders
from bench.core.errors import BenchError
from bench.doctor.finding import Finding, gigabytes, shown
from bench.store.files import read_toml

NAMED = 4
"""Weights that are shown by name."""


def bench() -> Iterator[Finding]:
    """Yield the version and the commit of this package."""
    import torch

    from bench.training.environment import describe

    about = describe(torch.device("cpu"))
    commit = f", commit {about['commit']}{' with changes' * bool(about['dirty'])}" if about["commit"] else ""
    yield Finding("ok", "sam-bench", f"{about['bench']}{commit}, in {shown(Path(__file__).parents[1])}")


def data_folder() -> Iterator[Finding]:
    """Yield the folder of data and weights, and who has named it.

    Raises:
        BenchError: it is something other than a folder.
    """
    folder = folders.data_folder()
    # `variables` is about --data-dir alone, which goes before BENCH_DATA.
    given = "--data-dir" if folders.variables() else folders.VARIABLE
    who = given if folders.named_data_folder() else "the default"
    if not folder.exists():
        advice = f"`bench prepare` makes it; or name {folders.ANOTHER_FOLDER}"
        yield Finding("note", "data folder", f"{shown(folder)} ({who}) does not exist yet", advice)
    elif not os.access(folder, os.W_OK | os.X_OK):
        found = f"{shown(folder)} ({who}) can be read only: nothing can be downloaded to it"
        yield Finding("note", "data folder", found, f"name {folders.ANOTHER_FOLDER}, where data are missing")
    else:
        free = gigabytes(shutil.disk_usage(folder).free)
        yield Finding("ok", "data folder", f"{shown(folder)} ({who}), {free} free")


def images() -> Iterator[Finding]:
    """Yield every published data set of images, and where it is or was looked for."""
    from bench.core import registry

    registry.load_builtins()
    yield Finding("ok", "digits, MNIST-1D", "always there: in scikit-learn, and generated")
    for entry in registry.tasks:
        dataset = getattr(entry.factory, "dataset", None)
        if dataset is None:
            continue
        if dataset.is_there():
            yield Finding("ok", dataset.title, f"in {shown(dataset.paths()[0].parent)}")
            continue
        places = [place.resolve() for place in dataset.folders()]
        archive = next(
            (path for one in dataset.downloads if (path := folders.data_folder() / one.name).is_file()), None
        )
        partly = next((place for place in places if 0 < len(dataset.missing(place)) < len(dataset.files)), None)
        if partly is not None:
            found = f"{shown(partly)} is without {', '.join(dataset.missing(partly))}"
            advice = f"move the folder away; {_prepare(entry.name)}"
        elif archive is not None:
            found, advice = f"packed, as {shown(archive)}", f"{_prepare(entry.name)} (it unpacks the archive)"
        else:
            found = f"not in {', '.join(map(shown, places))}"
            advice = f"{_prepare(entry.name)}, where there is a network; or docs/data.md"
        yield Finding("note" if archive and not partly else "lack", dataset.title, found, advice)


def glue() -> Iterator[Finding]:
    """Yield which of GLUE's tasks are there."""
    from bench.data.glue_files import TASKS

    there = [files.title for files in TASKS.values() if files.is_there()]
    missing = [files.title for files in TASKS.values() if not files.is_there()]
    where = shown(folders.data_folder() / "glue")
    if not there:
        advice = f"{_prepare('glue/')}, where there is a network; or docs/data.md"
        yield Finding("lack", "GLUE", f"not in {where}", advice)
        return
    advice = "`bench prepare EXPERIMENT` brings those of an experiment; or docs/data.md" if missing else ""
    without = f"; not there: {', '.join(missing)}" if missing else ""
    yield Finding("note" if missing else "ok", "GLUE", f"{', '.join(there)}{without} (in {where})", advice)


def weights() -> Iterator[Finding]:
    """Yield pretrained weights: in the data folder, in the hub's cache and in packages."""
    from huggingface_hub import constants

    from bench.models import efficientnet, pretrained

    local = folders.data_folder() / "weights"
    cache = Path(constants.HF_HUB_CACHE)
    there = [f"{name} (data folder)" for name in _local_weights(local)]
    there += [f"{name} (hub's cache)" for name in _cached_weights(cache)]
    there += ["efficientnet_lite0 (package)"] if efficientnet.PackagedWeights().find() else []
    try:
        pretrained.minilm()
        there.append("minilm (package)")
    except BenchError:  # the package is not installed
        pass
    if not there:
        found = f"none in {shown(local)}, in {shown(cache)} or in packages"
        advice = "`bench prepare EXPERIMENT` downloads them; without a network: `make offline`, or docs/data.md"
        yield Finding("lack", "weights", found, advice)
        return
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    yield Finding("ok", "weights", f"{', '.join(there[:NAMED])}{more}")


def _local_weights(folder: Path) -> list[str]:
    """Return the names of weights in a folder: files for timm, and checkpoints with all of their files."""
    from bench.models.pretrained import CONFIG, SUFFIXES

    files = [path.stem for path in folder.glob("*") if path.is_file() and path.suffix in SUFFIXES]
    # A name on the hub may have an owner: weights/google/electra-small-discriminator.
    checkpoints = [path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG}")]
    return sorted([*files, *(str(path.relative_to(folder)) for path in checkpoints if _is_whole(path))])


def _is_whole(checkpoint: Path) -> bool:
    from bench.models.pretrained import lacking

    try:
        return not lacking(checkpoint)
    except BenchError:  # a damaged index of its files
        return False


def _cached_weights(cache: Path) -> list[str]:
    """Return the repositories in the hub's cache that have weights."""
    # Folders as the hub's client names them: models--google--electra-small-discriminator.
    repositories = [path for path in sorted(cache.glob("models--*")) if any(path.glob("snapshots/*/*model*.[sb]*"))]
    return [path.name.removeprefix("models--").replace("--", "/") for path in repositories]


def _prepare(task: str) -> str:
    """Return the command that brings the data of a task: with an experiment on it, the shortest first."""
    found = []
    for path in (path for folder in experiment_folders() for path in sorted(folder.glob("*.toml"))):
        try:
            of = read_toml(path).get("task")
        except BenchError:  # `bench list` says what is wrong with it
            continue
        name = of.get("name") if isinstance(of, dict) else of
        if isinstance(name, str) and (name == task or (task.endswith("/") and name.startswith(task))):
            found.append(path.stem)
    smallest = min(found, key=lambda name: ("smoke" not in name, "small" not in name, name), default="EXPERIMENT")
    return f"`bench prepare {smallest}`"
