"""What a step of SAM costs beyond its two passes, beside other ways to write it. Part of `make perf`.

All rivals step the same model on the same batch over the same base (fused SGD with momentum), in turn, so that a busy
machine slows all of them. Overhead is what a step takes beside its two passes, in per cent of these; the base's own
step is part of it, and a row shows what that takes. On a CPU passes and the rest are timed apart within the same step,
by the processor's time (of one thread), which does not run while other programs do. On a GPU the two overlap: there it
is the step's time against that of two passes alone, round by round. Batches are those of real training on a GPU, and on
a CPU so large that passes take seconds.

Memory is what lives at most between the making of an optimizer and the end of its second step, above that of the plain
base, in copies of the parameters, by the allocator's own account. Operators are what is dispatched in a step beside its
passes, host reads those that make the host wait for a GPU. On a GPU launches and synchronisations are counted as well.
"""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification

from bench import SAM
from bench.core.registry import load_builtins, models
from bench.train import synchronize
from tests.perf.images import PerfImages

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
TWO, PLAIN, FLOOR, OURS = "two passes alone", "plain step", "two passes, base's step", "bench.SAM"
BARE = "a bare foreach loop"
IN_PLACE = ("pytorch_optimizer", "a loop, copied back", BARE)  # who puts the very bits back where they were

Step = Callable[[], object]
Times = tuple[float, float]  # seconds of a step, and of its passes
Closure = Callable[[], Tensor]
Problem = tuple[nn.Module, Closure]  # a model and its loss on one batch


@dataclass(frozen=True)
class Case:
    """A model with a batch.

    Attributes:
        batch: examples on a CPU and on a GPU.
        rounds: steps of each rival that count.
        overhead: the most, in per cent of two passes, where compute dominates; None where it does not.
    """

    title: str
    build: Callable[[int], Problem]
    batch: tuple[int, int]
    rounds: int = 3
    overhead: float | None = 2.0


def images(name: str, **params: Any) -> Callable[[int], Problem]:
    def build(batch: int) -> Problem:
        load_builtins()
        model = models[name].build(PerfImages(), **params).to(DEVICE).to(memory_format=torch.channels_last)
        x = torch.randn(batch, 3, 32, 32, device=DEVICE).to(memory_format=torch.channels_last)
        y = torch.randint(10, (batch,), device=DEVICE)
        return model, lambda: F.cross_entropy(model(x), y)

    return build


def bert(batch: int) -> Problem:
    """BERT-small (Turc et al. 2019, arXiv:1908.08962): 4 layers of 512, 28.8 million parameters."""
    size: dict[str, Any] = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    model: nn.Module = BertForSequenceClassification(BertConfig(intermediate_size=2048, **size))
    model.to(DEVICE).train()
    tokens = torch.randint(1000, 30_000, (batch, 128), device=DEVICE)
    y = torch.randint(2, (batch,), device=DEVICE)
    return model, lambda: F.cross_entropy(model(tokens).logits, y)


def small_layers(batch: int) -> Problem:
    layers = [layer for _ in range(200) for layer in (nn.Linear(16, 16), nn.ReLU())]
    model = nn.Sequential(*layers).to(DEVICE)
    x, y = torch.randn(batch, 16, device=DEVICE), torch.randint(16, (batch,), device=DEVICE)
    return model, lambda: F.cross_entropy(model(x), y)


CASES = {
    "resnet18": Case("ResNet-18 on 32x32", images("resnet18"), (64, 128)),
    "wrn-28-10": Case("WRN-28-10 on 32x32", images("wrn28_10"), (16, 128)),
    "vit-s": Case("ViT-S/4 on 32x32", images("vit_small"), (32, 128)),
    "bert-small": Case("BERT-small, 128 tokens", bert, (32, 32)),
    "mlp-200": Case("MLP of 200 layers of 16", small_layers, (8, 8), rounds=100, overhead=None),
}


