"""Buffers, and parameters in no group, that a forward pass moves: as after a plain step, and free if unchanged."""

from __future__ import annotations

import copy
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

from bench.optim.base import forward_state
from bench.optim.base.wrapper import OptimizerWrapper
from bench.optim.esam import ESAM
from bench.optim.sam import SAM
from bench.optim.wsam import WSAM

from .helpers import Watch, same_bits, snapshot
from .test_contract import CORE_METHODS, Recipe, watching

TWO_PASSES = [r for r in CORE_METHODS if r.entry.name in ("sam", "asam", "esam", "friendly-sam", "gsam", "wsam")]
RHO = 1e-7
X = torch.arange(12.0).reshape(4, 3) / 6


class Moving(nn.Module):
    """A net whose forward pass does something to a buffer, and then depends on it.

    Args:
        make: the buffer.
        move: what a forward pass does, of the module and its number of passes so far.
        read: what the result depends on.
    """

    def __init__(
        self,
        make: Callable[[], Tensor],
        move: Callable[[Moving, int], object] = lambda net, passes: None,
        read: Callable[[Tensor], Any] = lambda state: 0.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.state: Tensor = nn.Buffer(make())
        self.move, self.read, self.passes = move, read, 0

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.move(self, self.passes)
        self.passes += 1
        result: Tensor = self.layer(x) + self.read(self.state)
        return result


def loss_of(net: nn.Module) -> Callable[[], Tensor]:
    return lambda: net(X).square().mean()


def take_steps(net: nn.Module, parameters: Any, sam: bool = True) -> None:
    optimizer: Any = SGD(parameters, lr=0.1)
    if sam:
        optimizer = SAM(optimizer, rho=RHO, model=net)
    for _ in range(3):
        optimizer.step(Watch(optimizer, loss_of(net)))


def with_sam_and_without(make: Callable[[], Moving]) -> tuple[Moving, Moving]:
    """Train two of the same net: weights must agree to rounding, which they do if both passes see the same state."""
    nets = make(), make()
    for net, sam in zip(nets, (True, False), strict=True):
        take_steps(net, net.layer.parameters(), sam)
    torch.testing.assert_close(nets[0].layer.weight, nets[1].layer.weight, rtol=0, atol=1e-6)
    return nets


@pytest.fixture(params=["small", "large"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both rules of when to copy, on tensors of a few numbers, for which there is room in the first step."""
    monkeypatch.setattr(forward_state, "SMALL", 1 << 16 if request.param == "small" else 0)
    return str(request.param)


# ---- whatever a forward pass does --------------------------------------------------------------------------------


def in_place(net: Moving, passes: int) -> None:
    net.state.mul_(0.9).add_(1)


def through_data(net: Moving, passes: int) -> None:
    """As the codes of many vector quantizers do: no version is counted."""
    net.state.data.mul_(0.9).add_(1)


def another(net: Moving, passes: int) -> None:
    net.state = net.state + 1


def new_memory(net: Moving, passes: int) -> None:
    net.state.data = net.state.data * 0.9 + 1


def resized(net: Moving, passes: int) -> None:
    net.state.resize_(len(net.state) + 1).fill_(len(net.state) + 1.0)


def grown(net: Moving, passes: int) -> None:
    net.state = torch.cat([net.state, torch.ones(1)])


def made_in_the_first_pass(net: Moving, passes: int) -> None:
    if passes == 0:
        net.another = nn.Buffer(torch.zeros(3))
    net.another.add_(1)  # type: ignore[operator]


MOVES = [in_place, through_data, another, new_memory, resized, grown]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_whatever_a_pass_does_to_a_buffer_is_done_once_a_step(move: Callable[[Moving, int], None], size: str) -> None:
    ours, plain = with_sam_and_without(lambda: Moving(lambda: torch.zeros(3), move, Tensor.sum))
    assert same_bits(ours.buffers(), plain.buffers())


def test_a_buffer_that_the_first_pass_makes_is_put_back_too(size: str) -> None:
    ours, plain = with_sam_and_without(lambda: Moving(lambda: torch.zeros(3), made_in_the_first_pass))
    assert same_bits(ours.buffers(), plain.buffers())


def strided(tensor: Tensor) -> list[Tensor]:
    """Return a tensor's numbers, whatever its kind."""
    parts = tensor.unbind() if tensor.is_nested else [tensor]
    return [(part.int_repr() if part.is_quantized else part.to_dense()).resolve_conj().contiguous() for part in parts]


def doubled(net: Moving, passes: int) -> None:
    net.state.copy_(net.state.clone().flip(0)) if net.state.is_quantized else net.state.mul_(2)


KINDS: dict[str, Callable[[], Tensor]] = {
    "float": lambda: torch.ones(3),
    "counter": lambda: torch.tensor(3),
    "bytes": lambda: torch.arange(3, dtype=torch.uint8),
    "empty": lambda: torch.ones(0, 3),
    "of numpy": lambda: torch.from_numpy(np.ones(3)),
    "transposed": lambda: torch.ones(2, 3).t(),
    "every other number": lambda: torch.ones(6)[::2],
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
    "conjugate": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "negative": lambda: torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "quantized": lambda: torch.quantize_per_tensor(torch.arange(3.0), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("move", [lambda net, passes: None, doubled], ids=["unchanged", "doubled"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_buffer_of_any_kind_is_as_after_a_plain_step(kind: str, move: Callable[..., None], size: str) -> None:
    ours, plain = with_sam_and_without(lambda: Moving(KINDS[kind], move))
    assert same_bits(strided(ours.state), strided(plain.state))
    assert type(ours.state) is type(plain.state)
    assert ours.state.layout == plain.state.layout
    assert ours.state.is_conj() == plain.state.is_conj()


def test_a_buffer_made_in_inference_mode_is_as_after_a_plain_step(size: str) -> None:
    def made() -> Tensor:
        with torch.inference_mode():
            return torch.ones(3)

    for move in (lambda net, passes: None, through_data):
        ours, plain = with_sam_and_without(lambda move=move: Moving(made, move))  # type: ignore[misc]
        # It has no version, and a large one's numbers are compared in the first step alone: so it is known to move.
        assert same_bits([ours.state], [plain.state])


def test_an_expanded_buffer_whose_memory_is_moved_is_as_after_a_plain_step(size: str) -> None:
    def make() -> Moving:
        one = torch.zeros(1)
        return Moving(lambda: one.expand(4, 2), lambda net, passes: one.add_(1), lambda state: state[0])

    ours, plain = with_sam_and_without(make)
    assert torch.equal(ours.state, plain.state)
    assert ours.state.stride() == plain.state.stride()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_lazy_and_scripted_modules_are_as_after_a_plain_step() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 2), nn.LazyBatchNorm1d(affine=False))

    def scripted() -> nn.Module:
        made: nn.Module = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
        return made

    for make in (lazy, scripted):
        nets = []
        for sam in (True, False):
            torch.manual_seed(0)
            nets.append(make())
            take_steps(nets[-1], list(nets[-1].parameters()), sam)
        for ours, plain in zip(nets[0].buffers(), nets[1].buffers(), strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)  # of weights that are rounded
        assert int(list(nets[0].buffers())[2]) == 3


def test_a_buffer_that_shares_a_weights_memory_moves_with_it(size: str) -> None:
    class Sharing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.shared = nn.Buffer(self.weight.data)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.equal(self.shared, self.weight))
            return x * self.weight

    net, seen = Sharing(), list[bool]()
    optimizer = SAM(SGD(net.parameters(), lr=0.1), rho=0.5, model=net)
    for _ in range(2):
        optimizer.step(watch := Watch(optimizer, loss_of(net)))
        assert watch.e[0].norm().item() == pytest.approx(0.5)
    assert seen == [True] * 4
    assert torch.equal(net.shared, net.weight)


# ---- what did not change -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
@pytest.mark.parametrize("numbers", [6, 100_000])
def test_memory_that_cannot_be_written_to_is_not_written_to(numbers: int, tmp_path: Path) -> None:
    """A write would end the process."""
    path = tmp_path / "table"
    path.write_bytes(np.arange(numbers, dtype=np.float32).tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    net = Moving(lambda: torch.frombuffer(mapped, dtype=torch.float32))
    take_steps(net, net.layer.parameters())
    with forward_state.kept_buffers(net):
        net(X)
    assert net.state[-1] == numbers - 1


class Large(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operators that take or give a tensor of at least so many numbers."""

    def __init__(self, numbers: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers, self.seen = numbers, list[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        parts = [part for each in (*args, result) for part in (each if isinstance(each, (list, tuple)) else [each])]
        if any(isinstance(part, Tensor) and part.numel() >= self.numbers for part in parts):
            self.seen.append(func.overloadpacket.__name__)
        return result


def table() -> Tensor:
    return torch.zeros(1000, 1000)


def test_a_large_table_that_nobody_changes_is_neither_copied_nor_written() -> None:
    net = Moving(table)
    optimizer = SAM(SGD(net.layer.parameters(), lr=0.1), model=net)
    for looks in ({"slice", "alias"}, set[str]()):  # some of its numbers are looked at in the first step
        with Large(100_000) as large:
            optimizer.step(Watch(optimizer, loss_of(net)))
        assert set(large.seen) <= looks
    assert net.state._version == 0


def test_a_large_table_that_fits_beside_the_parameters_is_copied_in_the_first_step_alone() -> None:
    net = Moving(table)
    net.layer = nn.Linear(3, 400_000)
    optimizer = SAM(SGD(net.layer.parameters(), lr=0.1), model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for copied in (True, False):
        with Large(1_000_000) as large:
            optimizer.step(closure)
        assert ("clone" in large.seen) is copied
    assert net.state._version == 0


@pytest.mark.parametrize("move", [in_place, through_data, new_memory], ids=lambda move: move.__name__)
def test_a_large_table_that_moves_is_right_in_every_step(move: Callable[[Moving, int], None]) -> None:
    """The second pass sees it as the first one did from the second step on: there is no room for it in the first."""
    ours, plain = Moving(table, move), Moving(table, move)
    take_steps(ours, ours.layer.parameters())
    take_steps(plain, plain.layer.parameters(), sam=False)
    assert same_bits([ours.state], [plain.state])
    seen: list[Tensor] = []

    def look(state: Tensor) -> float:
        seen.append(state[0, 0].clone())
        return 0.0

    ours.read = look
    optimizer = SAM(SGD(ours.layer.parameters(), lr=0.1), model=ours)
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss_of(ours)))
    assert seen[0] != seen[1]
    assert seen[2] == seen[3]


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_large_tensor_that_the_second_pass_alone_changes_is_an_error_and_from_then_on_right(kind: str) -> None:
    net = Moving(table, lambda net, passes: passes % 2 and net.state.add_(1))
    if kind == "parameter":
        del net.state
        net.state = nn.Parameter(table(), requires_grad=False)
    optimizer = SAM(SGD(net.layer.parameters(), lr=0.1), model=net)
    before = snapshot(net.layer.parameters())
    with pytest.raises(RuntimeError, match=r"has changed state \(1,000,000 numbers\), which the first had left alone"):
        optimizer.step(Watch(optimizer, loss_of(net)))
    assert same_bits(net.layer.parameters(), before)
    lost = net.state.clone()
    optimizer.step(Watch(optimizer, loss_of(net)))
    assert same_bits([net.state], [lost])
    assert not same_bits(net.layer.parameters(), before)


def test_a_small_tensor_that_the_second_pass_alone_changes_is_put_back() -> None:
    net = Moving(lambda: torch.zeros(3), lambda net, passes: net.state.add_(passes % 2))
    take_steps(net, net.layer.parameters())
    assert net.state.tolist() == [0.0] * 3


def test_a_closure_that_raises_leaves_its_own_error() -> None:
    net = Moving(table, lambda net, passes: net.state.add_(passes % 2))
    optimizer = SAM(SGD(net.layer.parameters(), lr=0.1), model=net)

    def mischief(call: int) -> None:
        if call == 2:
            raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        optimizer.step(Watch(optimizer, loss_of(net), mischief))


# ---- which tensors there are -------------------------------------------------------------------------------------


def test_the_buffers_of_modules_that_come_and_go_are_seen() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, affine=False))
    optimizer = SAM(SGD(net.parameters(), lr=0.1), rho=0.05, model=net)
    optimizer.step(Watch(optimizer, loss_of(net)))
    net.append(nn.BatchNorm1d(2, affine=False))
    net[1] = nn.BatchNorm1d(2, affine=False)
    net[1].num_batches_tracked = torch.tensor(5)
    for _ in range(2):
        optimizer.step(Watch(optimizer, loss_of(net)))
    assert [int(norm.get_buffer("num_batches_tracked")) for norm in net[1:]] == [7, 2]


def test_a_copy_of_an_optimizer_looks_at_its_own_model() -> None:
    net = Moving(lambda: torch.zeros(3), in_place, Tensor.sum)
    optimizer = SAM(SGD(net.layer.parameters(), lr=0.1), model=net)
    optimizer.step(Watch(optimizer, loss_of(net)))
    twin, again = copy.deepcopy((net, optimizer))
    again.step(Watch(again, loss_of(twin)))
    optimizer.step(Watch(optimizer, loss_of(net)))
    assert same_bits([net.state], [twin.state])


# ---- parameters in no group, which a forward pass moves ----------------------------------------------------------


class MomentumContrast(nn.Module):
    """MoCo (He et al. 2020, arXiv:1911.05722): a key encoder follows the other one, keys are queued."""

    def __init__(self, write: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.key = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(False)
        self.queue, self.write = nn.Buffer(torch.randn(8, 2)), write
        self.other_weights = nn.Parameter(torch.zeros(100))  # beside which there is room for copies

    def forward(self, x: Tensor) -> Tensor:
        queries: Tensor = self.layer(x)
        with torch.no_grad():
            for key, query in zip(self.key.parameters(), self.layer.parameters(), strict=True):
                self.write(key, query)
            keys = self.key(x)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.clone().T], 1)
        with torch.no_grad():
            self.queue.copy_(torch.cat([keys, self.queue[:4]]))
        return logits.log_softmax(1)[:, :2]


def by_data(key: Tensor, query: Tensor) -> None:
    key.data = key.data * 0.9 + query.data * 0.1


def by_data_in_place(key: Tensor, query: Tensor) -> None:
    key.data.mul_(0.9).add_(query.data, alpha=0.1)


@pytest.mark.parametrize(
    "write",
    [by_data, by_data_in_place, lambda key, query: key.lerp_(query, 0.1)],
    ids=["data", "data in place", "lerp"],
)
@pytest.mark.parametrize("recipe", TWO_PASSES, ids=str)
def test_a_momentum_encoder_moves_once_a_step(recipe: Recipe, write: Callable[..., object], size: str) -> None:
    nets = []
    assert recipe.base is not None
    for which in (recipe, Recipe(recipe.base)):
        nets.append(net := MomentumContrast(write))
        optimizer = which.build(net)
        if isinstance(optimizer, OptimizerWrapper):
            optimizer.param_groups[0]["rho"] = RHO
        if isinstance(optimizer, ESAM):
            optimizer.beta = optimizer.gamma = 1.0
        if isinstance(optimizer, WSAM):
            optimizer.weight = 1.0  # not 9 times the rounding of g' - g
        for _ in range(3):
            optimizer.step(watching(optimizer, net, X, torch.zeros(4, 2)))  # type: ignore[arg-type]
    for (name, ours), plain in zip(nets[0].state_dict().items(), nets[1].state_dict().values(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=2e-5 if "adamw" in str(recipe) else 1e-6, msg=name)
