"""Where text encoders' checkpoints are, and getting them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from bench.core import registry
from bench.core.errors import BenchError
from bench.models.pretrained import Checkpoint

from .encoder_files import Sentences, weights, write
from .helpers import build

NAME = "google/electra-small-discriminator"
TASK = Sentences(3)
pytestmark = pytest.mark.usefixtures("data")


# ---- where checkpoints are -----------------------------------------------------------------------------------


def in_hub_cache(name: str, kind: str = "electra", seed: int = 0) -> Path:
    root = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    return write(root / "snapshots" / "abc", kind, seed)


def test_a_checkpoint_is_found_in_the_data_folder_then_as_a_folder_then_where_the_hubs_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = [in_hub_cache(NAME), write(tmp_path / NAME, "electra"), write(data / "weights" / NAME, "electra")]
    for place in reversed(places):
        assert Checkpoint(NAME).locate() == place
        registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})
        (place / "model.safetensors").unlink()
    assert Checkpoint(NAME, weights=False).locate() == places[2]


def test_folders_are_named_in_full_or_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    place = write(tmp_path / "a" / "b" / "bert", "bert")
    for name in (str(place), "~/a/b/bert", "./a/b/bert", "a/b/bert"):
        assert Checkpoint(name).locate().samefile(place)
    monkeypatch.chdir(place.parent)
    assert Checkpoint("bert").find() is None, "a name without a slash is one of the hub"


def test_the_tokenizer_is_the_checkpoints(data: Path) -> None:
    place = write(data / "weights" / "bert-base-uncased", "bert")
    (place / "model.safetensors").unlink()
    entry = registry.models["encoder"]
    assert entry.tokenizer is not None
    assert entry.tokenizer({"checkpoint": "bert-base-uncased", "from_scratch": True}) == place
    with pytest.raises(BenchError, match=r"is on this machine without model\.safetensors"):
        entry.tokenizer({"checkpoint": "bert-base-uncased", "from_scratch": False})
    downloaded = in_hub_cache("bert-base-uncased", "bert")
    assert entry.tokenizer({"checkpoint": "bert-base-uncased", "from_scratch": False}) == downloaded, "as the net is"


def test_a_folder_that_is_not_there_or_not_whole_is_told(bert: Path, tmp_path: Path, hub: list[str]) -> None:
    with pytest.raises(
        BenchError, match=f'^checkpoint = "{tmp_path}/none": there is no such folder; name a folder with'
    ):
        build("encoder", TASK, checkpoint=str(tmp_path / "none"))
    (bert / "tokenizer.json").unlink()
    (bert / "model.safetensors").unlink()
    with pytest.raises(BenchError, match=f"{bert} is without model.safetensors, tokenizer.json "):
        build("encoder", TASK, checkpoint=str(bert))
    with pytest.raises(BenchError, match=f"{bert} is without tokenizer.json "):
        build("encoder", TASK, checkpoint=str(bert), from_scratch=True)
    for unhad in (tmp_path / "none", bert):
        with pytest.raises(BenchError, match=f'^checkpoint = "{unhad}": '):
            registry.models["encoder"].fetch_weights({"checkpoint": str(unhad), "from_scratch": False})
    assert hub == []
    with pytest.raises(BenchError, match=r'checkpoint = "~nobody-of-that-name/x": .*; give the full path'):
        Checkpoint("~nobody-of-that-name/x").locate()


def test_a_pickle_is_refused(bert: Path, data: Path) -> None:
    torch.save(weights(bert), bert / "pytorch_model.bin")
    (bert / "model.safetensors").unlink()
    for name in (str(bert), NAME):
        with pytest.raises(BenchError, match=r"pytorch_model.bin only, and unpickling such a file executes the code"):
            build("encoder", TASK, checkpoint=name)
        (data / "weights" / NAME).parent.mkdir(parents=True, exist_ok=True)
        if name != NAME:
            bert.rename(data / "weights" / NAME)


# ---- getting them ---------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for; it answers nothing."""
    asked: list[str] = []

    def refuse(name: str, **options: object) -> None:
        asked.append(name)
        raise ConnectionError("no route to the hub\nand more of it")

    for name in ("model_info", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    return asked


def test_building_a_net_never_downloads(hub: list[str], data: Path) -> None:
    with pytest.raises(BenchError) as caught:
        build("encoder", TASK, checkpoint=NAME)
    assert hub == []
    assert str(caught.value).splitlines() == [
        f'the checkpoint "{NAME}" is not on this machine: `bench prepare` downloads it',
        "To get it some other way, put config.json, model.safetensors, tokenizer.json and tokenizer_config.json there",
        f"  {data}/weights/{NAME}/",
        f"    from https://huggingface.co/{NAME}/tree/main",
        "or name a folder that holds them as the checkpoint,",
        "or run `bench prepare` with the same experiment where there is a network, and bring the folder HF_HOME of "
        f"that machine here (on this one it is {constants.HF_HOME}).",
    ]
    with pytest.raises(BenchError, match=r"put config.json, tokenizer.json and tokenizer_config.json there"):
        build("encoder", TASK, checkpoint=NAME, from_scratch=True)


def test_what_is_there_in_part_is_told(data: Path) -> None:
    place = write(data / "weights" / NAME, "electra")
    (place / "config.json").unlink()
    with pytest.raises(BenchError, match=rf'^the checkpoint "{NAME}" is on this machine without config.json: `bench'):
        build("encoder", TASK, checkpoint=NAME)


def test_without_a_network_fetching_is_one_error_that_says_what_to_put_where(hub: list[str], data: Path) -> None:
    with pytest.raises(BenchError) as caught:
        registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})
    first, *rest = str(caught.value).splitlines()
    assert first == (
        f'the checkpoint "{NAME}" is not on this machine: it cannot be downloaded now (no route to the hub)'
    )
    assert f"  {data}/weights/{NAME}/" in rest
    assert hub == [NAME], "asked once: the hub's library goes on trying for half a minute"


