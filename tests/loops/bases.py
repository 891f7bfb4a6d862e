"""Bases that people have, of torch, timm, pytorch_optimizer, bitsandbytes, schedulefree, accelerate and Opacus."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytorch_optimizer
import schedulefree
import timm.optim as timm_optim
import torch
from accelerate import Accelerator
from bitsandbytes import optim as bits_optim
from lightning.fabric import Fabric
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

# Their types are not complete.
timm: Any = timm_optim
bits: Any = bits_optim

Make = Callable[[list[nn.Parameter]], Optimizer]


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def matrices() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 3, bias=False))


def sparse() -> nn.Module:
    table = nn.EmbeddingBag(20, 3, sparse=True, mode="sum")
    return nn.Sequential(_Rows(), table)


class _Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 100).long() % 20


def per_sample() -> nn.Module:
    """A net that finds the gradients of single examples, as Opacus does."""
    net: nn.Module = GradSampleModule(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))
    return net


@dataclass(frozen=True)
class Base:
    """One kind of base, on a net that it can train.

    Attributes:
        make: builds it from parameters.
        net: builds what it trains.
        dtype: of the weights; float32 where the base computes in nothing else.
        near: how close to the bare base a vanishing rho comes, relative to the distance travelled. 8-bit states jump
            where a rounding pushes them over an edge.
        momentum: whether it keeps one where Momentum-SAM looks for it.
        follows_lr: whether its steps are as long as lr says.
    """

    make: Make
    net: Callable[[], nn.Module] = dense
    dtype: torch.dtype = torch.float64
    near: float = 1e-6
    momentum: bool = True
    follows_lr: bool = True

    def optimizer(self, model: nn.Module) -> Optimizer:
        return self.make(list(model.parameters()))

    @property
    def takes_sparse(self) -> bool:
        return self.net is sparse

    @property
    def counts_examples(self) -> bool:
        """Whether it needs a whole batch in every pass."""
        return self.net is per_sample


def to_training(optimizer: Optimizer) -> None:
    """As its documentation asks: before the first step."""
    if callable(train := getattr(optimizer, "train", None)):
        train()


def accelerated(base: Optimizer) -> Optimizer:
    prepared: Optimizer = Accelerator(cpu=True).prepare(base)
    return prepared


def of_fabric(base: Optimizer) -> Optimizer:
    fabric = Fabric(accelerator="cpu", devices=1)
    prepared: Optimizer = fabric.setup_optimizers(base)  # type: ignore[assignment]
    return prepared


def private(params: list[nn.Parameter]) -> Optimizer:
    base = AdamW(params, lr=0.01)
    made: Optimizer = DPOptimizer(base, noise_multiplier=0.1, max_grad_norm=1.0, expected_batch_size=16)
    return made


TORCH: dict[str, Base] = {
    "SGD": Base(lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)),
    "SGD, fused": Base(lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True)),
    "Adam": Base(lambda p: Adam(p, lr=0.01)),
    "AdamW": Base(lambda p: AdamW(p, lr=0.01, amsgrad=True, foreach=True)),
    "AdamW, fused": Base(lambda p: AdamW(p, lr=0.01, fused=True)),
    "Adamax": Base(lambda p: torch.optim.Adamax(p, lr=0.01)),
    "NAdam": Base(lambda p: torch.optim.NAdam(p, lr=0.01), dtype=torch.float32, near=1e-4),
    "RAdam": Base(lambda p: torch.optim.RAdam(p, lr=0.01)),
    "Adagrad": Base(lambda p: torch.optim.Adagrad(p, lr=0.01), momentum=False),
    "Adagrad, fused": Base(lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True), momentum=False),
    "Adadelta": Base(lambda p: torch.optim.Adadelta(p, lr=1.0), momentum=False),
    "Adafactor": Base(lambda p: torch.optim.Adafactor(p, lr=0.01), momentum=False),
    "RMSprop": Base(lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True)),
    "Rprop": Base(lambda p: torch.optim.Rprop(p, lr=0.01), momentum=False, follows_lr=False),
    "ASGD": Base(lambda p: torch.optim.ASGD(p, lr=0.1, t0=2), momentum=False),
    "Muon": Base(lambda p: torch.optim.Muon(p, lr=0.01), net=matrices, near=1e-3),  # in bfloat16
    "SparseAdam": Base(lambda p: torch.optim.SparseAdam(p, lr=0.01), net=sparse),
}

ELSEWHERE: dict[str, Base] = {
    "timm Lookahead": Base(lambda p: timm.Lookahead(AdamW(p, lr=0.01), k=2)),
    "timm Lookahead, fused inside": Base(lambda p: timm.Lookahead(SGD(p, lr=0.1, momentum=0.9, fused=True), k=2)),
    "timm Lamb": Base(lambda p: timm.Lamb(p, lr=0.01)),
    "timm NAdamW": Base(lambda p: timm.NAdamW(p, lr=0.01)),
    "timm Lion": Base(lambda p: timm.Lion(p, lr=0.001)),
    "timm Mars": Base(lambda p: timm.Mars(p, lr=0.01)),
    "timm ADOPT": Base(lambda p: timm.Adopt(p, lr=0.01)),
    "Lookahead": Base(lambda p: pytorch_optimizer.Lookahead(AdamW(p, lr=0.01), k=2)),
    "Lookahead, pulling momentum back": Base(
        lambda p: pytorch_optimizer.Lookahead(SGD(p, lr=0.1, momentum=0.9), k=2, pullback_momentum="pullback")
    ),
    "OrthoGrad": Base(lambda p: pytorch_optimizer.OrthoGrad(AdamW(p, lr=0.01))),
    "PCGrad": Base(lambda p: pytorch_optimizer.PCGrad(AdamW(p, lr=0.01))),
    "ScheduleFreeWrapper": Base(lambda p: pytorch_optimizer.ScheduleFreeWrapper(AdamW(p, lr=0.01))),
    "TRAC": Base(lambda p: pytorch_optimizer.TRAC(AdamW(p, lr=0.01))),
    "Magma": Base(lambda p: pytorch_optimizer.Magma(AdamW(p, lr=0.01))),
    "Muon of pytorch_optimizer": Base(
        lambda p: pytorch_optimizer.Muon([{"params": p, "use_muon": True}], lr=0.01), net=matrices, near=1e-3
    ),
    "Prodigy": Base(lambda p: pytorch_optimizer.Prodigy(p, lr=1.0)),
    "Adan": Base(lambda p: pytorch_optimizer.Adan(p, lr=0.01)),
    "bitsandbytes AdamW8bit": Base(
        lambda p: bits.AdamW8bit(p, lr=0.01, min_8bit_size=1),
        dtype=torch.float32,
        near=0.05,
        momentum=False,
    ),
    "bitsandbytes SGD8bit": Base(
        lambda p: bits.SGD8bit(p, lr=0.01, momentum=0.9, min_8bit_size=1),
        dtype=torch.float32,
        near=0.05,
        momentum=False,
    ),
    "bitsandbytes Lion8bit": Base(
        lambda p: bits.Lion8bit(p, lr=0.001, min_8bit_size=1),
        dtype=torch.float32,
        near=0.05,
        momentum=False,
    ),
    "schedulefree AdamW": Base(lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01), momentum=False),
    "schedulefree SGD": Base(lambda p: schedulefree.SGDScheduleFree(p, lr=0.1), momentum=False),
    "schedulefree RAdam": Base(lambda p: schedulefree.RAdamScheduleFree(p, lr=0.01), momentum=False),
    "accelerate": Base(lambda p: accelerated(AdamW(p, lr=0.01))),
    "accelerate over Lookahead": Base(lambda p: accelerated(pytorch_optimizer.Lookahead(AdamW(p, lr=0.01), k=2))),
    "Fabric": Base(lambda p: of_fabric(AdamW(p, lr=0.01))),
    "Opacus": Base(private, net=per_sample),
}

BASES = TORCH | ELSEWHERE


def batches(base: Base, number: int = 6) -> list[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(5)
    return [
        (
            torch.rand(16, 8, generator=random, dtype=torch.float64).to(base.dtype),
            torch.randn(16, 3, generator=random, dtype=torch.float64).to(base.dtype),
        )
        for _ in range(number)
    ]
