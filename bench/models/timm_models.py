"""Any model of timm (`model = "timm/resnet26"`), with an adapter for images of another size or kind."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.registry import register_model
from bench.models.layers import image_shape
from bench.models.pretrained import TimmWeights
from bench.tasks.base import Task


class Fitted(nn.Module):
    """A net behind an adapter, on the device, that turns a task's images into those that the net expects.

    Args:
        net: takes (N, channels, size, size).
        size: images are resized to it, bicubic; smoothed before (antialias) only where they shrink.
        channels: grey images are repeated to have so many.
        scale, shift: x * scale + shift brings the task's normalisation to the net's; one number per channel, or None.
    """

    def __init__(
        self, net: nn.Module, size: int, channels: int, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.size = (size, size)
        self.channels = channels
        self.scale_C11: Tensor | None
        self.shift_C11: Tensor | None
        # Not persistent: they belong to the task, and must not be a part of saved weights.
        self.register_buffer("scale_C11", None if scale is None else scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift_C11", None if shift is None else shift.view(-1, 1, 1), persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.shape[1] != self.channels:
            # A view: grey images are repeated without a copy.
            x_BCHW = x_BCHW.expand(-1, self.channels, -1, -1)
        if self.scale_C11 is not None and self.shift_C11 is not None:
            x_BCHW = torch.addcmul(self.shift_C11, x_BCHW, self.scale_C11)
        if x_BCHW.shape[2:] != self.size:  # last, since images mostly grow
            shrinks = x_BCHW.shape[2] > self.size[0] or x_BCHW.shape[3] > self.size[1]
            x_BCHW = F.interpolate(x_BCHW, self.size, mode="bicubic", antialias=shrinks)
        outputs_BK: Tensor = self.net(x_BCHW)
        return outputs_BK


def build(
    name: str,
    task: Task,
    pretrained: bool,
    image_size: int | None = None,
    *,
    weights: TimmWeights | None = None,
    **arguments: Any,
) -> Fitted:
    """Return a timm model with `task.num_outputs` outputs that takes the task's images.

    The weights are timm's initialisation, drawn from torch's default generator; `pretrained` replaces all but the
    head's. A pretrained model gets colour images with the normalisation of its pretraining; any other model gets the
    task's images as they are.

    Args:
        name: timm's, with or without the tag of pretrained weights.
        image_size: None is the size that timm gives for the model.
        weights: where pretrained weights come from; None is timm's place for this name.
        arguments: to `timm.create_model`.

    Raises:
        BenchError: the arguments contradict each other, or the weights are missing or do not fit.
    """
    import timm

    channels = image_shape(task)[0]
    weights = weights or TimmWeights(name)
    # A model that timm has no entry for gets the defaults of its configuration: 224x224 and colour.
    config = weights.config if pretrained else timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    path = weights.locate() if pretrained else None
    if pretrained and channels not in (1, config.input_size[0]):
        raise BenchError(f'pretrained "{name}" takes colour or grey images, not {channels} channels')
    channels = config.input_size[0] if pretrained else channels
    size = image_size or config.input_size[-1]
    # These models (most ViTs) fix their size when they are made, and take it as img_size.
    if config.fixed_input_size:
        arguments["img_size"] = size
    try:
        net = timm.create_model(name, num_classes=task.num_outputs, in_chans=channels, **arguments)
        # A size that the user gives is tried at once, so that a misfit is told before any run starts.
        if image_size:
            _try_out(net, torch.zeros(1, channels, size, size))
    except Exception as error:  # a size that a net cannot take fails in a manner of its own
        raise BenchError(f'timm cannot build "{name}" for images of {size}x{size}: {error}') from error
    if path is None:
        return Fitted(net, size, channels)
    weights.load(net, path, in_chans=channels, **arguments)
    return Fitted(net, size, channels, *renormalisation(task, config.mean, config.std))


@torch.no_grad()
def _try_out(net: nn.Module, image_1CHW: Tensor) -> None:
    # In eval mode, so that the running statistics of batch norm stay as they were at first.
    net.eval()(image_1CHW)
    net.train()


def renormalisation(
    task: Task, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Return (scale, shift) from a task's normalisation of pixels in 0..1 to that of `mean` and `std`.

    Both are None for a task that does not say its own: its inputs are taken as standardised, as nets are used to.
    """
    if not hasattr(task, "mean") or not hasattr(task, "std"):
        return None, None
    task_mean, task_std, net_mean, net_std = (torch.tensor(x) for x in (task.mean, task.std, mean, std))
    # x * task_std + task_mean is the pixel; (pixel - net_mean) / net_std is what the net expects of it.
    return task_std / net_std, (task_mean - net_mean) / net_std


@functools.cache
def members() -> Collection[str]:
    """Return all names of timm's models, without tag and with tag."""
    import timm

    return frozenset(timm.list_models() + timm.list_models(pretrained=True))


def fetch_timm(name: str, params: dict[str, Any]) -> None:
    if params["pretrained"]:
        TimmWeights(name).fetch()


@register_model("timm/", fetch=fetch_timm, members=members)
def timm_model(
    task: Task, name: str, *, pretrained: bool = False, image_size: Annotated[int, Field(ge=1)] | None = None
) -> nn.Module:
    """Any model of timm, as timm/resnet26 or, with the tag of its weights, timm/vit_base_patch16_224.augreg_in1k.

    Args:
        pretrained: start from the weights of the tag (timm's default ones without a tag), with a new head.
        image_size: images are resized to it; the size that timm gives for the model if left out.
    """
    return build(name, task, pretrained, image_size)
