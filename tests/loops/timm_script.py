"""timm's train_one_epoch: its accumulation, clipping and schedule, as with `loss.backward()` (no scaler)."""

from __future__ import annotations

from timm.utils import dispatch_clip_grad  # type: ignore[attr-defined]
from torch import Tensor, nn

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import Batch, Loop, Setting, halving, loss_of

CLIP = 0.5


def train(setting: Setting) -> nn.Module:
    model = setting.net()
    optimizer = setting.optimizer(model)
    scheduler = halving(optimizer)
    for batch_idx, batch in enumerate(setting.batches()):
        need_update = (batch_idx + 1) % setting.accumulate == 0

        def forward(batch: Batch = batch) -> Tensor:
            return loss_of(model, batch) / setting.accumulate

        def backward(loss: Tensor) -> Tensor:
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(optimizer, OptimizerWrapper):
            optimizer.backward(lambda forward=forward, backward=backward: backward(forward()))
        else:
            backward(forward())
        if need_update:
            dispatch_clip_grad(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return model


TIMM = Loop(train, clip=CLIP, scheduled=True, accumulate=2)
