"""timm's models by name, pretrained weights, and the images they are given. `test_vit` is timm's own tiny one."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from bench.core import registry
from bench.core.errors import BenchError
from bench.models.timm_models import Fitted, renormalisation
from bench.models.vit import B16, S16

from .helpers import CIFAR10, DIGITS, FASHION, Images, build, count, of_type

WEIGHTS = "test_vit.r160_in1k"
MODEL = "timm/test_vit"
pytestmark = pytest.mark.usefixtures("data")


@pytest.fixture
def published() -> dict[str, Tensor]:
    """Weights as the hub has them, with the head for ImageNet's thousand classes."""
    torch.manual_seed(99)
    return {key: torch.randn_like(tensor) for key, tensor in timm.create_model("test_vit").state_dict().items()}


@pytest.fixture
def local(data: Path, published: dict[str, Tensor]) -> Path:
    path = data / "weights" / f"{WEIGHTS}.safetensors"
    path.parent.mkdir(parents=True)
    save_file(published, path)
    return path


def body(model: nn.Module) -> dict[str, Tensor]:
    """Weights of the net behind the wrapper, without the head."""
    state = {key.removeprefix("net."): tensor for key, tensor in model.state_dict().items()}
    return {key: tensor for key, tensor in state.items() if not key.startswith("head.")}


def head(model: nn.Module) -> Tensor:
    weight: Tensor = model.state_dict()["net.head.weight"]
    return weight


# ---- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet26", "vit_base_patch16_224.augreg_in1k", S16, B16])
def test_timms_names_are_models_with_and_without_the_tag_of_weights(name: str) -> None:
    assert f"timm/{name}" in registry.models


def test_a_model_of_timm_has_the_tasks_outputs() -> None:
    body = sum(parameter.numel() for parameter in timm.create_model("resnet26", num_classes=0).parameters())
    assert count("timm/resnet26", CIFAR10) == body + 2048 * 10 + 10


def test_an_unknown_name_is_answered_with_the_nearest_ones() -> None:
    with pytest.raises(BenchError, match=r'unknown model "timm/resnet27"; the nearest of \d+ valid names: .*resnet26'):
        build("timm/resnet27", CIFAR10)
    with pytest.raises(BenchError, match='unknown model "timm/"'):
        build("timm/", CIFAR10)


# ---- images --------------------------------------------------------------------------------------------------


def test_a_net_from_scratch_has_the_tasks_channels_and_the_size_that_timm_gives() -> None:
    model = build(MODEL, DIGITS)
    assert of_type(model, nn.Conv2d)[0].in_channels == 1
    assert isinstance(model, Fitted)
    assert (model.size, model.channels) == ((160, 160), 1)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_the_size_of_the_images_can_be_chosen(name: str) -> None:
    model = build(f"timm/{name}", CIFAR10, image_size=64).eval()
    seen: list[Tensor] = []
    of_type(model, nn.Conv2d)[0].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    with torch.no_grad():
        assert model(CIFAR10.batch(2)[0]).shape == (2, 10)
    assert [x.shape for x in seen] == [(2, 3, 64, 64)]


def test_a_size_that_a_net_cannot_take_is_told() -> None:
    said = r"cannot build \"test_vit\" for images of 100x100: .*divisible by patch size \(16\)"
    with pytest.raises(BenchError, match=said):
        build(MODEL, CIFAR10, image_size=100)


def test_trying_out_a_size_leaves_the_net_as_it_was() -> None:
    tried, not_tried = build("timm/test_resnet", CIFAR10, image_size=160), build("timm/test_resnet", CIFAR10)
    assert all(module.training for module in tried.modules())
    for name, tensor in not_tried.state_dict().items():
        assert torch.equal(tried.state_dict()[name], tensor), name


def test_images_of_the_right_size_are_passed_on_as_they_are() -> None:
    images = CIFAR10.batch(2)[0]
    assert Fitted(nn.Identity(), 32, 3)(images) is images


