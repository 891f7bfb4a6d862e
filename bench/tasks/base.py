"""The interface of a task, and the protocol's treatment of every task's data."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.core.errors import BenchError
from bench.core.seeding import numpy_stream
from bench.core.spec import DataSettings
from bench.data.augment import on_device
from bench.data.packing import Documents, pack
from bench.data.splits import Phase, Split, held_out, sample, strata, stratified_order
from bench.data.tokens import Texts, Tokens
from bench.data.tokens import fingerprint as fingerprint_of_texts

Encode = Callable[[Texts], Tokens | Documents]


@dataclass(frozen=True)
class Metric:
    """A task's score beside the loss.

    Attributes:
        key: column name in records.csv ("acc" makes train_acc, val_acc, test_acc, gap_acc).
        scale: factor from stored value to shown value (100 for per cent).
        definition: what it is, in words, for captions.
        lowest, highest: the values between which it lies, as stored; None where there is no end. Intervals end there.
    """

    key: str
    name: str
    unit: str
    scale: float
    higher_is_better: bool
    definition: str
    lowest: float | None = None
    highest: float | None = None


ACCURACY = Metric(
    "acc", "accuracy", "%", 100.0, True, "share of examples whose largest logit is that of the label", 0.0, 1.0
)


@dataclass(frozen=True)
class Suite:
    """A benchmark that a task belongs to, and how many tasks it has; tables average over those that ran."""

    name: str
    tasks: int


class Task(ABC):
    """A data set and how to score a model on it. Subclass it, give `load`, and register it under a name.

    Keyword-only arguments of `__init__` are the task's settings in an experiment file.

    A task of a user's own files has a setting `path`, relative to the experiment file, and a class method `files(path)`
    that lists what it reads from there: their content, and not where they are, is then part of a run's identity.

    A task that is of texts or not, as its settings say, has a class method `is_text(params)`.

    Attributes:
        num_outputs: size of the model's output (classes; 1 for regression; 0 where it is the model's vocabulary).
        input_shape: shape of one example as the model sees it; () for texts.
        metric: the score beside the loss.
        memory_format: how weights and activations of images lie in memory; it is for speed alone.
        text: whether `load` gives `Texts`, for models that read text.
        max_length: tokens a text, or a pair of texts, is cut to.
        block: for models that predict the next token: the texts that `load` gives are documents, which are shared out
            to training, validation and test as examples are, and then packed, of each of the three by itself, to
            examples of so many tokens (see `bench.data.packing.pack`). None: every text is an example.
        multi_label: whether an example may have several labels: targets are (N, num_outputs) floats of 0 and 1.
        others: names of further test sets, beside the one that `load` gives; see `load_others`.
        title: what tables call it; "" for the name it is registered under.
        note: a sentence that belongs under every table of its results.
        loss_name: what `losses` are, with their unit.
        reported: what tables by task show: columns of records.csv with their names; {} for the test metric.
        suite: the benchmark it belongs to.
    """

    num_outputs: int
    input_shape: tuple[int, ...]
    metric: Metric = ACCURACY
    memory_format: torch.memory_format = torch.contiguous_format
    text: bool = False
    max_length: int = 128
    block: int | None = None
    multi_label: bool = False
    others: tuple[str, ...] = ()
    title: str = ""
    note: str = ""
    loss_name: str = "cross-entropy (nats)"
    reported: Mapping[str, str] = MappingProxyType({})
    suite: Suite | None = None

    def fetch(self) -> None:  # noqa: B027 - most tasks have nothing to fetch
        """Ensure that the data are on this machine, downloading them if necessary; called once, before any run starts.

        Raises:
            BenchError: the data are missing and cannot be obtained; the message says which file to put where.
        """

    @abstractmethod
    def load(self) -> tuple[Split, Split]:
        """Return the whole training set and the test set, on the CPU, always in the same order, without downloading."""

    def load_others(self) -> dict[str, Split]:
        """Return the further test sets by name, in the form that `load` gives the test set."""
        return {}

    def train_examples(self) -> int:
        """Return the size of the training set, validation included; override this where loading is slow."""
        return len(self.load()[0])

    def blocks_of(self, examples: int) -> int:
        """Return about how many examples a run has that trains on so many of `load`'s: more, where `block` packs."""
        return examples

    def verified(self) -> bool:
        """Return whether the data are the publisher's, by checksum or because they came inside a package."""
        return True

    def model_inputs(self, inputs: Tensor) -> Tensor:
        """Return the model's inputs for a batch of raw inputs."""
        return inputs

    def draw(self, count: int, random: np.random.RandomState) -> tuple[Any, ...]:
        """Return the random numbers that `augmented` takes for a batch of `count` examples. Default: none.

        Arrays become tensors on the device, those of many batches in one transfer; anything else is handed on as it is.

        Args:
            random: the epoch's random stream of augmentation, on the host, so that every device gets the same draws.
        """
        return ()

    def augmented(self, inputs: Tensor, targets: Tensor, drawn: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        """Return the model's inputs and targets for a raw batch in training, augmented by what `draw` has drawn for it.

        Args:
            drawn: what `draw` returned, its arrays as tensors on the device of `inputs`.
        """
        return self.model_inputs(inputs), targets

    def training_batch(self, inputs: Tensor, targets: Tensor, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
        """Return the model's inputs and targets for a raw batch in training, augmented if the task augments.

        A subclass may override this method alone, and draw where it augments: its numbers are then drawn, and moved to
        the device, in every step. Those of `draw` are drawn for many steps ahead.

        Args:
            random: the epoch's random stream of augmentation, on the host, so that every device gets the same draws.
        """
        (drawn,) = on_device([self.draw(len(inputs), random)], inputs.device)
        return self.augmented(inputs, targets, drawn)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each example, shape (N,), from outputs (N, num_outputs). Default: cross-entropy in nats.

        Args:
            targets: (N,) class numbers; or, where `training_batch` mixes labels, (N, num_outputs) probabilities.
        """
        return F.cross_entropy(outputs, targets, reduction="none")

    def kept(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what an evaluation keeps of a batch's outputs, for `losses` and `score`. Default: all.

        A task whose outputs fill the memory keeps less of them: `text_lm` each token's loss.
        """
        return outputs

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the metric over a whole split. Default: accuracy, a fraction."""
        # The mean is taken in double precision: single precision cannot count a large split exactly.
        return (outputs.argmax(dim=1) == targets).double().mean().item()

    def details(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return further scores of a whole split, by key, recorded as val_<key>, test_<key> and so on.

        No choice is made by these scores.
        """
        return {}


@dataclass(frozen=True)
class Data:
    """The data that a run trains and is evaluated on.

    Attributes:
        val: empty where it is trained on.
        test: empty where it must not be looked at, and then there are no `others` either.
    """

    train: Split
    val: Split
    test: Split
    fingerprint: str
    """sha256 over what the task loaded, so that two runs can be seen to have had the same data."""
    verified: bool = True
    """Whether it is what its publisher gave out (see `Task.verified`)."""
    others: Mapping[str, Split] = field(default_factory=dict)
    """Further test sets."""

    def splits(self) -> dict[str, Split]:
        """Return all existing splits by name, the test sets last."""
        named = {"train": self.train, "val": self.val, "test": self.test, **self.others}
        # An empty split must not be evaluated: validation in a refit, the test sets in tuning.
        return {name: split for name, split in named.items() if len(split)}

    def to(self, device: torch.device) -> Data:
        others = {name: split.to(device) for name, split in self.others.items()}
        train, val, test = (split.to(device) for split in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test, others=others)


def prepare_data(
    task: Task, settings: DataSettings, seed: int, encode: Encode | None = None, phase: Phase = None
) -> Data:
    """Load a task and apply the protocol: hold out validation, replace training labels.

    Which examples are validation is the same for all seeds, but in tuning belongs to the seed (see
    `bench.data.splits.held_out`); the replaced labels belong to the seed. No test example is ever in the other two.

    Args:
        encode: what makes tokens of texts, for tasks of text; `Documents` for a task with a `block`.
        phase: of the run (see `RunSpec`): "tune" leaves the test sets out, "refit" trains on validation too, whose
            labels are then replaced as those of other training examples are.

    Raises:
        BenchError: the task's data does not fit the settings.
    """
    # 1. Load everything, and choose the validation examples, by the labels as they were published.
    full, test = task.load()
    others = task.load_others()
    learned, validation = map(torch.from_numpy, held_out(full.targets, settings, seed, phase))
    # The hash is of the raw data, so that it is the same for every model's tokenizer.
    loaded = (full, test, *others.values())
    digest = _fingerprint(loaded)
    # 2. Texts become tokens.
    if encode is not None:
        full, test, *more = (_encoded(split, encode) for split in loaded)
        others = dict(zip(others, more, strict=True))
    # 3. A refit trains on the validation examples too: they come last, and an empty split stays in their place.
    if phase == "refit":
        learned, validation = torch.cat([learned, validation]), validation[:0]
    # Tuning gets no test example, so nothing that is chosen can depend on one.
    if phase == "tune":
        test, others = test[torch.arange(0)], {}
    # 4. Labels are replaced after the split and in training alone: validation and test keep the true ones.
    train = replace_labels(full[learned], task, settings.label_noise, seed)
    data = Data(train, full[validation], test, digest, task.verified(), others)
    # 5. Documents become blocks last, so that no block has tokens of two splits.
    return data if task.block is None or encode is None else _packed(data, task.block)


def sampled(train: Split, size: int | Literal["all"]) -> Split:
    """Return those of the training examples that are evaluated in the course of training: see `splits.sample`."""
    if size == "all" or len(train) <= size:
        return train
    # The draw is made on the host, so that every device evaluates the same examples.
    noisy = None if train.noisy is None else train.noisy.cpu()
    chosen = torch.from_numpy(sample(train.targets.cpu(), noisy, size))
    return train[chosen.to(train.targets.device)]


def _encoded(split: Split, encode: Encode) -> Split:
    tokens = encode(split.inputs)
    if isinstance(tokens, Documents):
        return replace(split, inputs=tokens)
    return replace(split, inputs=tokens.ids, lengths=tokens.lengths)


def _packed(data: Data, block: int) -> Data:
    """Return the same data as blocks: inputs (N, 1, W) int32, targets (N, W) int64.

    Raises:
        BenchError: the documents of a split have no whole block.
    """
    splits = {}
    for name, split in data.splits().items():
        inputs, targets = pack(split.inputs, block)
        if not len(inputs):
            count = sum(map(len, split.inputs.tokens))
            raise BenchError(
                f"the {name} set has {len(split)} of the documents, {count} tokens in all: fewer than one block "
                f"(task.block = {block}, and one token to predict); take a smaller block, more text, or more of the "
                'documents for it (data.validation for "val", task.test for "test")'
            )
        splits[name] = Split(inputs, targets, None, np.full(len(inputs), block, np.int32))
    empty = splits["train"][torch.arange(0)]
    train, val, test = (splits.pop(name, empty) for name in ("train", "val", "test"))
    return replace(data, train=train, val=val, test=test, others=splits)


def replace_labels(split: Split, task: Task, share: float, seed: int) -> Split:
    """Give exactly round(share * N) examples a wrong label, uniform over the other classes (symmetric noise).

    Every class gives the same share of them.
    """
    check_label_noise(task, share)
    if share == 0:
        return split
    if split.targets.ndim != 1:
        raise BenchError("data.label_noise needs one class per example; targets of this task have several axes")
    # A stream of its own: with noise or without, the other random numbers of a run are the same.
    random = numpy_stream(seed, "noise")
    order, _ = stratified_order(strata(split.targets), random)
    chosen = torch.from_numpy(order[: round(share * len(split))])
    # A shift of at least 1 and at most classes - 1 never leads back to the true class.
    shift = torch.from_numpy(random.randint(1, task.num_outputs, size=len(chosen)))
    targets = split.targets.clone()
    targets[chosen] = (targets[chosen] + shift) % task.num_outputs
    noisy = torch.zeros(len(split), dtype=torch.bool)
    noisy[chosen] = True
    return replace(split, targets=targets, noisy=noisy)


def check_label_noise(task: Task, share: float) -> None:
    """Raise BenchError if there are no classes to draw a wrong one from."""
    if share and (task.num_outputs < 2 or task.multi_label):
        kind = "several labels each" if task.multi_label else "numbers or tokens"
        raise BenchError(f"data.label_noise needs a task with classes; this one predicts {kind}")


def fingerprint(task: Task) -> str:
    """Return the sha256 over all that a task loads."""
    return _fingerprint((*task.load(), *task.load_others().values()))


def _fingerprint(loaded: Iterable[Split]) -> str:
    digest = hashlib.sha256()
    for part in itertools.chain.from_iterable((split.inputs, split.targets) for split in loaded):
        if isinstance(part, Texts):
            digest.update(fingerprint_of_texts(part))
            continue
        # Type and shape are hashed too: the same bytes could be other data.
        array: np.ndarray[Any, Any] = part.contiguous().numpy()
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    # 64 bits are enough to tell data sets apart, and short enough for a table.
    return digest.hexdigest()[:16]
