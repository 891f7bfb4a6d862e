"""skorch: its optimizer is made of parameters, and steps with a closure already."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNet
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset

from .harness import EXAMPLES, Loop, Setting

CLIP = 0.5


class Data(Dataset[tuple[Tensor, Tensor]]):
    """All examples, as skorch takes them."""

    def __init__(self, setting: Setting) -> None:
        self.examples = [pair for x, y in setting.batches() for pair in zip(x, y, strict=True)]

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.examples[number]


def train(setting: Setting, kind: Any = NeuralNet) -> nn.Module:
    model = setting.net()
    net = kind(
        model,
        criterion=nn.CrossEntropyLoss,
        optimizer=lambda groups, **kwargs: setting.optimizer(model),
        batch_size=EXAMPLES,
        max_epochs=1,
        train_split=None,
        verbose=0,
        callbacks=[GradientNormClipping(CLIP), LRScheduler("LambdaLR", lr_lambda=lambda n: 0.5**n, step_every="batch")],
    )
    net.fit(Data(setting))
    return model


SKORCH = Loop(train, clip=CLIP, scheduled=True)
