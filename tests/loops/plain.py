"""A loop of one's own: one closure a step."""

from __future__ import annotations

from torch import Tensor, nn

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import Loop, Setting, halving, loss_of


def train(setting: Setting) -> nn.Module:
    model = setting.net()
    optimizer = setting.optimizer(model)
    scheduler = halving(optimizer)
    for batch in setting.batches():

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(optimizer, OptimizerWrapper):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        scheduler.step()
    return model


PLAIN = Loop(train, scheduled=True)
