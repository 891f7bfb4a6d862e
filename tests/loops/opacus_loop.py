"""Opacus: gradients of single examples, clipped and with noise, made by a base of its own."""

from __future__ import annotations

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from .changed_models import over
from .harness import CLASSES, EXAMPLES, FEATURES, Loop, Setting


def private_net(setting: Setting) -> nn.Module:
    """Without batch norm, which mixes examples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Dropout(setting.dropout), nn.Linear(12, CLASSES))
    model: nn.Module = GradSampleModule(net.to(setting.dtype))
    return model


def private(setting: Setting) -> Setting:
    def base(parameters: list[nn.Parameter]) -> DPOptimizer:
        made = setting.base(parameters)
        if callable(train := getattr(made, "train", None)):
            train()  # DPOptimizer has none
        return DPOptimizer(made, noise_multiplier=0.0, max_grad_norm=1e9, expected_batch_size=EXAMPLES)

    return Setting(base, setting.method, setting.accumulate, setting.dropout, setting.dtype, setting.folder)


def train(setting: Setting) -> nn.Module:
    return over(private_net(setting), private(setting))


OPACUS = Loop(train, model=private_net)
