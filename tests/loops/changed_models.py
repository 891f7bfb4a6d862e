"""Models that are changed for their training: LoRA's adapters, fake quantisation, compiled ones, MAML's inner steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.ao import quantization
from torch.func import functional_call

from bench.optim.base.wrapper import OptimizerWrapper

from . import hugging_face
from .harness import Batch, Loop, Setting, loss_of


def over(model: nn.Module, setting: Setting, loss: Callable[[nn.Module, Batch], Tensor] = loss_of) -> nn.Module:
    """Train a model by a plain loop with closures."""
    optimizer = setting.optimizer(model)
    for batch in setting.batches():

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            found = loss(model, batch)
            found.backward()  # type: ignore[no-untyped-call]
            return found

        if isinstance(optimizer, OptimizerWrapper):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return model


# ---- PEFT --------------------------------------------------------------------------------------------------------


def adapted(setting: Setting) -> nn.Module:
    """The net with LoRA's adapters on both layers: they alone are trained."""
    net = setting.net()
    config = LoraConfig(r=2, target_modules=["first", "last"], lora_dropout=setting.dropout, init_lora_weights=False)
    model: nn.Module = get_peft_model(net, config, autocast_adapter_dtype=False).to(setting.dtype)
    return model


def lora(setting: Setting) -> nn.Module:
    model = adapted(setting)
    hugging_face.train_module(setting, model)
    return model


# ---- quantisation-aware training ---------------------------------------------------------------------------------


def fake_quantised(setting: Setting) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated
        net = setting.net().train()
        net.qconfig = quantization.get_default_qat_qconfig("x86")  # type: ignore[no-untyped-call]
        model: nn.Module = quantization.prepare_qat(net)  # type: ignore[no-untyped-call]
    return model


def quantised(setting: Setting) -> nn.Module:
    return over(fake_quantised(setting), setting)


# ---- torch.compile -----------------------------------------------------------------------------------------------


def compiled_model(setting: Setting) -> nn.Module:
    net = setting.net()
    model: Any = torch.compile(net, backend="aot_eager")
    return over(net, setting, lambda _, batch: loss_of(model, batch))


def compiled_in_place(setting: Setting) -> nn.Module:
    net = setting.net()
    net.compile(backend="aot_eager")
    return over(net, setting)


def compiled_loss(setting: Setting) -> nn.Module:
    net = setting.net()
    loss = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
    return over(net, setting, loss)


# ---- MAML --------------------------------------------------------------------------------------------------------


def after_an_inner_step(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of half of a task, after a step of gradient descent on the other half."""
    half = len(batch[0]) // 2
    weights: dict[str, Tensor] = dict(model.named_parameters())
    inner = torch.nn.functional.cross_entropy(functional_call(model, weights, (batch[0][:half],)), batch[1][:half])
    gradients = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
    adapted = {name: w - 0.5 * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    logits = functional_call(model, adapted, (batch[0][half:],))
    return torch.nn.functional.cross_entropy(logits, batch[1][half:])


def maml(setting: Setting) -> nn.Module:
    return over(setting.net(), setting, after_an_inner_step)


LORA = Loop(lora, model=adapted, clip=hugging_face.CLIP, scheduled=True, accumulate=2)
QUANTISED = Loop(quantised, model=fake_quantised, dtype=torch.float32)
COMPILED_MODEL = Loop(compiled_model)
COMPILED_IN_PLACE = Loop(compiled_in_place)
COMPILED_LOSS = Loop(compiled_loss)
MAML = Loop(maml, loss=after_an_inner_step)
