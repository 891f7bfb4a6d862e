"""accelerate: a loop with a closure, and one that accumulates."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from bench.optim.base.wrapper import OptimizerWrapper

from .harness import Batch, Loop, Setting, halving, loss_of

CLIP = 0.5


def accelerator(setting: Setting) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)  # they are one for the whole process
    GradientState._reset_state()
    return Accelerator(cpu=True, gradient_accumulation_steps=setting.accumulate)


def with_a_closure(setting: Setting) -> nn.Module:
    accelerate = accelerator(setting)
    net = setting.net()
    plain = setting.optimizer(net)
    model, optimizer, scheduler = accelerate.prepare(net, plain, halving(plain))
    for batch in setting.batches():

        def closure(batch: Batch = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            accelerate.backward(loss)
            return loss

        if isinstance(plain, OptimizerWrapper):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        scheduler.step()
    return net


def accumulating(setting: Setting) -> nn.Module:
    accelerate = accelerator(setting)
    net = setting.net()
    plain = setting.optimizer(net)
    model, optimizer, scheduler = accelerate.prepare(net, plain, halving(plain))
    for batch in setting.batches():
        with accelerate.accumulate(model):

            def closure(batch: Batch = batch) -> Tensor:
                loss = loss_of(model, batch)
                accelerate.backward(loss)
                return loss

            if isinstance(plain, OptimizerWrapper):
                optimizer.optimizer.backward(closure)
            else:
                closure()
            if accelerate.sync_gradients:
                accelerate.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return net


CLOSURE = Loop(with_a_closure, scheduled=True)
ACCUMULATING = Loop(accumulating, clip=CLIP, scheduled=True, accumulate=2)
