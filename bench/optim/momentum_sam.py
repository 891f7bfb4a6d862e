"""Momentum-SAM (Becker et al. 2024, arXiv:2401.12033, algorithm 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.closures import Closure
from bench.optim.base.delegation import within
from bench.optim.base.options import PerturbationOptions, check_choice
from bench.optim.base.perturbation import PerturbedGroup, PerturbedOptimizer
from bench.optim.base.tensors import as_real, gradients
from bench.optim.base.types import NonNegative, Variant

BUFFERS = ("momentum_buffer", "exp_avg")
"""Where torch's optimizers keep their momentum: SGD and RMSprop; Adam and its kin."""

COUPLED = (torch.optim.SGD, torch.optim.Adam, torch.optim.Adamax, torch.optim.RMSprop)
"""Bases that add weight decay to the gradient, whether or not their groups say so."""

NO_MOMENTUM = "keeps an average of its weights and no momentum"


@register_optimizer(
    "momentum-sam",
    wraps_base=True,
    unfit={"schedule-free-sgd": NO_MOMENTUM, "schedule-free-adamw": NO_MOMENTUM},
)
class MomentumSAM(PerturbedOptimizer):
    """Momentum-SAM: perturbs along minus the base's momentum; one pass per step (Becker et al. 2024).

    SAM at the price of its base, which has that momentum anyway:

        e  = -rho * v / (||v|| + 1e-12)                  v: the base's momentum before this step
        w  <- base.step(w, grad L(w + e))                which also moves v

    The minus is the paper's: going on from w in the direction in which momentum moves the weights raises the loss.

    Args:
        base: a torch optimizer with momentum: SGD's, or the first moment of Adam and its kin.
        rho: the paper's best are far above SAM's, 0.3 to 3.
        variant: "authors": weight decay is that of the moved weights, w + e, as in MarlonBecker/MSAM, whose weights are
            there between steps: weight_decay * e is added to the gradient. After 20 steps of a small convolutional net
            with SGD and weight decay 5e-4 it differs by .014 of the distance moved from "paper", where the base decays
            w. It needs a base that adds weight decay to the gradient (SGD, Adam): over AdamW, whose decay is decoupled,
            their code decays after the step (.025 apart at 0.01), and only "paper" is offered; so it is over bases that
            do not say where their decay goes (Lion, Muon).
        others: as of `bench.optim.base.perturbation.PerturbedOptimizer`, without m and ascent_decay: e is the same for
            all examples.

    Raises:
        ValueError: the base has no momentum, or, after its first step, keeps none where it is looked for (8-bit states,
            ZeroRedundancyOptimizer, schedule-free); for variant "authors", its weight decay is decoupled.

    Traps: the one pass is at w + e, so the loss that is returned is L(w + e), and batch-norm statistics are those of
    w + e. The first step has no momentum yet and is the base's. Where the paper keeps the weights moved between steps
    and moves them back to be evaluated, ours are at w: the same numbers, and nothing to forget.
    """

    # The only pass of a step is at w + e.
    loss_is_at_w = False

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.3,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        variant: Variant = "paper",
        norm_group: ProcessGroup | None = None,
        **options: Unpack[PerturbationOptions],
    ) -> None:
        check_choice("MomentumSAM", "variant", variant, get_args(Variant))
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        for group in self.param_groups:
            if not (group.get("momentum") or "betas" in group):
                raise ValueError(f"MomentumSAM: {type(base).__name__} has no momentum; set momentum > 0")
            if variant == "authors" and group.get("weight_decay") and _is_decoupled(base, group):
                raise ValueError(
                    f'MomentumSAM: variant="authors" over {type(base).__name__}: its weight decay is not known '
                    'to be part of the gradient; take variant="paper", or a base that decays the gradient (SGD, Adam)'
                )
        self.variant = variant
        # Bases make their state in their first step, so it can be checked only after that: see `after_update`.
        self._has_found_all = False
        self._states: list[Any] = []

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if not self.is_due():
            return super().gradient(closure)
        # Once per step, not once per parameter: looking through a base takes as long as moving a small weight.
        self._states = [part.state for part in within(self.base)]
        # No gradient exists yet: a parameter is moved if it has a momentum. In the first step none has.
        groups = self.movable(lambda p: self._momentum(p) is not None)
        known = [p for group in groups for p in group.parameters]
        norm = self.reductions.norm(known, [v for group in groups for v in self._momenta(group)])

        def e(group: PerturbedGroup) -> tuple[list[Tensor], Tensor]:
            # New tensors, since `moved` overwrites the direction: the base's momentum must stay as it is.
            return list(torch._foreach_neg(self._momenta(group))), group.rho / (norm + 1e-12)

        with self.moved(groups, e), self.last_pass():
            loss = closure()
        if self.variant == "authors":
            self._decay_e(groups, norm)
        return loss, None

    def _decay_e(self, groups: list[PerturbedGroup], norm: Tensor) -> None:
        """Add weight_decay * e to the gradients, to which the base adds weight_decay * w."""
        for group in groups:
            known = [p for p in group.parameters if p.grad is not None]
            if known and group.weight_decay:
                # The pass has used e up: it is computed again. The momentum is unchanged until the base steps.
                e = torch._foreach_mul(self._momenta(replace(group, parameters=known)), -group.rho / (norm + 1e-12))
                torch._foreach_add_(gradients(known), e, alpha=group.sign * group.weight_decay)

    def _momenta(self, group: PerturbedGroup) -> list[Tensor]:
        return [as_real(v) for p in group.parameters if (v := self._momentum(p)) is not None]

    def _momentum(self, parameter: Tensor) -> Tensor | None:
        # The outermost optimizer that keeps a momentum counts: a Lookahead's own state, for example, has none.
        return next(
            (kept[name] for kept in self._kept(parameter) for name in BUFFERS if kept.get(name) is not None), None
        )

    def _kept(self, parameter: Tensor) -> list[dict[str, Any]]:
        """Return what the base, and optimizers inside of it (a Lookahead's), keep of a parameter."""
        return [kept for state in self._states if isinstance(kept := state.get(parameter), dict) and kept]

    def after_update(self, skip: Tensor) -> None:
        super().after_update(skip)
        if self._has_found_all:
            return
        self._states = [part.state for part in within(self.base)]
        parameters = self.parameters_with_gradient()
        if any(self._kept(p) for p in parameters):  # the base has made its first step
            if missing := sum(self._momentum(p) is None for p in parameters):
                raise ValueError(
                    f"MomentumSAM: {type(self.base).__name__} keeps no {' or '.join(BUFFERS)} for {missing} of "
                    f"{len(parameters)} parameters in this process: use a base that does, such as SGD or AdamW"
                )
            self._has_found_all = True


def _is_decoupled(base: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Return whether weight decay is no part of the gradient: as groups say, else for all bases not in `COUPLED`."""
    # torch's name for it, then pytorch_optimizer's.
    said = group.get("decoupled_weight_decay", group.get("weight_decouple"))
    return not any(isinstance(part, COUPLED) for part in within(base)) if said is None else bool(said)
