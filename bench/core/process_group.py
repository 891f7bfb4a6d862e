"""The processes of one run: rank and size, and the exchange of gradients and decisions.

Every process takes every step; only what differs between them is exchanged: gradients and losses of their parts of a
batch on the device's own channel, decisions and small things on one of the hosts (gloo), which waits for no GPU.

Gradients are averaged here by hand and not by torch's DistributedDataParallel, because a method decides when: SAM with
m averages once per step, after the gradients of all parts were added up. Models whose backward pass leaves parameters
out on some processes only are possible, too. The price: nothing is sent before the backward pass is over, while
DistributedDataParallel sends and computes at the same time.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bench.core.errors import BenchError

T = TypeVar("T")

BUCKET = 2**23
"""Numbers per exchange: few enough to need little extra memory, many enough for an efficient exchange."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process within the processes of its run; in a run of one process, nothing is exchanged.

    Attributes:
        rank: this process: 0 writes, evaluates and reports.
        size: how many there are.
        control: torch's process group of the hosts; None where there is one process.
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def mean_gradients(self, parameters: Iterable[nn.Parameter], *values: Tensor) -> list[Tensor]:
        """Replace every gradient by its mean over all processes; all must call this, with equally many values.

        Args:
            parameters: the same in the same order in every process. A gradient that is missing counts as zero, and
                stays missing where no process has it.
            values: scalars of which the means are wanted too.

        Returns:
            The means of the values: the very same bits in every process.
        """
        if self.size == 1:
            return list(values)
        parameters = [p for p in parameters if p.requires_grad]
        # All processes must send the same sizes: zeros stand for a gradient that is missing here.
        missing = [n for n, p in enumerate(parameters) if p.grad is None]
        for n in missing:
            parameters[n].grad = torch.zeros_like(parameters[n])
        gradients = [p.grad for p in parameters if p.grad is not None]
        # At least fp32, so that losses are not rounded to a half.
        dtype = gradients[0].dtype if gradients[0].dtype == torch.float64 else torch.float32
        head = torch.ones(len(values) + len(parameters), dtype=dtype, device=gradients[0].device)  # and who has which
        if values:
            head[: len(values)] = torch.stack([value.detach().to(head) for value in values])
        for n in missing:
            head[len(values) + n] = 0.0
        # In front of the gradients, so that it travels in their first bucket if their dtype is the same.
        self.mean_([head, *gradients])
        if missing:
            # The mean of the flags is 0: the gradient is missing in all processes, and must stay so.
            nobody = (head[len(values) :] == 0).tolist()
            for n in missing:
                parameters[n].grad = None if nobody[n] else parameters[n].grad
        return [mean.to(value.dtype) for mean, value in zip(head[: len(values)], values, strict=True)]

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over all processes; all must call this, with equally many tensors."""
        if self.size == 1:
            return
        sent = []
        # All buckets are on their way before the first is waited for.
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, on_its_way in sent:
            on_its_way.wait()
            flat.mul_(1 / self.size)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            torch._foreach_copy_(list(bucket), [part.view(t.shape) for part, t in zip(parts, bucket, strict=True)])

    def largest(self, word: int) -> int:
        """Return the largest of the processes' values: a decision that is the same in all of them."""
        if self.size == 1:
            return word
        # On the host: a stop or a checkpoint is decided without waiting for a GPU.
        said = torch.tensor([word])
        dist.all_reduce(said, dist.ReduceOp.MAX, group=self.control)
        return int(said)

    def from_first(self, value: T) -> T:
        """Return the first process's value; the others wait for that value as long as necessary."""
        if self.size == 1:
            return value
        sent = _packed(value)
        size = torch.tensor([len(sent)])
        # The others cannot know how much they will receive: the length goes first.
        dist.broadcast(size, src=0, group=self.control)
        if not self.is_first:
            sent = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(sent, src=0, group=self.control)
        return value if self.is_first else cast(T, _unpacked(sent))

    def gathered(self, value: T) -> list[T]:
        """Return the values of all processes, in the order of the processes."""
        if self.size == 1:
            return [value]
        sent = _packed(value)
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(sent)]), group=self.control)
        longest = max(map(int, sizes))
        # all_gather takes tensors of one size: shorter ones are padded, and cut below.
        parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(parts, nn.functional.pad(sent, (0, longest - len(sent))), group=self.control)
        return [cast(T, _unpacked(part[: int(size)])) for part, size in zip(parts, sizes, strict=True)]

    def check_alike(self, what: str, value: Callable[[], object]) -> None:
        """Raise BenchError in all processes if one has a different value than the first; skip this for one process."""
        if self.size == 1:
            return
        values = self.gathered(value())
        others = [str(rank) for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise BenchError(f"processes are out of sync: {what} of process {', '.join(others)} differ from process 0")


ALONE = ProcessGroup()


def _packed(value: object) -> Tensor:
    """Return tensors and plain values as bytes.

    torch's own functions for objects send pickles, which a forged message could have executed.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _unpacked(packed: Tensor) -> object:
    return torch.load(io.BytesIO(packed.numpy().tobytes()), weights_only=True)


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the tensors in order, in groups of one dtype and of at most `BUCKET` numbers or of one tensor."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not buckets or buckets[-1][0].dtype != tensor.dtype or tensor.numel() > room:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(tensor)
        room -= tensor.numel()
    return buckets
