"""Measuring a model on the splits: in eval mode, un-augmented, every example weighing the same."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data import batching
from bench.data.splits import Split
from bench.tasks.base import Data, Task
from bench.training.folding import folded

BATCH = {"cuda": 1024, "cpu": 128}
"""Examples per batch: many on a GPU, on a CPU only as many as its caches hold. Only rounding depends on it."""

TEXTS_ON_CPU = 16
"""Texts per batch on a CPU: activations of more texts do not fit its caches; 128 sentences took twice the time."""

TOKENS = {"cuda": 8192, "cpu": 2048}
"""Tokens per batch where each of them is predicted: at 50,000 logits per token, 1.6 GB on a GPU."""

FEWEST = 2000
"""Fewest examples for which folding pays: it costs as much as evaluating some hundreds of examples."""

ROUNDING = 1e-3
"""Largest difference, as a share of the largest output, that is taken for rounding."""

HALF_ROUNDING = 5e-2
"""The same in bf16, whose numbers have 8 bits: what is fused rounds less often, and elsewhere."""

CHECKED = 32
"""Examples on which the effect of folding, or of compiling, on outputs is measured."""

SAFETY = 16
"""Factor on that measured effect, as a bound for all examples of the split."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    data: Data,
    autocast: torch.autocast,
    train: Split | None = None,
    compiled: nn.Module | None = None,
) -> dict[str, float]:
    """Return loss (mean over examples, nats) and score on all splits, and the gaps between training and test.

    Training examples with true and with replaced labels are also measured apart, and the gap is taken from those with
    true labels: gap_loss = test_loss - train_clean_loss, gap_<score> = train_clean_<score> - test_<score> or, where a
    lower score is better, test - train: a positive gap is always one that is worse on the test set. The task's
    further scores are those of validation and of the test sets. Splits that the run does not have are left out.
    The signs of a model that has learned nothing are measured on validation and test: see `degeneracy`. Large splits go
    through a faster twin of the model where that changes no prediction: see `twin_of` and `outputs_with`.

    Args:
        train: the training examples that are measured; default all.
        compiled: the model's compiled twin, where it is trained through one.
    """
    was_training = model.training
    model.eval()
    splits = data.splits() | ({} if train is None else {"train": train})
    # Decided per split: the folded twin pays for large splits only, and is made once if any split uses it.
    twin, quick = twin_of(model, task, splits, autocast, compiled)
    key = task.metric.key
    measured: dict[str, float] = {}
    for name, split in splits.items():
        logits = outputs_with(twin if name in quick else None, model, task, split, autocast, fixed=compiled is not None)
        losses = task.losses(logits, split.targets)
        parts: dict[str, Tensor | slice] = {name: slice(None)}
        if name == "train":
            # Also where no label was replaced: the gaps below are taken from the clean part.
            parts["train_clean"] = slice(None) if split.noisy is None else ~split.noisy
            if split.noisy is not None:
                parts["train_noisy"] = split.noisy
        for part, which in parts.items():
            # fp64: a sum over very many examples would lose digits in fp32.
            measured[f"{part}_loss"] = losses[which].double().mean().item()
            measured[f"{part}_{key}"] = task.score(logits[which], split.targets[which])
        if name != "train":
            measured |= {f"{name}_{what}": score for what, score in task.details(logits, split.targets).items()}
        if name in ("val", "test"):
            degenerate = degeneracy(task, data.train.targets, logits, split.targets)
            measured |= {f"{name}_{what}": value for what, value in degenerate.items()}
    model.train(was_training)
    # A run that tunes has no test set, and so no gap.
    if len(data.test):
        measured["gap_loss"] = measured["test_loss"] - measured["train_clean_loss"]
        gap = measured[f"train_clean_{key}"] - measured[f"test_{key}"]
        measured[f"gap_{key}"] = gap if task.metric.higher_is_better else -gap
    return measured


