"""Every loop, with every base and method: at a vanishing rho the bare base in that loop, at rho 0.1 SAM by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import schedulefree
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from bench.optim.ae_sam import AESAM
from bench.optim.ema import EMA
from bench.optim.friendly_sam import FriendlySAM
from bench.optim.gsam import GSAM
from bench.optim.le_sam import LESAM
from bench.optim.looksam import LookSAM
from bench.optim.momentum_sam import MomentumSAM
from bench.optim.random_direction import RandomDirection
from bench.optim.sam import SAM
from bench.optim.wsam import WSAM
from bench.optim.xsam import XSAM

from .bases import timm
from .changed_models import COMPILED_IN_PLACE, COMPILED_LOSS, COMPILED_MODEL, LORA, MAML, QUANTISED
from .harness import Loop, Setting, by_hand, distance, weights, weights_and_buffers
from .opacus_loop import OPACUS
from .peoples_loops import PEOPLES_LOOPS
from .two_places import TWO_PLACES

pytestmark = [
    pytest.mark.filterwarnings("default:::(?!bench).*"),  # what other libraries deprecate is theirs
    pytest.mark.usefixtures("one_thread", "accelerate_forgets"),
]

LOOPS: dict[str, Loop] = {
    **PEOPLES_LOOPS,
    "backward and step apart": TWO_PLACES,
    "LoRA": LORA,
    "quantisation-aware": QUANTISED,
    "MAML": MAML,
    "compiled model": COMPILED_MODEL,
    "model compiled in place": COMPILED_IN_PLACE,
    "compiled loss": COMPILED_LOSS,
    "Opacus": OPACUS,
}
Parameters = list[nn.Parameter]
BASES: dict[str, Callable[[Parameters], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "AdamW, fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "timm Lookahead": lambda p: timm.Lookahead(AdamW(p, lr=0.01), k=2),
    "Lookahead": lambda p: pytorch_optimizer.Lookahead(SGD(p, lr=0.1, momentum=0.9), k=2),
    "schedulefree": lambda p: schedulefree.AdamWScheduleFree(p, lr=0.01),
}
METHODS: dict[str, Callable[..., Any]] = {
    "sam": SAM,
    "asam": partial(SAM, adaptive=True),
    "gsam": GSAM,
    "le-sam": partial(LESAM, anneal_from=None),
    "looksam": partial(LookSAM, k=2, alpha=0.0),  # what is reused has a length of its own, whatever rho
    "friendly-sam": FriendlySAM,
    "ae-sam": partial(AESAM, lambda_1=0.0, lambda_2=0.0),
    "wsam": partial(WSAM, gamma=0.5, decouple=False),  # decoupled it refuses a schedule-free base
    "xsam": partial(XSAM, points=3, search_every=2),
    "momentum-sam": MomentumSAM,
    "random-direction": RandomDirection,
    "ema": lambda base, rho, model: EMA(base, model=model),
}
MAKE_A_GRADIENT = {"gsam", "looksam", "wsam", "xsam"}
EXPENSIVE = {"Trainer", "LoRA", "Lightning", "Lightning, manual"}
"""Loops whose start takes a tenth of a second: each base with SAM, and each method with SGD."""

every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


@every_loop
@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_at_a_vanishing_rho_a_loop_ends_where_the_bare_base_does(loop: Loop, base: Any, tmp_path: Path) -> None:
    is_expensive = any(loop is LOOPS[name] for name in EXPENSIVE)
    methods = METHODS if base is BASES["SGD"] or not is_expensive else {"sam": SAM}
    setting = Setting(base, accumulate=loop.accumulate, dtype=loop.dtype, folder=tmp_path)
    bare = loop.train(setting)
    way = distance(weights(bare), weights(loop.model(setting)))
    assert way > 1e-3
    tiny = 1e-9 if loop.dtype == torch.float64 else 1e-12
    if loop is OPACUS:  # these are refused
        methods = {name: method for name, method in methods.items() if name not in MAKE_A_GRADIENT}
    if base is BASES["schedulefree"]:
        methods = {name: method for name, method in methods.items() if name != "momentum-sam"}  # it keeps none
    for name, method in methods.items():
        ours = loop.train(replace(setting, method=partial(method, rho=tiny)))
        near = 1e-6 * way if loop.dtype == torch.float64 else 1e-6 * way + 2e-7  # a few roundings of a weight
        assert distance(weights_and_buffers(bare), weights_and_buffers(ours)) <= near, name


@every_loop
def test_at_rho_a_tenth_it_is_sam_by_hand(loop: Loop, tmp_path: Path) -> None:
    setting = Setting(BASES["SGD"], accumulate=loop.accumulate, dropout=0.0, dtype=loop.dtype, folder=tmp_path)
    ours = weights_and_buffers(loop.train(replace(setting, method=partial(SAM, rho=0.1))))
    assert distance(ours, weights_and_buffers(loop.train(setting))) > 1e-4
    near = 1e-8 if loop.dtype == torch.float64 else 1e-4
    assert distance(ours, weights_and_buffers(by_hand(loop, setting, 0.1))) < near
