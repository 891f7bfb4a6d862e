"""Pretrained weights: a local file, else what timm's hub cache holds; only `fetch` downloads.

A local file is `<data folder>/weights/<timm name with tag>.safetensors` (or .pth, .pt, .bin), the file that the hub has
under that name. Nothing in a file is executed: safetensors, or torch's loader restricted to weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from bench.core.data_folder import data_folder
from bench.core.errors import BenchError, NotPrepared

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
ON_THE_HUB = ("model.safetensors", "pytorch_model.bin")
NOT_ON_THE_HUB = "the hub, from which `bench prepare` downloads, does not have them"
SECONDS_TO_ANSWER = 10.0


def config(name: str) -> PretrainedCfg:
    """Return timm's configuration of a model's pretrained weights; a name without tag means timm's default weights.

    Raises:
        BenchError: the model has no pretrained weights.
    """
    import timm

    found = timm.get_pretrained_cfg(name)
    if found is None or not found.has_weights:
        raise BenchError(f'timm has no pretrained weights for "{name}"; set pretrained = false to train from scratch')
    return found


def find(name: str) -> Path | None:
    """Return the file that holds these weights, or None if no such file is on this machine."""
    from huggingface_hub import try_to_load_from_cache

    local = _local(name)
    for suffix in SUFFIXES:
        if (path := local.with_name(local.name + suffix)).is_file():
            return path
    repository, revision = _repository(name)
    for file in ON_THE_HUB if repository else ():
        cached = try_to_load_from_cache(repository, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    return None


def fetch(name: str) -> None:
    """Ensure that the weights are on this machine, downloading them into the hub's cache if they are not.

    Raises:
        BenchError: the weights are missing and cannot be downloaded.
    """
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if find(name) is not None:
        return
    repository, revision = _repository(name)
    for file in ON_THE_HUB if repository else ():
        try:
            # Asked first, and once: the download itself would go on trying for half a minute without a network.
            address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
            huggingface_hub.get_hf_file_metadata(address, timeout=SECONDS_TO_ANSWER)
            huggingface_hub.hf_hub_download(repository, file, revision=revision)
            return
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # of three libraries; whichever it is, there are no weights
            raise _absent(name, f"they cannot be downloaded now ({_first_line(error)})") from error
    raise _absent(name, NOT_ON_THE_HUB)


def locate(name: str) -> Path:
    """Return the file that holds these weights.

    Raises:
        BenchError: the file is not on this machine; the message says what to put where.
    """
    path = find(name)
    if path is None:
        raise _absent(name, "`bench prepare` downloads them" if _repository(name)[0] else NOT_ON_THE_HUB)
    return path


def load(net: nn.Module, name: str, path: Path, **arguments: Any) -> None:
    """Load pretrained weights into a timm model that was made as `name` with `arguments`, except the head's.

    They go through a twin with the head that the file was made with: timm then insists on every key and shape, and
    fits what depends on the size of the image (position embeddings).

    Raises:
        BenchError: the file does not hold these weights; the message names the first misfit.
    """
    import timm

    try:
        weights = timm.models.load_state_dict(str(path), weights_only=True)
        if not weights:
            raise ValueError("it is empty")  # and timm would look for weights elsewhere, on the hub
        overlay = {"state_dict": weights, "custom_load": False}
        twin = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        raise BenchError(f"{path} does not hold the weights of {_full_name(name)}: {_first_line(error)}") from error
    classifier = config(name).classifier or ()
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    body = {key: tensor for key, tensor in twin.state_dict().items() if not key.startswith(heads)}
    left_out = net.load_state_dict(body, strict=False).missing_keys
    assert all(key.startswith(heads) for key in left_out), left_out


def _full_name(name: str) -> str:
    found = config(name)
    return f"{found.architecture}.{found.tag}" if found.tag else str(found.architecture)


def _local(name: str) -> Path:
    """Return the path of the local file, without suffix."""
    return data_folder() / "weights" / _full_name(name)


def _repository(name: str) -> tuple[str, str | None]:
    """Return the hub's repository and the revision that timm asks for; "" for a few old weights not on the hub."""
    repository, _, revision = (config(name).hf_hub_id or "").partition("@")
    return repository, revision or None


def _absent(name: str, reason: str) -> BenchError:
    """Return the error that says what is missing, and which file to put where or what else to do."""
    from huggingface_hub import constants, hf_hub_url

    repository, revision = _repository(name)
    if repository:
        address, suffix = hf_hub_url(repository, ON_THE_HUB[0], revision=revision), SUFFIXES[0]
        otherwise = (
            "\nor run `bench prepare` with the same experiment where there is a network, and bring the folder HF_HOME "
            f"of that machine here (on this one it is {constants.HF_HOME})."
        )
    else:
        address, suffix, otherwise = str(config(name).url), SUFFIXES[1], ""
    return NotPrepared(
        f"the pretrained weights {_full_name(name)} are not on this machine: {reason}\n"
        f"To get them some other way, put there\n  {_local(name)}{suffix}\n    from {address}{otherwise}"
    )


def _first_line(error: BaseException) -> str:
    """Return the first informative line of an error; torch lists each mismatched key after a tab, below a heading."""
    heading, _, details = f"{error}".strip().partition("\n")
    line = details.strip().partition("\n")[0] if heading.startswith("Error(s) in loading") else heading
    return line if len(line) <= 300 else f"{line[:300]} ..."
