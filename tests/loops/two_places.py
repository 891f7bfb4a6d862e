"""A loop that has `loss.backward()` in one place and `optimizer.step()` in another, and clips between the two."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import Loop, Setting, halving, loss_of

CLIP = 0.5


def train(setting: Setting) -> nn.Module:
    model = setting.net()
    optimizer = setting.optimizer(model)
    scheduler = halving(optimizer)
    for number, batch in enumerate(setting.batches()):

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            loss = loss_of(model, batch) / setting.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(optimizer, OptimizerWrapper):
            optimizer.backward(closure)
        else:
            closure()
        if (number + 1) % setting.accumulate == 0:
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
    return model


TWO_PLACES = Loop(train, clip=CLIP, scheduled=True, accumulate=2)
