"""A method's own memory, one tensor per parameter, which is saved, loaded and skipped as the base's state is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from bench.core.deprecated import renamed
from bench.optim.base.sharded import part_of, with_part
from bench.optim.base.tensors import as_real, found_inf
from bench.optim.base.wrapper import OptimizerWrapper


class StatefulWrapper(OptimizerWrapper):
    """A method that keeps one tensor per parameter from one step to the next.

    Attributes:
        remembers: the name under which it stands in `state_dict()["state"]`, beside what the base keeps there.
        memory: what it remembers, by parameter; of complex ones the real and imaginary parts. It is not in the base's
            state: a base makes its own at a parameter's first update, but not where it finds any entry already.

    What is noted while gradients are computed is averaged over the parts of the step and over the processes, and
    becomes memory only if the step is not skipped: a gradient that is not finite changes it as little as the weights.
    """

    remembers: ClassVar[str]

    def __init__(self, base: torch.optim.Optimizer, **settings: Any) -> None:
        super().__init__(base, **settings)
        self.memory: dict[Tensor, Tensor] = {}
        self._noted: dict[Tensor, Tensor] = {}
        self._saves_all = False  # also what stands for the memory of parameters that have none,
        self._shows_all = False  # and `state` has it, too

    def remembered(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the remembered tensors of some parameters."""
        return [self.memory[p] if p in self.memory else self.nothing_of(p) for p in parameters]

    def nothing_of(self, parameter: Tensor) -> Tensor:
        """Return the initial memory of a parameter: zeros."""
        return torch.zeros_like(as_real(parameter))

    def note(self, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Add tensors to what this step notes of some parameters; the caller must not use the tensors afterwards."""
        if self._parts == 0:
            self._noted = {}
        for parameter, tensor in zip(parameters, tensors, strict=True):
            noted = self._noted.get(parameter)
            self._noted[parameter] = tensor if noted is None else noted.add_(tensor)

    def renewed(self, old: list[Tensor], noted: list[Tensor]) -> list[Tensor]:
        """Return the tensors to remember from now on, given the old ones and those noted in this step.

        The default is those noted in this step.
        """
        return noted

    def after_update(self, skip: Tensor) -> None:
        super().after_update(skip)
        self._shows_all = False
        if not self._noted and self.reductions.group is None:
            return
        trainable = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        parameters = list(self._noted) if self.group.size == 1 else trainable  # the same ones in all processes
        noted = [self._noted[p] if p in self._noted else torch.zeros_like(as_real(p)) for p in parameters]
        self._noted = {}
        if noted:
            torch._foreach_mul_(noted, 1 / self._parts)
            self.group.mean_(noted)
        skipped = (skip + self.reductions.anywhere(found_inf(noted))) > 0
        if not noted:  # none here: what there is may be in other processes
            return
        old = self.remembered(parameters)
        for parameter, before, after in zip(parameters, old, self.renewed(old, noted), strict=True):
            self.memory[parameter] = torch.where(skipped, before, after)

    def make_state(self) -> None:
        super().make_state()
        self._saves_all = self._shows_all = True  # torch.distributed.checkpoint loads what it finds here

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """Return the base's state; while a checkpoint is loaded into a new optimizer, the memory is in it too."""
        if not self._shows_all:
            return self.base.state
        whole = defaultdict(dict, {p: dict(kept) for p, kept in self.base.state.items()})
        for parameter, tensor in self._saved_memory().items():
            whole[parameter][self.remembers] = tensor
        return whole

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    def _saved_memory(self) -> dict[Tensor, Tensor]:
        memory = dict(self.memory)
        if self._saves_all:
            memory |= {p: self.nothing_of(p) for p in self._parameters() if p.requires_grad and p not in memory}
        return {parameter: with_part(parameter, tensor) for parameter, tensor in memory.items()}

    def _save(self) -> dict[str, Any]:
        state_dict = super()._save()
        memory = self._saved_memory()
        if not memory:
            return state_dict
        numbers: dict[Tensor, int] = {parameter: number for number, parameter in enumerate(self._parameters())}
        state = dict(state_dict.get("state", {}))
        for parameter, tensor in memory.items():
            number = numbers[parameter]
            state[number] = {**(state.get(number) or {}), self.remembers: tensor}
        return {**state_dict, "state": state}

    def _load(self, state_dict: dict[str, Any]) -> None:
        groups = state_dict.get("param_groups")
        numbers = range(len(self._parameters())) if groups is None else (n for group in groups for n in group["params"])
        parameters = dict(zip(numbers, self._parameters(), strict=False))  # the base tells where there are too many
        memory, of_base = dict[Tensor, Tensor](), dict[Any, Any]()
        for number, kept in state_dict.get("state", {}).items():
            if isinstance(kept, dict) and self.remembers in kept:
                kept = dict(kept)
                like = as_real(parameters[number])
                part = part_of(kept.pop(self.remembers), parameters[number])
                memory[parameters[number]] = part.to(like.device, like.dtype, copy=True)
                if not kept:
                    continue
            of_base[number] = kept
        super()._load({**state_dict, "state": of_base})
        self.memory, self._shows_all = memory, False


if not TYPE_CHECKING:  # to type checkers, every misspelt name would be there
    __getattr__ = renamed(__name__, {"Remembering": "StatefulWrapper"})