def degeneracy(task: Task, learned: Tensor, outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the numbers that reveal a model which gives one answer to every example.

    constant: 1 if the answers to all examples are the same (one class; of numbers one number, to six digits), else 0.
    dummy_<score>: the score of the best constant answer of the training set, its most common class or its mean;
    left out where it is not finite, or where targets have several axes.

    Nothing is returned where all targets are the same, as they are of a single example: one answer is right there.

    Args:
        learned: (M,) targets of the training set.
        outputs: (N, num_outputs) of the model.
        targets: (N,) of the split.
    """
    if _all_alike(targets):
        return {}
    columns = outputs.shape[1] if outputs.ndim == 2 and targets.ndim == 1 else 0  # others have no best constant answer
    classes = columns > 1 and not targets.is_floating_point()
    numbers = {"constant": float(_all_alike(outputs.argmax(dim=1) if classes else outputs))}
    if classes:
        dummy = F.one_hot(learned.cpu().long().bincount().argmax(), columns).to(outputs)
    elif columns == 1 and targets.is_floating_point():
        dummy = learned.mean().to(outputs)[None]
    else:
        return numbers
    score = task.score(dummy.expand_as(outputs), targets)
    return {**numbers, f"dummy_{task.metric.key}": score} if math.isfinite(score) else numbers


def _all_alike(values: Tensor) -> bool:
    numbers = values.double()
    spread = numbers.amax(dim=0) - numbers.amin(dim=0)
    # Six digits, relative to the largest value; numbers of classes must be equal.
    return bool((spread <= 1e-6 * numbers.abs().amax(dim=0)).all())


def twin_of(
    model: nn.Module,
    task: Task,
    splits: Mapping[str, Split],
    autocast: torch.autocast,
    compiled: nn.Module | None,
) -> tuple[nn.Module | None, set[str]]:
    """Return what evaluates some splits faster than a model in eval mode, if anything does, and their names.

    Args:
        compiled: the model's compiled twin, where it is trained through one.
    """
    if compiled is not None:  # which fuses batch norm by itself
        return compiled, {name for name, split in splits.items() if compilable(task, split)}
    names = {name for name, split in splits.items() if foldable(task, split, autocast)}
    return folded(model) if names else None, names


def foldable(task: Task, split: Split, autocast: torch.autocast) -> bool:
    """Return whether a split is evaluated with batch norm folded, where the model allows it.

    That is on a CPU, in full precision, for a score that is the share of right classes, from `FEWEST` examples on.
    """
    device = split.targets.device.type
    return device == "cpu" and not _is_half(autocast, device) and _is_large_and_of_classes(task, split)


def compilable(task: Task, split: Split) -> bool:
    """Return whether a split is evaluated by compiled code, where the model is compiled.

    That is for a score that is the share of right classes, from `FEWEST` examples on, of inputs of one shape.
    """
    return split.lengths is None and _is_large_and_of_classes(task, split)


def _is_large_and_of_classes(task: Task, split: Split) -> bool:
    classes = split.targets.ndim == 1 and not split.targets.is_floating_point() and task.num_outputs > 1
    return classes and type(task).score is Task.score and len(split) >= FEWEST


def _is_half(autocast: torch.autocast, device: str) -> bool:
    with autocast:
        return torch.is_autocast_enabled(device)


@torch.no_grad()
def outputs_with(
    twin: nn.Module | None,
    model: nn.Module,
    task: Task,
    split: Split,
    autocast: torch.autocast,
    *,
    fixed: bool = False,
) -> Tensor:
    """Return the outputs of a model's faster twin on all examples of a split, with the predictions of the model itself.

    `CHECKED` examples from all over the split are given to both. If they differ there by more than rounding, all
    outputs are the model's. Else they are the twin's, but for examples whose two highest classes lie so close that
    `SAFETY` times that difference, in either of them, could change their order: those are given to the model too, and
    its outputs count.

    In bf16 the difference is that of bf16 (`HALF_ROUNDING`), so that most examples would be close: there the twin's
    outputs count for all of them. The model has been trained through the same code.

    Args:
        twin: a folded or compiled model; None leaves all to the model.
        fixed: whether the twin takes batches of one size, as compiled code does.
    """
    if twin is None:
        return outputs(model, task, split, autocast)
    every = -(-len(split) // CHECKED)
    some = split[
        torch.arange(0, len(split), every, device=split.targets.device)
    ]  # files may be in the order of classes
    exact = outputs(model, task, some, autocast)
    apart = (outputs(twin, task, some, autocast, fixed=fixed) - exact).abs().max().item()
    half = _is_half(autocast, split.targets.device.type)
    if not apart <= (HALF_ROUNDING if half else ROUNDING) * exact.abs().max().item():  # nor where it is no number
        return outputs(model, task, split, autocast)
    logits = outputs(twin, task, split, autocast, fixed=fixed)
    if half:
        return logits
    highest = logits.topk(2, dim=1).values
    # 2 *: both classes may be off by SAFETY * apart. ~(a > b) and not a <= b: NaN has to count as close.
    close = (~(highest[:, 0] - highest[:, 1] > 2 * SAFETY * apart)).nonzero()[:, 0]
    if len(close):
        logits[close] = outputs(model, task, split[close], autocast)
    return logits


def batch_size(split: Split) -> int:
    """Return how many examples of a split are evaluated at a time."""
    kind = split.targets.device.type
    if split.lengths is not None and split.targets.ndim == 2:  # blocks, each token of which has logits of its own
        return max(1, TOKENS[kind] // split.targets.shape[1])
    return TEXTS_ON_CPU if kind == "cpu" and split.lengths is not None else BATCH[kind]


@torch.no_grad()
def outputs(model: nn.Module, task: Task, split: Split, autocast: torch.autocast, *, fixed: bool = False) -> Tensor:
    """Return the model's outputs (N, num_outputs), fp32, on all examples of a split, or what the task keeps of them.

    The caller sets eval mode.

    Args:
        fixed: whether the model gets batches of one size only, a smaller one filled up with its last example, and
            outputs are copied, since a CUDA graph would overwrite them; not for texts.
    """
    size = batch_size(split)
    with autocast:
        if fixed:
            return torch.cat([_fixed(model, task, inputs, size) for inputs in split.inputs.split(size)])
        if split.lengths is None:  # slices, where batches would copy
            parts = zip(split.inputs.split(size), torch.split(split.targets, size), strict=True)
            return torch.cat([_kept(model, task, *part) for part in parts])
        batches = batching.by_length(split, size)
        computed = torch.cat([_kept(model, task, *batch.of(split)) for batch in batches])
    # The batches were in the order of length: back to the order of the split.
    ordered = torch.empty_like(computed)
    ordered[torch.cat([batch.examples for batch in batches])] = computed
    return ordered


def _kept(model: nn.Module, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
    return task.kept(model(task.model_inputs(inputs)).float(), targets)


def _fixed(model: nn.Module, task: Task, inputs: Tensor, size: int) -> Tensor:
    """Return a copy of the model's outputs, fp32, on at most `size` inputs, given to it as `size` of them."""
    count = len(inputs)
    if count < size:
        inputs = inputs[torch.arange(size, device=inputs.device).clamp_(max=count - 1)]
    return model(task.model_inputs(inputs))[:count].to(torch.float32, copy=True)  # type: ignore[no-any-return]
