"""An optimizer around another one, with which it shares parameter groups, state and checkpoints."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import optimizer as of_torch


class Delegating(torch.optim.Optimizer):
    """An optimizer around another one, its base, of which it shares everything that can be shared.

    One rule: what is public and not defined by the method itself is the base's. `param_groups` and `state` are the
    same objects, always. `state_dict`, `load_state_dict`, `zero_grad`, `add_param_group`, `train` and `eval` call the
    base's, so a base with its own way of saving (Lookahead, an 8-bit AdamW, ZeroRedundancyOptimizer) keeps it. All
    other attributes (`consolidate_state_dict`, `sync_lookahead`) are looked up in the base. To set one, set it there.

    Args:
        base: a constructed optimizer.
        group_defaults: the method's settings, which stand in each of the param_groups under their `keys`.

    Attributes:
        keys: the names under which the method's own settings ("rho", "steps_done") stand in the param_groups. They are
            other ones ("sam_rho") where the base has a setting of that name itself, as Adadelta has a rho.
    """

    def __init__(self, base: torch.optim.Optimizer, **group_defaults: float) -> None:
        self.keys = {name: _free_key(name, type(self).__name__, base) for name in group_defaults}
        self._group_defaults = {self.keys[name]: value for name, value in group_defaults.items()}
        # Optimizer.__init__ would make groups and state of its own; __setstate__ makes only the hooks.
        super().__setstate__({"base": base, "defaults": {**base.defaults, **self._group_defaults}})
        self.base: torch.optim.Optimizer
        for group in self.param_groups:
            self._fill(group)

    # ---- one list of groups, one state ------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)
        self._fill(self.param_groups[-1])

    def _fill(self, group: dict[str, Any]) -> None:
        for name, value in self._group_defaults.items():
            group.setdefault(name, value)

    def _parameters(self) -> list[nn.Parameter]:
        """Return all parameters as a read-only list: with a single group it is the group's own list, not a copy."""
        if len(self.param_groups) == 1:
            own: list[nn.Parameter] = self.param_groups[0]["params"]
            return own
        return list(chain.from_iterable(group["params"] for group in self.param_groups))

    def zero_grad(self, set_to_none: bool | None = None) -> None:
        """Zero gradients as the base does, with the base's own default for `set_to_none`."""
        if set_to_none is None:
            self.base.zero_grad()
        else:
            self.base.zero_grad(set_to_none=set_to_none)

    # ---- checkpoints: the base's, with the method's settings in its groups ------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state_dict; the method's settings are in its groups."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        state_dict = self._save()
        for after in self._optimizer_state_dict_post_hooks.values():
            state_dict = _or_else(after(self, state_dict), state_dict)
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state_dict of this method or of its bare base; settings missing from it stay as they are."""
        state_dict = state_dict.copy()
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = _or_else(before(self, state_dict), state_dict)
        self._load(state_dict)
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _save(self) -> dict[str, Any]:
        return self.base.state_dict()

    def _load(self, state_dict: dict[str, Any]) -> None:
        settings = [{key: group[key] for key in self._group_defaults} for group in self.param_groups]
        if isinstance(state := state_dict.get("state"), dict):
            state_dict = {**state_dict, "state": dict(state)}  # ZeroRedundancyOptimizer writes into it
        self.base.load_state_dict(state_dict)
        for group, own in zip(self.param_groups, settings, strict=True):
            for key, value in own.items():
                group.setdefault(key, value)
            self._fill(group)

    # ---- a base that keeps other weights for evaluation -------------------------------------------------------

    @property
    def keeps_evaluation_weights(self) -> bool:
        """Return whether the base has other weights for evaluation, which `eval` puts in and `train` takes out."""
        return all(callable(getattr(self.base, name, None)) for name in ("train", "eval"))

    def train(self) -> None:
        """Make a base that keeps other weights for evaluation (schedule-free) put in those for training."""
        if self.keeps_evaluation_weights:
            self.base.train()  # type: ignore[attr-defined]
            self._drop_empty_state()

    def eval(self) -> None:
        """Make a base that keeps other weights for evaluation put them in; other bases do nothing."""
        if self.keeps_evaluation_weights:
            self.base.eval()  # type: ignore[attr-defined]
            self._drop_empty_state()

    def _drop_empty_state(self) -> None:
        # schedulefree's train() and eval() leave an empty entry per weight. torch.distributed.checkpoint takes it for
        # the state of the first step, makes none of its own, and then loads nothing into it without a word.
        for weight in [weight for weight, kept in self.base.state.items() if not kept]:
            del self.base.state[weight]

    # ---- all the rest -----------------------------------------------------------------------------------------

    # Hidden from type checkers: to them, with it, every misspelt attribute would be there.
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # What is private is each optimizer's own: torch keeps hooks there, and whether `step` takes found_inf.
            base = self.__dict__.get("base")
            if base is None or name.startswith("_") or not hasattr(base, name):
                owners = " and its base ".join(type(one).__name__ for one in (self, base) if one is not None)
                raise AttributeError(f"{owners} have no attribute {name!r}", name=name, obj=self)
            return getattr(base, name)

    def __getstate__(self) -> dict[str, Any]:
        hooks = {name for name in self.__dict__ if name.startswith("_optimizer_")}
        own = {name: value for name, value in self.__dict__.items() if name not in hooks}
        own.pop("step", None)  # a scheduler's patch of this very object
        return own


def within(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """Yield an optimizer and all optimizers nested inside it, the outermost first."""
    yield optimizer
    for part in vars(optimizer).values():
        if isinstance(part, torch.optim.Optimizer):
            yield from within(part)


def _free_key(name: str, method: str, base: torch.optim.Optimizer) -> str:
    """Return a key for the param_groups that neither the base nor an optimizer inside the base uses."""
    taken = {key for optimizer in within(base) for key in optimizer.defaults}
    return f"{method.lower()}_{name}" if name in taken else name


def _or_else(result: dict[str, Any] | None, otherwise: dict[str, Any]) -> dict[str, Any]:
    return otherwise if result is None else result


@contextmanager
def quiet_global_hooks() -> Iterator[None]:
    """Suppress torch's global step hooks in this context: they already fire for the method, once per step."""
    every: list[dict[int, Any]] = [of_torch._global_optimizer_pre_hooks, of_torch._global_optimizer_post_hooks]
    kept = [dict(hooks) for hooks in every]
    for hooks in every:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in zip(every, kept, strict=True):
            hooks.update(own)
