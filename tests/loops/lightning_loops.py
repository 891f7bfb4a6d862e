"""Lightning: automatic optimization, manual optimization, and Fabric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import Batch, Loop, Setting, halving, loss_of

CLIP = 0.5


class Automatic(lightning.LightningModule):
    """The usual module. Logs once a step, the loss at w."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.net, self.setting = setting.net(), setting

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        loss = loss_of(self.net, batch)
        if getattr(self.trainer.optimizers[0], "first_pass", True):
            self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.setting.optimizer(self.net)
        return [optimizer], [{"scheduler": halving(optimizer), "interval": "step"}]


class Manual(Automatic):
    """Backward and step where one likes; here to accumulate."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            loss = loss_of(self.net, batch) / self.setting.accumulate
            self.manual_backward(loss)
            return loss

        if isinstance(optimizer, OptimizerWrapper):
            optimizer.backward(closure)
        else:
            closure()
        if (batch_idx + 1) % self.setting.accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()  # type: ignore[union-attr]


def fit(module: lightning.LightningModule, setting: Setting, **changes: Any) -> lightning.Trainer:
    given: dict[str, Any] = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "default_root_dir": setting.folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(**(given | changes))
    trainer.fit(module, DataLoader(setting.batches(), batch_size=None))  # type: ignore[arg-type]
    return trainer


def automatic(setting: Setting) -> nn.Module:
    module = Automatic(setting)
    fit(module, setting, gradient_clip_val=CLIP)
    return module.net


def manual(setting: Setting) -> nn.Module:
    module = Manual(setting)
    fit(module, setting)
    return module.net


def with_fabric(setting: Setting) -> nn.Module:
    fabric = Fabric(accelerator="cpu", devices=1)
    net = setting.net()
    model, optimizer = fabric.setup(net, setting.optimizer(net))
    scheduler = halving(optimizer)
    for number, batch in enumerate(setting.batches()):

        def closure(batch: Batch = batch) -> Tensor:
            loss = loss_of(model, batch) / setting.accumulate
            fabric.backward(loss)
            return loss

        backward: Callable[[Callable[[], Tensor]], Any] = getattr(optimizer, "backward", lambda closure: closure())
        backward(closure)
        if (number + 1) % setting.accumulate == 0:
            fabric.clip_gradients(model, optimizer, max_norm=CLIP)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return net


AUTOMATIC = Loop(automatic, clip=CLIP, scheduled=True)
MANUAL = Loop(manual, scheduled=True, accumulate=2)
FABRIC = Loop(with_fabric, clip=CLIP, scheduled=True, accumulate=2)
