"""Micro-batches over two processes, of which only the last of a step is averaged: what accumulating loops do.

What is done here by two real processes (`cases`), and by one that has the data of both, by hand (`alone`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW, Optimizer

from bench.core.process_group import ProcessGroup
from bench.core.registry import optimizers
from bench.optim.sam import SAM

STEPS, MICRO_BATCHES, EXAMPLES = 5, 4, 8
METHODS = ("sam", "asam", "esam", "momentum-sam", "random-direction", "ema", "swa")
REFUSED = ("gsam", "looksam", "friendly-sam", "wsam", "ae-sam", "sampa")


def data() -> tuple[Tensor, Tensor]:
    """Inputs (step, micro-batch, process, example, feature), and targets."""
    random = torch.Generator().manual_seed(0)
    shape = (STEPS, MICRO_BATCHES, 2, EXAMPLES)
    return torch.randn(*shape, 5, generator=random, dtype=torch.float64), torch.randint(3, shape, generator=random)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def build(name: str, model: nn.Module, rho: float) -> Any:
    base = SGD(model.parameters(), lr=0.3, momentum=0.9)
    if name == "sgd":
        return base
    entry = optimizers[name]
    known = {"rho": rho} | ({"gamma": 1.0, "beta": 1.0} if name == "esam" else {})
    optimizer = entry.build(base, model, **{key: known[key] for key in known if key in entry.schema.model_fields})
    optimizer.total_steps = STEPS
    return optimizer


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def with_ddp(
    group: ProcessGroup, name: str, rho: float = 0.2, *, buckets: bool = False, every: bool = False, zero: bool = False
) -> Tensor:
    """A loop with `no_sync` in all micro-batches of a step but the last; the weights in the end.

    Args:
        buckets: gradients are views of the memory that is sent.
        every: all micro-batches are averaged, without `no_sync`.
        zero: the closure zeroes gradients, though it need not.
    """
    model = network()
    ddp = DistributedDataParallel(model, gradient_as_bucket_view=buckets)
    optimizer = build(name, model, rho)
    inputs, targets = data()
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(MICRO_BATCHES):
            x, y = inputs[step, micro, group.rank], targets[step, micro, group.rank]
            last = every or micro == MICRO_BATCHES - 1

            def closure(*examples: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                if zero:
                    optimizer.zero_grad()
                losses = F.cross_entropy(ddp(x), y, reduction="none") / MICRO_BATCHES
                if getattr(optimizer, "takes_losses", False):
                    return losses
                loss = losses.mean()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            with nullcontext() if last else ddp.no_sync():
                closure() if name == "sgd" else optimizer.backward(closure)
        optimizer.step()
    return flat(model)


def closures_in_parts(group: ProcessGroup) -> Tensor:
    """`step` with a list of closures, all but the last of them under `no_sync`."""
    model = network()
    ddp = DistributedDataParallel(model)
    optimizer = build("sam", model, 0.2)
    inputs, targets = data()
    for step in range(STEPS):

        def part(micro: int, step: int = step) -> Callable[[], Tensor]:
            def closure() -> Tensor:
                optimizer.zero_grad()
                with ddp.no_sync() if micro < MICRO_BATCHES - 1 else nullcontext():
                    loss = F.cross_entropy(ddp(inputs[step, micro, group.rank]), targets[step, micro, group.rank])
                    loss.backward()  # type: ignore[no-untyped-call]
                return loss

            return closure

        optimizer.step([part(micro) for micro in range(MICRO_BATCHES)])
    return flat(model)


def alone(rho: float = 0.2, adaptive: bool = False) -> Tensor:
    """The same weights by hand in one process: a perturbation for each process's micro-batch, one for the last ones."""
    model = network()
    base = SGD(model.parameters(), lr=0.3, momentum=0.9)
    inputs, targets = data()
    for x, y in zip(inputs, targets, strict=True):
        base.zero_grad()
        batches = [(x[micro, rank], y[micro, rank], 0.5) for micro in range(MICRO_BATCHES - 1) for rank in range(2)]
        batches.append((x[-1].reshape(-1, 5), y[-1].reshape(-1), 1.0))
        for inputs_here, targets_here, weight in batches:
            add_gradient_of_sam(model, partial(_loss, model, inputs_here, targets_here), weight, rho, adaptive)
        base.step()
    return flat(model)


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def add_gradient_of_sam(
    model: nn.Module, loss: Callable[[], Tensor], weight: float, rho: float, adaptive: bool
) -> None:
    """By the formula, with plain tensors; averaged over the micro-batches."""
    parameters = list(model.parameters())
    before = [p.detach().clone() for p in parameters]
    gradient = torch.autograd.grad(loss(), parameters)
    scale = [p.abs() + 0.01 if adaptive else torch.ones_like(p) for p in before]
    norm = torch.cat([(t * g).reshape(-1) for t, g in zip(scale, gradient, strict=True)]).norm()
    with torch.no_grad():
        for p, t, g in zip(parameters, scale, gradient, strict=True):
            p.add_(rho * t * t * g / norm)
    gradient = torch.autograd.grad(loss(), parameters)
    with torch.no_grad():
        for p, own, g in zip(parameters, before, gradient, strict=True):
            p.copy_(own)
            earlier = torch.zeros_like(g) if p.grad is None else p.grad
            p.grad = earlier + weight / MICRO_BATCHES * g


