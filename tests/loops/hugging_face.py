"""Hugging Face's Trainer: accelerate's backward, accumulation, clipping, schedule, over any torch module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import EXAMPLES, STEPS, Loop, Setting, halving, loss_of

CLIP = 0.5


class WithLoss(nn.Module):
    """What the Trainer trains: a module that is given the targets and returns a loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": loss_of(self.net, (x, y))}


class SAMTrainer(Trainer):
    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
        plain = super().training_step
        optimizer: OptimizerWrapper = self.optimizer.optimizer  # type: ignore[union-attr]  # ours is inside of accelerate's
        return optimizer.backward(lambda: plain(model, inputs, *args))


def arguments(setting: Setting, **changes: Any) -> TrainingArguments:
    given: dict[str, Any] = {
        "per_device_train_batch_size": EXAMPLES,
        "gradient_accumulation_steps": setting.accumulate,
        "max_grad_norm": CLIP,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
    }
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 99}
    return TrainingArguments(str(setting.folder), **(given | quiet | changes))


def train_module(setting: Setting, model: nn.Module) -> None:
    optimizer: Optimizer = setting.optimizer(model)
    kind = SAMTrainer if isinstance(optimizer, OptimizerWrapper) else Trainer
    examples = [{"x": x, "y": y} for inputs, targets in setting.batches() for x, y in zip(inputs, targets, strict=True)]
    kind(
        WithLoss(model), arguments(setting), train_dataset=examples, optimizers=(optimizer, halving(optimizer))
    ).train()


def train(setting: Setting) -> nn.Module:
    model = setting.net()
    train_module(setting, model)
    return model


TRAINER = Loop(train, clip=CLIP, scheduled=True, accumulate=2)