def compare(case: Case) -> None:
    """Time, memory, operators and host reads of every rival, and whether ours is what it shall be."""
    torch.manual_seed(0)
    batch = case.batch[CUDA]
    memory, beside = counted(*case.build(batch if CUDA else 2))
    model, loss = case.build(batch)
    passes = Passes(model, loss)
    steps = {name: make() for name, make in rivals(model, passes).items()}
    times = [{name: passes.timed(step) for name, step in steps.items()} for _ in range(case.rounds + 1)][1:]
    overhead = {name: [percent(one[name], one[TWO]) for one in times] for name in steps}

    size = sum(p.numel() for p in model.parameters())
    print(f"SAM, {case.title}, batch {batch}: {size / 1e6:.2f} M parameters in {len(list(model.parameters()))} tensors")
    titles = f"{'over two passes [quartiles]':>28} {'memory':>7} {'operators':>9} {'host reads':>10}"
    print(f"  {'':<28} {'a step':>10} {titles}")
    for name in steps:
        low, middle, high = statistics.quantiles(overhead[name], n=4)
        over = "" if name in (TWO, PLAIN) else f"{middle:+.2f} % [{low:+.2f}, {high:+.2f}]"
        ms = 1e3 * statistics.median(one[name][0] for one in times)
        reads = beside[name]["_local_scalar_dense"]
        of_step = f"{max(0.0, memory[name]):>7.2f} {beside[name].total():>9} {reads:>10}"
        print(f"  {name:<28} {ms:>7.2f} ms {over:>28} " + ("" if name in (TWO, PLAIN) else of_step))
    if CUDA:
        for name, step in steps.items():
            launches, waits = launches_and_waits(step)
            print(f"  {name:<28} {launches:6} kernel launches, {waits} synchronisations, passes included")
    ours = statistics.median(overhead[OURS])
    others = [name for name in steps if name not in (TWO, PLAIN, FLOOR, OURS)]
    targets = {}
    for who, those in (("all", others), ("those that put weights back where they were", IN_PLACE)):
        least = min(statistics.median(overhead[name]) for name in those)
        targets[f"the lowest overhead of {who} ({ours:.2f} %, the next {least:.2f} %)"] = ours <= least
    if case.overhead is not None:
        targets[f"at most {case.overhead:g} % over two passes"] = ours <= case.overhead
    targets["at most one copy of the parameters"] = memory[OURS] <= 1.05
    targets["no host reads"] = beside[OURS]["_local_scalar_dense"] == 0
    for target, met in targets.items():
        print(f"  {'met' if met else 'MISSED':<8}{target}")
    print(flush=True)


# ---- the rivals ----------------------------------------------------------------------------------------------


class Passes:
    """The closure of all rivals, which knows how long it took.

    Attributes:
        seconds: of the processor, in all passes so far.
    """

    def __init__(self, model: nn.Module, loss: Closure) -> None:
        self.model, self.loss, self.seconds = model, loss, 0.0

    def __call__(self) -> Tensor:
        started = time.process_time()
        for parameter in self.model.parameters():
            parameter.grad = None
        value = self.loss()
        value.backward()  # type: ignore[no-untyped-call]
        self.seconds += time.process_time() - started
        return value

    def timed(self, step: Step) -> Times:
        clock = time.perf_counter if CUDA else time.process_time
        synchronize(DEVICE)
        started, self.seconds = clock(), 0.0
        step()
        synchronize(DEVICE)
        return clock() - started, self.seconds


def percent(step: Times, two_passes: Times) -> float:
    """What a step takes beside its passes, in per cent of them."""
    whole, passes = step
    return 100 * (whole / (two_passes[0] if CUDA else passes) - 1)


