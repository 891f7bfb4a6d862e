"""Models of which each of two processes holds a part: FSDP2, FSDP1, tensor parallelism (see `stages` for pipelines).

Each case trains such a model and, in the same process, the same one whole; what it finds is how far they are apart.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from bench.core.errors import BenchError
from bench.core.process_group import ProcessGroup
from bench.optim.ae_sam import AESAM
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.ema import EMA
from bench.optim.esam import ESAM
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.functional_sam import FunctionalSAM
from bench.optim.gsam import GSAM
from bench.optim.le_sam import LESAM
from bench.optim.lion import lion
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.muon import muon
from bench.optim.nadamw import nadamw
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.sampa import SAMPa
from bench.optim.schedule_free import schedule_free_adamw, schedule_free_sgd
from bench.optim.soap import soap
from bench.optim.swa import SWA
from bench.optim.wsam import WSAM
from bench.optim.xsam import XSAM

STEPS, EXAMPLES = 12, 8
FEW = 6
"""Steps of what is shown of each method already, in another way to split it or with another setting."""
CLIP = 0.5
"""The largest norm of a gradient, above some of those of a training and below others."""

Make = Callable[..., Any]
METHODS: dict[str, Make] = {
    "sam": partial(SAM, rho=0.2),
    "asam": partial(SAM, rho=0.5, adaptive=True),
    "functional-sam": partial(FunctionalSAM, rho=0.2),
    "gsam": partial(GSAM, rho=0.2, alpha=0.3),
    "le-sam": partial(LESAM, rho=0.5, sigma=0.05, anneal_from=None),
    "looksam": partial(LookSAM, rho=0.2, k=3),
    "friendly-sam": partial(FriendlySAM, rho=0.2),
    "ae-sam": partial(AESAM, rho=0.2, total_steps=STEPS),
    "sampa": partial(SAMPa, rho=0.2),
    "wsam": partial(WSAM, rho=0.2, gamma=0.5),
    "esam": partial(ESAM, rho=0.2, gamma=1.0),
    "xsam": partial(XSAM, rho=0.2, rho_max=0.4, points=5, search_every=7),
    "momentum-sam": partial(MomentumSAM, rho=0.5),
    "random-direction": partial(RandomDirection, rho=0.5),
    "ema": partial(EMA, decay=0.8),
    "swa": partial(SWA, begin=0.5),
    "base": OptimizerWrapper,
}
NOT_IN_STAGES = {"esam", "xsam"}
VARIANTS: dict[str, Make] = {
    "asam on weights": partial(SAM, rho=0.5, adaptive=True, adaptive_on="weight"),
    "sam on norms": partial(SAM, rho=0.2, perturb_only="norm"),
    "sam with decay": partial(SAM, rho=0.2, ascent_decay=True),
    "friendly-sam of its authors": partial(FriendlySAM, rho=0.2, variant="authors"),
    "esam of its authors": partial(ESAM, rho=0.2, gamma=1.0, variant="authors"),
    "momentum-sam of its authors": partial(MomentumSAM, rho=0.5, variant="authors"),
}
BASES: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.3, momentum=0.9, weight_decay=1e-3),
    "adamw": partial(AdamW, lr=0.01),
    "adamw, fused": partial(AdamW, lr=0.01, fused=True),
    "nadamw": partial(nadamw, lr=0.01),
    "lion": partial(lion, lr=0.01),
    "muon": partial(muon, lr=0.02),
    "schedule-free-sgd": partial(schedule_free_sgd, lr=0.3),
    "schedule-free-adamw": partial(schedule_free_adamw, lr=0.01),
}
RIVALS = [name for name in BASES if not name.startswith(("sgd", "adamw"))]


class Net(nn.Module):
    """Words (example, word) to one of three classes; shapes that two processes cannot halve."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 6)
        self.down = nn.Linear(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.embedding(words)
        hidden = hidden + self.down(torch.tanh(self.up(self.norm(hidden))))
        logits: Tensor = self.head(whole(hidden).mean(1))
        return logits


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batches(steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(0)
    drawn = torch.randint(12, (steps, EXAMPLES, 6), generator=random)
    return [(words, words.sum(1) % 3) for words in drawn]


@dataclass
class Way:
    """A way to split a model.

    Attributes:
        split: of a model, its twin of which this process holds a part.
        share: of a batch, what this process has.
        group: the processes among which it is split, where the optimizer has to be told.
    """

    split: Callable[[Net], nn.Module]
    share: Callable[[Tensor], Tensor] = lambda batch: batch
    group: Any = None
    options: dict[str, Any] = field(default_factory=dict)


def half(rank: int) -> Callable[[Tensor], Tensor]:
    return lambda batch: batch[rank * EXAMPLES // 2 : (rank + 1) * EXAMPLES // 2]


def fsdp(mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None) -> Callable[[Net], nn.Module]:
    def split(model: Net) -> nn.Module:
        settings: dict[str, Any] = {} if policy is None else {"mp_policy": policy}
        fully_shard(model.up, mesh=mesh, **settings)
        fully_shard(model, mesh=mesh, **settings)
        return model

    return split


def tensor_parallel(mesh: DeviceMesh) -> Callable[[Net], nn.Module]:
    """With gradients that are whole, in sums to come, and in parts; and a head that is no DTensor."""

    def split(model: Net) -> nn.Module:
        plan: dict[str, Any] = {
            "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate(), use_local_output=False),
            "norm": SequenceParallel(use_local_output=False),
            "up": ColwiseParallel(input_layouts=Shard(1)),
            "down": RowwiseParallel(output_layouts=Replicate(), use_local_output=False),
        }
        return parallelize_module(model, mesh, plan)

    return split


def ways(group: ProcessGroup) -> dict[str, Way]:
    line, plane = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
    replicas = init_device_mesh("cpu", (2, 1), mesh_dim_names=("replica", "shard"))

    def both(model: Net) -> nn.Module:
        return fsdp(plane["data"])(tensor_parallel(plane["tensor"])(model))  # type: ignore[arg-type]

    return {
        "fsdp": Way(fsdp(line), half(group.rank)),
        "tensor parallel": Way(tensor_parallel(line)),
        "tensor parallel and fsdp": Way(both),
        "replicated fsdp": Way(fsdp(replicas), half(group.rank)),
    }


# ---- training -----------------------------------------------------------------------------------------------


def closure_of(model: nn.Module, optimizer: Any, words: Tensor, classes: Tensor) -> Callable[..., Tensor]:
    def losses(examples: Any = slice(None)) -> Tensor:
        outputs = model(words[examples]).to(torch.float64)
        if getattr(optimizer, "takes_logits", False):
            outputs = optimizer.logits(outputs)
        return F.cross_entropy(outputs, classes[examples], reduction="none")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return losses if optimizer.takes_losses else closure


def built(model: nn.Module, make: Make, base: str = "sgd", **settings: Any) -> Any:
    optimizer = make(BASES[base](model.parameters()), model=model, **settings)
    optimizer.total_steps = STEPS
    optimizer.seed = 7
    if callable(begin := getattr(optimizer, "train", None)):
        begin()  # schedule-free bases evaluate other weights than they train
    return optimizer


def train(
    model: nn.Module,
    optimizer: Any,
    some: Sequence[tuple[Tensor, Tensor]],
    share: Callable[[Tensor], Tensor] = lambda batch: batch,
) -> None:
    for words, classes in some:
        optimizer.step(closure_of(model, optimizer, share(words), share(classes)))
        with torch.no_grad():
            model(share(words))  # which leaves FSDP2 with whole weights of its outermost module


def whole(tensor: Any) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def apart(model: nn.Module, twin: nn.Module) -> float:
    """The largest difference between weights; NaN where there is one."""
    weights = dict(twin.named_parameters())
    differences = [(whole(p.detach()) - weights[name]).abs().max() for name, p in model.named_parameters()]
    return float(torch.stack(differences).max().detach())


def trained(way: Way, make: Make, base: str = "sgd", steps: int = STEPS, **settings: Any) -> dict[str, float]:
    """A split model and a whole one after some steps: how far apart they and their averages are, and have come."""
    model, twin = way.split(net()), net()
    optimizer, alone = built(model, make, base, **settings), built(twin, make, base, **settings)
    train(model, optimizer, batches(steps), way.share)
    train(twin, alone, batches(steps))
    found = {"apart": apart(model, twin), "come": apart(net(), twin)}
    if isinstance(optimizer, EMA | SWA):
        with optimizer.averaged([]), alone.averaged([]):
            found["averages apart"] = apart(model, twin)
            logits = model(way.share(batches()[0][0])), twin(way.share(batches()[0][0]))
            found["logits apart"] = float((logits[0] - logits[1]).abs().max())
        train(model, optimizer, batches()[:2], way.share)  # with the weights of training, of which none is stale
        train(twin, alone, batches()[:2])
        found["apart after evaluation"] = apart(model, twin)
    return found


def skipped(way: Way, group: ProcessGroup, call: int) -> dict[str, float]:
    """A gradient that is not finite in one process alone, in pass `call` of the second step."""
    model, twin = way.split(net()), net()
    optimizer, alone = (built(m, METHODS["sam"]) for m in (model, twin))
    passes = 0
    some = batches()[:4]
    for n, (words, classes) in enumerate(some):
        closure = closure_of(model, optimizer, way.share(words), way.share(classes))

        def spoilt(closure: Callable[..., Tensor] = closure, n: int = n) -> Tensor:
            nonlocal passes
            loss = closure()
            passes += n == 1
            if group.rank == 1 and n == 1 and passes == call:
                gradient: Any = next(p.grad for p in model.parameters() if isinstance(p, DTensor))
                with torch.no_grad():
                    gradient.to_local().view(-1)[-1] = math.inf  # of rows that this process holds
            return loss

        optimizer.step(spoilt)
    train(twin, alone, [some[0], *some[2:]])
    return {"apart": apart(model, twin), "skipped": optimizer.skipped_steps}


class Seen(Net):
    """One that counts its passes of training, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Buffer(torch.zeros(1))

    def forward(self, words: Tensor) -> Tensor:
        self.seen.add_(float(torch.is_grad_enabled()))
        return torch.add(super().forward(words), self.seen, alpha=0.01)


def evaluated_first(way: Way, *, reshards: bool = True) -> dict[str, float]:
    """FSDP2 that has whole weights when a step begins, from an evaluation.

    Args:
        reshards: False: it is told to keep whole weights after a backward pass, too.
    """
    torch.manual_seed(0)
    twin = Seen().double()
    model: Any = way.split(copy.deepcopy(twin))
    model.set_reshard_after_backward(reshards)
    optimizer, alone = (built(m, METHODS["sam"]) for m in (model, twin))
    with torch.no_grad():
        model(way.share(batches()[0][0]))
    train(model, optimizer, batches()[:4], way.share)
    train(twin, alone, batches()[:4])
    return {"apart": apart(model, twin), "buffers apart": float((model.seen - twin.seen).abs())}


class Counting(nn.Module):
    """A buffer that is a DTensor, and moves in each pass."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.weight = nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Shard(0)]))
        self.seen: Any
        self.register_buffer("seen", distribute_tensor(torch.zeros(3), mesh, [Shard(0)]))

    def forward(self, words: Tensor) -> Tensor:
        self.seen += 1
        loss: Tensor = (self.weight * self.weight).sum()
        return loss


def counted(mesh: DeviceMesh) -> list[float]:
    """What the buffer is after one step."""
    model = Counting(mesh)
    optimizer = built(model, METHODS["sam"])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = model(torch.zeros(1))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)
    return whole(model.seen).tolist()


def with_fsdp1(group: ProcessGroup) -> dict[str, float]:
    """The first kind of FSDP, whose parameters are plain tensors: it needs a norm_group."""
    model, twin = FullyShardedDataParallel(net(), use_orig_params=True, device_id=torch.device("cpu")), net()
    optimizer = built(model, METHODS["sam"], norm_group=dist.group.WORLD, clip_norm=CLIP)
    alone = built(twin, METHODS["sam"], clip_norm=CLIP)
    train(model, optimizer, batches(), half(group.rank))
    train(twin, alone, batches())
    with FullyShardedDataParallel.summon_full_params(model):
        return {"apart": apart(model.module, twin), "come": apart(net(), twin)}


def accumulated(way: Way) -> dict[str, float]:
    """`backward` and `step` apart, with two micro-batches a step."""
    model, twin = way.split(net()), net()
    optimizer, alone = (built(m, METHODS["sam"], clip_norm=0.05) for m in (model, twin))
    for first, second in zip(batches()[::2], batches()[1::2], strict=True):
        for here, it, share in ((model, optimizer, way.share), (twin, alone, lambda batch: batch)):
            it.zero_grad()
            for words, classes in (first, second):
                batch = share(words), share(classes)

                def closure(here: Any = here, batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                    loss = F.cross_entropy(here(batch[0]), batch[1]) / 2
                    loss.backward()  # type: ignore[no-untyped-call]
                    return loss

                it.backward(closure)
            it.step()
    return {"apart": apart(model, twin)}


def mixed_precision(group: ProcessGroup, mesh: DeviceMesh) -> dict[str, float]:
    """FSDP2's policy, bf16 in passes and fp32 between them, against weights that are rounded by hand."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, twin = fsdp(mesh, policy)(net(torch.float32)), net(torch.float32)
    optimizer, alone = (built(m, METHODS["sam"], clip_norm=0.5) for m in (model, twin))
    for words, classes in batches():
        optimizer.step(closure_of(model, optimizer, half(group.rank)(words), half(group.rank)(classes)))

        def closure(words: Tensor = words, classes: Tensor = classes) -> Tensor:
            alone.zero_grad()
            losses = []
            for rank in range(2):
                rounded = {name: p.bfloat16() for name, p in twin.named_parameters()}
                logits = torch.func.functional_call(twin, rounded, (half(rank)(words),))
                loss = F.cross_entropy(logits.double(), half(rank)(classes)) / 2
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.detach())
            return torch.stack(losses).sum()

        alone.step(closure)
    return {"apart": apart(model, twin), "come": apart(net(torch.float32), twin)}


# ---- checkpoints --------------------------------------------------------------------------------------------


def resumed(way: Way, make: Make, base: str = "sgd") -> dict[str, float]:
    """Half of the steps, torch.distributed.checkpoint into new objects, the other half: against all of them."""
    straight, first, second = (way.split(net()) for _ in range(3))
    with torch.no_grad():
        for p in second.parameters():
            p.zero_()
    whole_run, half_run, rest = (built(model, make, base) for model in (straight, first, second))
    for optimizer in (whole_run, half_run, rest):
        optimizer.total_steps = 6
    train(straight, whole_run, batches(7), way.share)
    train(first, half_run, batches(7)[:4], way.share)
    with tempfile.TemporaryDirectory() as own:
        folder = [own]
        dist.broadcast_object_list(folder)
        model_state, state = get_state_dict(first, half_run)
        save({"model": model_state, "optimizer": state}, checkpoint_id=folder[0])
        model_state, state = get_state_dict(second, rest)
        loaded: dict[str, Any] = {"model": model_state, "optimizer": state}
        load(loaded, checkpoint_id=folder[0])
        set_state_dict(second, rest, model_state_dict=loaded["model"], optim_state_dict=loaded["optimizer"])
        dist.barrier()
    train(second, rest, batches(7)[4:], way.share)
    found = {"apart": float(max((whole(p) - whole(q)).abs().max() for p, q in pairs(straight, second)))}
    if isinstance(rest, EMA | SWA):
        with whole_run.averaged([]), rest.averaged([]):
            found["averages apart"] = float(max((whole(p) - whole(q)).abs().max() for p, q in pairs(straight, second)))
    return found


def pairs(left: nn.Module, right: nn.Module) -> Iterator[tuple[Any, Any]]:
    return zip((p.detach() for p in left.parameters()), (p.detach() for p in right.parameters()), strict=True)


# ---- what is refused ----------------------------------------------------------------------------------------


def said(action: Callable[[], Any]) -> str:
    try:
        action()
    except (RuntimeError, ValueError, TypeError, BenchError) as error:
        return str(error)
    return ""


def without_reduction(way: Way) -> None:
    model: Any = way.split(net())
    model.set_requires_gradient_sync(False)
    train(model, built(model, METHODS["sam"]), batches()[:1], way.share)


def without_zeroing(way: Way) -> None:
    model = way.split(net())
    optimizer = built(model, METHODS["sam"])
    train(model, optimizer, batches()[:1], way.share)
    words, classes = (way.share(part) for part in batches()[1])

    def closure() -> Tensor:
        loss = F.cross_entropy(model(words), classes)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)


def cases(group: ProcessGroup) -> Iterator[tuple[str, Any]]:
    """Each case by its name, with what it found."""
    every = ways(group)
    line = init_device_mesh("cpu", (2,))
    for name, make in METHODS.items():
        for way in ("fsdp", "tensor parallel"):
            yield f"{way}, {name}", trained(every[way], make, clip_norm=CLIP)
        yield f"fsdp, {name}, resumed", resumed(every["fsdp"], make)
    for name, make in VARIANTS.items():
        yield f"fsdp, {name}", trained(every["fsdp"], make, steps=FEW)
    for base in ("adamw", "adamw, fused"):
        yield f"fsdp, sam over {base}", trained(every["fsdp"], METHODS["sam"], base, FEW)
        yield f"fsdp, friendly-sam over {base}, resumed", resumed(every["fsdp"], METHODS["friendly-sam"], base)
    for base in RIVALS:
        for way in ("fsdp", "tensor parallel"):
            yield f"{way}, sam over {base}", trained(every[way], METHODS["sam"], base, FEW)
        yield f"fsdp, friendly-sam over {base}, resumed", resumed(every["fsdp"], METHODS["friendly-sam"], base)
    yield "tensor parallel, sam over adamw", trained(every["tensor parallel"], METHODS["sam"], "adamw", FEW)
    for way in ("tensor parallel and fsdp", "replicated fsdp"):
        for name in ("sam", "gsam", "random-direction"):
            yield f"{way}, {name}", trained(every[way], METHODS[name], steps=FEW)
    yield "tensor parallel, esam on half", trained(every["tensor parallel"], partial(ESAM, rho=0.2), steps=FEW)
    for call in (1, 2):
        for way in ("fsdp", "tensor parallel"):
            yield f"{way}, skipped in pass {call}", skipped(every[way], group, call)
    for way in ("fsdp", "tensor parallel"):
        yield f"{way}, accumulated", accumulated(every[way])
    for reshards in (True, False):
        yield f"fsdp, evaluated first, reshards {reshards}", evaluated_first(every["fsdp"], reshards=reshards)
    yield "fsdp of the first kind", with_fsdp1(group)
    yield "buffer", counted(line)
    yield "fsdp, mixed precision", mixed_precision(group, line)
    yield "without reduction", said(lambda: without_reduction(every["fsdp"]))
    yield "without zeroing", said(lambda: without_zeroing(every["fsdp"]))
    sharded = every["fsdp"].split(net())
    yield "fused sgd", said(lambda: SAM(SGD(sharded.parameters(), lr=0.1, fused=True)))
    yield "soap", said(lambda: soap(sharded.parameters()))
    yield "esam in stages", said(lambda: ESAM(SGD(sharded.parameters(), lr=0.1), norm_group=dist.group.WORLD))