def test_the_hubs_own_word_for_offline_is_passed_on() -> None:
    with pytest.raises(BenchError, match=r"cannot be downloaded now \(.*HF_HUB_OFFLINE"):
        registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})


def test_nothing_is_fetched_that_is_there(hub: list[str], data: Path) -> None:
    place = write(data / "weights" / NAME, "electra")
    registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})
    (place / "model.safetensors").unlink()
    registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": True})
    assert hub == []


class Hub:
    """One that has some files, and puts them where the hub's library does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *files: str) -> None:
        self.files = files
        self.patterns: list[str] = []
        monkeypatch.setattr(huggingface_hub, "model_info", self.model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)

    def model_info(self, name: str, timeout: float) -> SimpleNamespace:
        assert timeout <= 10
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.files])

    def snapshot_download(self, name: str, allow_patterns: list[str], ignore_patterns: list[str]) -> None:
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        self.patterns = allow_patterns
        place = in_hub_cache(name)
        found = filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        wanted = {str(file) for file in found}
        for path in place.iterdir():
            if path.name not in wanted:
                path.unlink()
        self.files = tuple(wanted)


ON_THE_HUB = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    *("pytorch_model.bin", "tf_model.h5", "README.md", "onnx/model.safetensors", "old/tokenizer.model"),
)
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "vocab.txt"}


@pytest.mark.parametrize("from_scratch", [False, True])
def test_fetching_downloads_what_is_needed_and_no_more(monkeypatch: pytest.MonkeyPatch, from_scratch: bool) -> None:
    hub = Hub(monkeypatch, *ON_THE_HUB)
    registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": from_scratch})
    assert set(hub.files) == {"config.json", *TOKENIZER} | (set() if from_scratch else {"model.safetensors"})
    build("encoder", TASK, checkpoint=NAME, from_scratch=from_scratch)


def test_a_checkpoint_without_safetensors_is_refused_before_it_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for weights_there, said in (("pytorch_model.bin", "unpickling"), ("tf_model.h5", "the hub has no safetensors of")):
        hub = Hub(monkeypatch, "config.json", "tokenizer.json", weights_there)
        with pytest.raises(BenchError, match=rf'^the checkpoint "{NAME}": .*{said}'):
            registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})
        assert hub.patterns == []


def test_what_the_hub_lacks_is_told_after_downloading(monkeypatch: pytest.MonkeyPatch) -> None:
    Hub(monkeypatch, "config.json", "model.safetensors")
    with pytest.raises(BenchError, match=r"without tokenizer.json .*: the hub lacks some of its files"):
        registry.models["encoder"].fetch_weights({"checkpoint": NAME, "from_scratch": False})