def rivals(model: nn.Module, closure: Passes) -> dict[str, Callable[[], Step]]:
    """By name, what makes an optimizer and gives its step."""

    def base() -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def two_passes() -> Step:
        return lambda: (closure(), closure())

    def plain() -> Step:
        optimizer = base()
        return lambda: (closure(), optimizer.step())

    def floor() -> Step:
        optimizer = base()
        return lambda: (closure(), closure(), optimizer.step())

    def ours() -> Step:
        optimizer = SAM(base(), rho=0.05, model=model)
        optimizer.checked_steps = 0  # whether passes have the same inputs is looked at in the first four steps only
        return lambda: optimizer.step(closure)

    def theirs(**how: Any) -> Step:
        optimizer: Any = pytorch_optimizer.SAM(
            model.parameters(), torch.optim.SGD, rho=0.05, lr=1e-6, momentum=0.9, **how
        )
        return lambda: (closure(), optimizer.step(closure))

    return {
        TWO: two_passes,
        PLAIN: plain,
        FLOOR: floor,
        OURS: ours,
        "pytorch_optimizer": lambda: theirs(fused=True),
        "pytorch_optimizer, foreach": lambda: theirs(foreach=True),
        "a loop over tensors": lambda: loop_over_tensors(list(model.parameters()), base(), closure),
        "a loop, copied back": lambda: loop_over_tensors(list(model.parameters()), base(), closure, in_place=True),
        BARE: lambda: bare_foreach_loop(list(model.parameters()), base(), closure),
    }


def loop_over_tensors(
    parameters: list[nn.Parameter], base: torch.optim.Optimizer, closure: Closure, in_place: bool = False
) -> Step:
    """How most public code has it: e and the old weights tensor by tensor, the old ones put back by their pointers.

    It does less than it must: batch-norm statistics move twice, dropout masks differ, a gradient that is not finite is
    followed, and the weights' memory moves, which views of it, CUDA graphs and flattened layers do not survive. That
    saves one copy; `in_place` does not save it.
    """
    old: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def ascend() -> None:
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        for p in parameters:
            if p.grad is not None:
                old[p] = p.data.clone()
                p.add_(p.grad * (0.05 / (norm + 1e-12)))

    def step() -> None:
        closure()
        ascend()
        closure()
        for p in parameters:
            weight = old.pop(p)  # kept, it would hold memory of the weight that other rivals move
            if in_place:
                p.data.copy_(weight)
            else:
                p.data = weight
        base.step()

    return step


def bare_foreach_loop(parameters: list[nn.Parameter], base: torch.optim.Optimizer, closure: Closure) -> Step:
    """The algorithm in foreach kernels, weights copied back, and nothing else: none of what a step of SAM must keep."""

    def step() -> None:
        closure()
        with torch.no_grad():
            weights: list[Tensor] = [p for p in parameters if p.grad is not None]
            e = [p.grad for p in weights if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(e)))
            old = [p.clone() for p in weights]
            torch._foreach_mul_(e, 0.05 / (norm + 1e-12))
            torch._foreach_add_(weights, e)
        closure()
        with torch.no_grad():
            torch._foreach_copy_(weights, old)
        base.step()

    return step


# ---- what is measured ----------------------------------------------------------------------------------------


def counted(model: nn.Module, loss: Closure) -> tuple[dict[str, float], dict[str, Counter[str]]]:
    """Of every rival, the memory in copies of the parameters, and the operators beside those of two passes."""
    makers = rivals(model, Passes(model, loss))
    copy = sum(p.numel() * p.element_size() for p in model.parameters())
    peaks = {name: peak_bytes(model, make) for name, make in makers.items()}
    counts = {name: operators(make()) for name, make in makers.items()}
    memory = {name: (peak - peaks[PLAIN]) / copy for name, peak in peaks.items()}
    return memory, {name: found - counts[TWO] for name, found in counts.items()}


def peak_bytes(model: nn.Module, make: Callable[[], Step]) -> int:
    """The most that is alive from the making of an optimizer to the end of its second step, above what was before."""
    model.zero_grad()
    gc.collect()
    if CUDA:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run_twice(make)
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run_twice(make)
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def run_twice(make: Callable[[], Step]) -> None:
    step = make()
    step()
    step()


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched; "empty" and its kin reserve memory and run nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not name.startswith(("empty", "detach")):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def operators(step: Step) -> Counter[str]:
    step()  # the base's state is made in the first
    step()
    seen = Operators()
    with seen:
        step()
    return seen.counts


def launches_and_waits(step: Step) -> tuple[int, int]:
    """Kernels that a step launches on a GPU, and how often the host waits for it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
    launches = sum(event.count for event in profiler.key_averages() if "LaunchKernel" in event.key)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return launches, sum("synchroniz" in str(warning.message) for warning in caught)