def refused(group: ProcessGroup, name: str) -> str:
    """What a method says that cannot do it."""
    try:
        with_ddp(group, name)
    except RuntimeError as error:
        return str(error)
    return ""


# ---- accelerate and Hugging Face's Trainer -----------------------------------------------------------------------


def with_accelerate(group: ProcessGroup, optimizer_of: Callable[[nn.Module], Optimizer]) -> dict[str, Any]:
    """`accelerator.accumulate()` with its defaults; the weights, and what `step(closure)` says after it."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    model = network()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=MICRO_BATCHES)
    prepared, optimizer = accelerator.prepare(model, optimizer_of(model))

    def closure_of(x: Tensor, y: Tensor) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            loss = F.cross_entropy(prepared(x), y)
            accelerator.backward(loss)
            return loss

        return closure

    inputs, targets = (part.flatten(0, 1)[:, group.rank] for part in data())
    closures = [closure_of(*micro_batch) for micro_batch in zip(inputs, targets, strict=True)]
    for closure in closures:
        with accelerator.accumulate(prepared):
            closure() if isinstance(optimizer.optimizer, SGD) else optimizer.optimizer.backward(closure)
            optimizer.step()
            optimizer.zero_grad()
    weights, said = flat(model), ""
    if not isinstance(optimizer.optimizer, SGD):
        try:
            for closure in closures[:MICRO_BATCHES]:
                with accelerator.accumulate(prepared):
                    optimizer.step(closure)
        except RuntimeError as error:
            said = str(error)
    AcceleratorState._reset_state()
    GradientState._reset_state()
    return {"weights": weights, "said": said, "wrapped": type(prepared).__name__}


def with_trainer(rho: float | None) -> dict[str, Any]:
    """Hugging Face's Trainer with gradient accumulation and its defaults; rho None: AdamW alone."""
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    class SAMTrainer(Trainer):
        def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any) -> Tensor:
            plain = super().training_step
            optimizer: Any = self.optimizer
            return optimizer.optimizer.backward(lambda: plain(model, inputs, *args))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = BertForSequenceClassification(config)
    examples: Any = [{"input_ids": [n % 50, n % 7, n % 3], "labels": n % 2} for n in range(64)]
    base = AdamW(model.parameters(), lr=1e-3)
    optimizer = base if rho is None else SAM(base, rho=rho, model=model)
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        arguments = TrainingArguments(
            folder, max_steps=3, gradient_accumulation_steps=4, use_cpu=True, ddp_backend="gloo", **settings
        )
        kind = Trainer if rho is None else SAMTrainer
        trainer = kind(model, arguments, train_dataset=examples, optimizers=(optimizer, None))
        trainer.train()
    return {"weights": flat(model), "processes": arguments.world_size, "wrapped": type(trainer.model_wrapped).__name__}


def cases(group: ProcessGroup) -> Iterator[tuple[str, Any]]:
    """Each case by its name, with what it found."""
    for name in METHODS:
        yield f"no_sync, {name}", with_ddp(group, name)
        yield f"no_sync, {name}, vanishing", with_ddp(group, name, 1e-9)
    yield "no_sync, sgd", with_ddp(group, "sgd")
    yield "no_sync, sam, zeroing", with_ddp(group, "sam", zero=True)
    for every in (False, True):
        for buckets in (False, True):
            yield f"every {every}, buckets {buckets}", with_ddp(group, "sam", buckets=buckets, every=every)
    yield "closures in parts", closures_in_parts(group)
    for name in REFUSED:
        yield f"refused, {name}", refused(group, name)
        yield f"averaged, {name}", with_ddp(group, name, every=True)
    yield "accelerate, sgd", with_accelerate(group, lambda model: SGD(model.parameters(), lr=0.3, momentum=0.9))
    yield "accelerate, sam", with_accelerate(group, lambda model: build("sam", model, 1e-9))
    yield "trainer, adamw", with_trainer(None)
    yield "trainer, vanishing", with_trainer(1e-9)
    yield "trainer, sam", with_trainer(0.05)