def test_only_shrinking_smooths() -> None:
    """Of four columns one is white: smoothed they are a quarter grey, while single pixels would be anything."""
    columns = (torch.arange(32) % 4 == 0).float().expand(1, 1, 32, 32)
    shrunk = Fitted(nn.Identity(), 8, 1)(columns)
    assert (shrunk[..., 2:-2] - 0.25).abs().max() < 0.02
    flat = Fitted(nn.Identity(), 32, 1)(torch.full((1, 1, 16, 16), 0.25))
    torch.testing.assert_close(flat, torch.full((1, 1, 32, 32), 0.25))


def test_the_wrapper_keeps_channels_last() -> None:
    images = CIFAR10.batch(2)[0].contiguous(memory_format=torch.channels_last)
    scale, shift = torch.ones(3), torch.zeros(3)
    assert Fitted(nn.Identity(), 64, 3, scale, shift)(images).is_contiguous(memory_format=torch.channels_last)


# ---- normalisation -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize(
    ("mean", "std"), [((0.1, 0.4, 0.7), (0.2, 0.3, 0.4)), ((0.25,), (0.5,))], ids=["colour", "grey"]
)
def test_a_pretrained_net_sees_colour_pixels_normalised_as_it_was_trained(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """Grey ones are shown to it in all channels."""
    model = build(MODEL, Images(len(mean), 160, 160, mean=mean, std=std), pretrained=True).eval()
    assert isinstance(model, Fitted)
    assert of_type(model, nn.Conv2d)[0].in_channels == 3
    pixels = torch.rand(2, len(mean), 160, 160)
    config = timm.get_pretrained_cfg(WEIGHTS)
    assert config is not None
    with torch.no_grad():
        expected = model.net(normalised(pixels.expand(2, 3, 160, 160), config.mean, config.std))
        torch.testing.assert_close(model(normalised(pixels, mean, std)), expected, rtol=1e-4, atol=1e-4)


def normalised(pixels_BCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return (pixels_BCHW - mean_C11) / std_C11


def test_what_is_said_of_no_task_is_left_alone() -> None:
    assert renormalisation(CIFAR10, (0.5,) * 3, (0.5,) * 3) == (None, None)


@pytest.mark.usefixtures("local")
def test_the_constants_are_tiny_and_not_saved() -> None:
    """SAM copies every buffer in each step, and a checkpoint holds what is trained."""
    model = build(MODEL, Images(3, 32, 32, mean=(0.5,) * 3, std=(0.5,) * 3), pretrained=True)
    assert sum(buffer.numel() for buffer in model.buffers()) == 6
    assert {key.partition(".")[0] for key in model.state_dict()} == {"net"}


@pytest.mark.usefixtures("local")
def test_a_pretrained_net_sees_no_other_number_of_channels() -> None:
    with pytest.raises(BenchError, match='pretrained "test_vit" takes colour or grey images, not 4 channels'):
        build(MODEL, Images(4, 32, 32), pretrained=True)


# ---- weights -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("name", ["test_vit", WEIGHTS])
def test_a_pretrained_net_is_the_file_but_for_its_head(name: str, published: dict[str, Tensor]) -> None:
    model = build(f"timm/{name}", CIFAR10, pretrained=True)
    expected = {key: tensor for key, tensor in published.items() if not key.startswith("head.")}
    assert body(model).keys() == expected.keys()
    assert all(torch.equal(body(model)[key], tensor) for key, tensor in expected.items())


@pytest.mark.usefixtures("local")
def test_the_new_head_is_timms_initialisation_from_the_seed() -> None:
    one, other = (build(MODEL, CIFAR10, seed, pretrained=True) for seed in (0, 1))
    assert torch.equal(head(one), head(build(MODEL, CIFAR10, 0)))
    assert not torch.equal(head(one), head(other))
    assert head(one).shape[0] == 10


@pytest.mark.usefixtures("local")
def test_a_thousand_classes_get_a_new_head_as_well(published: dict[str, Tensor]) -> None:
    model = build(MODEL, Images(3, 32, 32, classes=1000), pretrained=True)
    assert not torch.equal(head(model), published["head.weight"])


@pytest.mark.usefixtures("local")
def test_position_embeddings_are_fitted_to_another_size(published: dict[str, Tensor]) -> None:
    fitted = body(build(MODEL, CIFAR10, pretrained=True, image_size=64))["pos_embed"]
    assert fitted.shape[1] == 1 + 4 * 4
    torch.testing.assert_close(fitted, resample_abs_pos_embed(published["pos_embed"], [4, 4]))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_file_of_torch_will_do(data: Path, published: dict[str, Tensor], suffix: str) -> None:
    (data / "weights").mkdir(parents=True)
    torch.save(published, data / "weights" / f"{WEIGHTS}{suffix}")
    assert torch.equal(body(build(MODEL, CIFAR10, pretrained=True))["cls_token"], published["cls_token"])


def in_hub_cache(name: str, weights: dict[str, Tensor]) -> None:
    folder = Path(constants.HF_HUB_CACHE) / f"models--timm--{name}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(weights, folder / "snapshots" / "abc" / "model.safetensors")


def test_what_timm_once_downloaded_is_used(published: dict[str, Tensor]) -> None:
    in_hub_cache(WEIGHTS, published)
    assert torch.equal(body(build(MODEL, CIFAR10, pretrained=True))["cls_token"], published["cls_token"])
    registry.models[MODEL].fetch_weights({"pretrained": True})


@pytest.mark.usefixtures("local")
def test_a_local_file_comes_before_the_hubs(published: dict[str, Tensor]) -> None:
    in_hub_cache(WEIGHTS, {key: tensor + 1 for key, tensor in published.items()})
    assert torch.equal(body(build(MODEL, CIFAR10, pretrained=True))["cls_token"], published["cls_token"])


def test_vit_s16_starts_from_its_file(data: Path) -> None:
    weights = timm.create_model(S16, num_classes=21843).state_dict()
    weights["cls_token"] += 1
    (data / "weights").mkdir(parents=True)
    save_file(weights, data / "weights" / f"{S16}.safetensors")
    built = build("vit_s16", CIFAR10, drop_path=0.1, dropout=0.1)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in body(built).items())


# ---- no weights, or others -----------------------------------------------------------------------------------


def spoilt(change: Callable[[dict[str, Tensor]], object]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change_a_copy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights = dict(weights)
        change(weights)
        return weights

    return change_a_copy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoilt(lambda w: w.pop("norm.weight")), r'Missing key\(s\) in state_dict: "norm.weight"'),
        (spoilt(lambda w: w.update(extra=torch.zeros(3))), r'Unexpected key\(s\) in state_dict: "extra"'),
        (spoilt(lambda w: w.update({"norm.bias": torch.zeros(3)})), r"size mismatch for norm.bias: .*\[3\]"),
        (spoilt(lambda w: w.clear()), "it is empty"),
    ],
    ids=["missing", "unexpected", "shape", "empty"],
)
def test_a_file_of_another_net_is_told_with_the_first_misfit(
    local: Path, published: dict[str, Tensor], change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    save_file(change(published), local)
    with pytest.raises(BenchError, match=rf"^{re.escape(f'{local} does not hold the weights of {WEIGHTS}')}: {said}"):
        build(MODEL, CIFAR10, pretrained=True)


def test_a_damaged_file_is_told(local: Path) -> None:
    local.write_bytes(local.read_bytes()[:1000])
    with pytest.raises(BenchError, match=re.escape(f"{local} does not hold the weights of {WEIGHTS}: ")):
        build(MODEL, CIFAR10, pretrained=True)


class _Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_file_is_executed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "weights").mkdir(parents=True)
    monkeypatch.chdir(data)
    torch.save({"norm.weight": _Malicious()}, data / "weights" / f"{WEIGHTS}.pth")
    with pytest.raises(BenchError, match="does not hold the weights"):
        build(MODEL, CIFAR10, pretrained=True)
    (data / "weights" / f"{WEIGHTS}.pth").write_bytes(pickle.dumps(_Malicious()))
    with pytest.raises(BenchError, match="does not hold the weights"):
        build(MODEL, CIFAR10, pretrained=True)
    assert not (data / "executed").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the hub is asked for; it answers nothing."""
    asked: list[str] = []

    def refuse(address: str, *others: object, **options: object) -> None:
        asked.append(address)
        raise ConnectionError("no route to the hub\nand more of it")

    for name in ("get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    return asked


pretrained_models = pytest.mark.parametrize(("model", "name"), [(MODEL, WEIGHTS), ("vit_s16", S16), ("vit_b16", B16)])


@pretrained_models
def test_building_a_net_never_downloads(hub: list[str], data: Path, model: str, name: str) -> None:
    with pytest.raises(BenchError) as caught:
        build(model, CIFAR10, pretrained=True)
    assert hub == []
    assert str(caught.value).splitlines() == [
        f"the pretrained weights {name} are not on this machine: `bench prepare` downloads them",
        "To get them some other way, put there",
        f"  {data}/weights/{name}.safetensors",
        f"    from https://huggingface.co/timm/{name}/resolve/main/model.safetensors",
        "or run `bench prepare` with the same experiment where there is a network, and bring the folder HF_HOME of "
        f"that machine here (on this one it is {constants.HF_HOME}).",
    ]


@pretrained_models
def test_without_a_network_fetching_is_one_error_that_says_what_to_put_where(
    hub: list[str], data: Path, model: str, name: str
) -> None:
    with pytest.raises(BenchError) as caught:
        registry.models[model].fetch_weights({"pretrained": True})
    first, *rest = str(caught.value).splitlines()
    assert first == (
        f"the pretrained weights {name} are not on this machine: they cannot be downloaded now (no route to the hub)"
    )
    assert f"  {data}/weights/{name}.safetensors" in rest
    assert len(hub) == 1, "asked once: the hub's library goes on trying for half a minute"


def test_the_hubs_own_word_for_offline_is_passed_on() -> None:
    with pytest.raises(BenchError, match=r"cannot be downloaded now \(.*HF_HUB_OFFLINE"):
        registry.models[MODEL].fetch_weights({"pretrained": True})


@pytest.mark.parametrize("model", [MODEL, "vit_s16", "vit_b16"])
def test_nothing_is_fetched_for_a_net_from_scratch(hub: list[str], model: str) -> None:
    registry.models[model].fetch_weights({"pretrained": False})
    assert hub == []


@pytest.mark.usefixtures("local")
def test_nothing_is_fetched_that_is_there(hub: list[str]) -> None:
    registry.models[MODEL].fetch_weights({"pretrained": True})
    assert hub == []


def test_fetching_downloads_the_hubs_file(monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded: list[tuple[str, str]] = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda address, timeout: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *where, revision: downloaded.append(where))
    registry.models[MODEL].fetch_weights({"pretrained": True})
    assert downloaded == [(f"timm/{WEIGHTS}", "model.safetensors")]


def test_weights_that_the_hub_does_not_have_are_to_be_had_by_hand(hub: list[str], data: Path) -> None:
    with pytest.raises(BenchError) as caught:
        registry.models["timm/gcvit_xxtiny"].fetch_weights({"pretrained": True})
    assert hub == []
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("the hub, from which `bench prepare` downloads, does not have them")
    assert lines[2] == f"  {data}/weights/gcvit_xxtiny.in1k.pth"
    assert "github.com" in lines[3]


def test_a_net_without_pretrained_weights_says_so() -> None:
    said = 'timm has no pretrained weights for "test_vit4"; set pretrained = false'
    with pytest.raises(BenchError, match=said):
        build("timm/test_vit4", FASHION, pretrained=True)
    with pytest.raises(BenchError, match=said):
        registry.models["timm/test_vit4"].fetch_weights({"pretrained": True})
