"""A memory of a method's own, a tensor a parameter, which is saved, loaded and skipped as the base's state is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.optim.method import Method, found_inf


class Remembering(Method):
    """A method that remembers something of each parameter from one step to the next.

    Attributes:
        remembers: the name under which it stands in `state_dict()["state"]`, beside what the base keeps there.
        memory: what it remembers, by parameter. It is not in the base's state: bases make their own at a parameter's
            first update, and take one that has any for a parameter they know.

    What is noted while gradients are computed is averaged over the parts of the step and over the processes, and
    becomes memory only if the step is not skipped: a gradient that is not finite changes it as little as the weights.
    """

    remembers: ClassVar[str]

    def __init__(self, base: torch.optim.Optimizer, **settings: Any) -> None:
        super().__init__(base, **settings)
        self.memory: dict[Tensor, Tensor] = {}
        self._noted: dict[Tensor, Tensor] = {}

    def remembered(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """What is remembered of some parameters, zeros where that is nothing."""
        return [self.memory[p] if p in self.memory else torch.zeros_like(p) for p in parameters]

    def note(self, parameters: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Keep what this part of the step has to say of some parameters; the tensors are ours from now on."""
        if self._parts == 0:
            self._noted = {}
        for parameter, tensor in zip(parameters, found, strict=True):
            noted = self._noted.get(parameter)
            self._noted[parameter] = tensor if noted is None else noted.add_(tensor)

    def renewed(self, old: list[Tensor], noted: list[Tensor]) -> list[Tensor]:
        """What is remembered from now on, of what was and of what this step has noted; by itself the latter."""
        return noted

    def after_update(self, skip: Tensor) -> None:
        super().after_update(skip)
        if not self._noted:
            return
        trainable = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        parameters = list(self._noted) if self.group.size == 1 else trainable  # the same ones in all processes
        noted = [self._noted[p] if p in self._noted else torch.zeros_like(p) for p in parameters]
        self._noted = {}
        torch._foreach_mul_(noted, 1 / self._parts)
        self.group.mean_(noted)
        skipped = (skip + found_inf(noted)) > 0
        old = self.remembered(parameters)
        for parameter, before, after in zip(parameters, old, self.renewed(old, noted), strict=True):
            self.memory[parameter] = torch.where(skipped, before, after)

    def state_dict(self) -> dict[str, Any]:
        packed = super().state_dict()
        numbers = {p: n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}
        for parameter, tensor in self.memory.items():
            number = numbers[parameter]
            packed["state"][number] = {**packed["state"].get(number, {}), self.remembers: tensor}
        return packed

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" not in state:  # the end of load_state_dict
            kept = state["state"]
            self.memory = {p: own.pop(self.remembers) for p, own in kept.items() if self.remembers in own}
            state = {**state, "state": defaultdict(dict, {p: own for p, own in kept.items() if own})}
        super().__setstate__(state)
