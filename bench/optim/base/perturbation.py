"""The common part of the SAM family: where, when and how far weights are moved, and their exact return."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.deprecated import renamed
from bench.core.seeding import derive
from bench.optim.base.closures import Closure, check_base
from bench.optim.base.options import AscentOptions, checked
from bench.optim.base.schedule import lr_factor
from bench.optim.base.sharded import any_sharded, reshard
from bench.optim.base.side_effects import Generator, clear_caches, rewinder
from bench.optim.base.sparse import Rows, with_sparse_gradients
from bench.optim.base.tensors import as_real, gradients
from bench.optim.base.weight_swap import WeightSwap
from bench.optim.base.wrapper import OptimizerWrapper


@dataclass(frozen=True)
class PerturbedGroup:
    """Parameters of one group that are perturbed, with the group's rho at this step and its weight decay.

    Attributes:
        sign: -1 where the base maximizes: what is worst for it is down the gradient.
    """

    parameters: list[Tensor]
    rho: float | Tensor
    weight_decay: float
    sign: int


class PerturbedOptimizer(OptimizerWrapper):
    """A method that takes its gradient at weights moved by rho along a direction; by default, the gradient's.

    Subclasses say which direction (`ascent`), how far (`radius`), and what to make of the two gradients (`combine`).

    Args:
        base: a constructed torch optimizer; its param_groups are shared, "rho" in a group overrides `rho` there
            ("sam_rho" does where the base has a "rho" of its own: see `keys`).
        rho: length of the perturbation, in the norm of the weights; 0 is the base optimizer.
        model: the module being trained. Given it, batch-norm statistics (all buffers) move once a step, as in a
            plain step; without it they move in every pass. perturb_only needs it.
        clip_norm: largest norm of the final gradient; the ascent is never clipped.
        total_steps: steps of the whole training, for options that are shares of it; `bench run` knows it.
        norm_group: as of `bench.optim.base.wrapper.OptimizerWrapper`.
        options: where and when to perturb: `bench.optim.base.options.AscentOptions`.

    Raises:
        TypeError: base is no optimizer, or takes gradients of single examples (Opacus) where the method makes one of
            several passes; or there is no such option.
        ValueError: rho or an option is impossible, perturb_only finds nothing to perturb, or, at the first step, an
            option needs total_steps and there is none.

    Schedules and periods go by the number of steps, which is kept in the param_groups ("steps_done"), so that it is
    saved and loaded with them; skipped steps count. All of it is arithmetic on the host: nothing waits for the device.

    Attributes:
        kept_settings: numbers of a method's own by name, with what they begin at: they stand in the param_groups as
            rho does, so that they are saved and loaded with them.
        generators: random generators of the closure's own (torch's, numpy's or Python's), which are rewound before a
            second pass as the global ones are: `optimizer.generators.append(generator)`.
        makes_gradient: says that the base follows another gradient than that of the last pass.
    """

    needs_steps: ClassVar[bool] = False
    makes_gradient: ClassVar[bool] = False
    kept_settings: Mapping[str, float] = {}
    keeps_first_gradient: ClassVar[bool] = False
    takes_sparse: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # `combine` need not be linear in the gradients, so it must see the mean over all processes in each pass.
        combines = cls.combine is not PerturbedOptimizer.combine
        cls.needs_averages = cls.needs_averages or combines
        cls.makes_gradient = cls.makes_gradient or combines

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        rho: float,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        name = type(self).__name__
        check_base(name, base)  # before options, of which a call like pytorch_optimizer's has some of the base's
        if self.makes_gradient and hasattr(type(base), "grad_samples"):
            raise TypeError(
                f"{name} makes a gradient of those of several passes, and {type(base).__name__} follows those of "
                "single examples in the last one, so it would not see it: use SAM or another method that changes only "
                "where the last pass is made"
            )
        given = checked(name, options)
        self.rho_schedule = given["rho_schedule"] if given["rho_schedule"] != "constant" else None
        self.rho_end = given["rho_end"] or 0.0
        self.lr_min = given["lr_min"]
        self.perturb_from = given["perturb_from"] or 0.0
        self.perturb_until = given["perturb_until"] or 1.0
        self.perturb_every = given["perturb_every"] or 1
        self.ascent_decay = bool(given["ascent_decay"])
        self.m = given["m"]
        self.perturbed: set[nn.Parameter] | None = None
        if given["perturb_only"] is not None:
            self.perturbed = normalisation_parameters(model, name, required=norm_group is None)
        scheduled = self.rho_schedule in ("linear", "cosine") or self.perturb_from > 0 or self.perturb_until < 1
        self._needs_total = scheduled
        # Only where it is needed: what is in the groups is in every checkpoint.
        counting = {"steps_done": 0} if scheduled or self.perturb_every > 1 or self.needs_steps else {}
        kept = {"rho": rho, **self.kept_settings, **counting}
        super().__init__(base, model=model, clip_norm=clip_norm, norm_group=norm_group, **kept)
        self.total_steps = total_steps
        self.generators: list[Generator] = []

    def _fill(self, group: dict[str, Any]) -> None:
        super()._fill(group)
        key = self.keys["rho"]
        if not group[key] >= 0:
            raise ValueError(f"{type(self).__name__}: {key} must be >= 0, got {group[key]}")

    def _save(self) -> dict[str, Any]:
        state_dict = super()._save()
        if not self.kept_settings or "param_groups" not in state_dict:  # of a base with a form of its own
            return state_dict
        # Numbers, as in a new optimizer: torch.distributed.checkpoint loads no tensor where it finds none.
        keys = [self.keys[name] for name in self.kept_settings]
        numbers = [{key: float(group[key]) for key in keys} for group in self.param_groups]
        groups = [group | own for group, own in zip(state_dict["param_groups"], numbers, strict=True)]
        return {**state_dict, "param_groups": groups}

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        if not self.is_due():
            return super().gradient(closure)
        rewind = self.rewinder()
        loss = closure()
        if self.nothing_to_follow() or not self.goes_on():
            return loss, None
        # Before the ascent, which overwrites the gradients with e.
        first = self._copied_gradients() if self.keeps_first_gradient else {}
        # On exit the weights come back first, then the model's state as the first pass has left it.
        with self.kept_state(), self.at_the_worst_point() as norm, self.last_pass():
            rewind()
            closure()
        # With a `reductions.group` every process calls `combine`, which exchanges sums, even one without a gradient.
        if first or self.has_gradient() or self.reductions.group is not None:
            self.combine(first)
        return loss, norm

    # ---- what makes one method another ------------------------------------------------------------------------

    def ascent(self, weights: list[Tensor]) -> Tensor:
        """Overwrite the gradients of `weights` with the ascent direction, and return the norm to divide it by."""
        return self.reductions.norm(weights, gradients(weights))

    def radius(self, group: PerturbedGroup, norm: Tensor) -> float | Tensor:
        """Return the length of e in a group, given the norm of the ascent direction; by default the group's rho."""
        return group.rho

    def combine(self, first: dict[Tensor, Tensor]) -> None:
        """Overwrite the gradients found at the moved weights with the gradients that the base will follow.

        Args:
            first: the gradients at w, where `keeps_first_gradient` asks for them.
        """

    # ---- when -------------------------------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Return whether this step perturbs anything."""
        since = self.steps_inside()
        return since is not None and since % self.perturb_every == 0 and self._moves()

    def goes_on(self) -> bool:
        """Return whether a second pass follows, now that the first one's gradients are there; always, by default."""
        return True

    def steps_inside(self) -> int | None:
        """Return the steps since perturbing began; None before that and after its end."""
        if self._needs_total and self.total_steps is None:
            raise ValueError(
                f"{type(self).__name__}: rho_schedule, perturb_from, perturb_until and AE-SAM's threshold go by shares "
                "of training: give the length of training, total_steps=..."
            )
        total, done = self.total_steps or 1, self.steps_done
        # Rounded first: 11/20 of 200 steps comes out as 110.00000000000001, and is 110.
        begin, end = (math.ceil(round(share * total, 6)) for share in (self.perturb_from, self.perturb_until))
        # perturb_until = 1 has no end: a loop may take more steps than its total_steps.
        return done - begin if begin <= done and (done < end or self.perturb_until == 1) else None

    def _moves(self) -> bool:
        """Return whether any rho is not 0, without waiting for a rho that lies on a device."""
        return any(isinstance(rho, Tensor) or rho != 0 for rho in map(self.rho_now, self.param_groups))

    def rho_now(self, group: dict[str, Any]) -> float | Tensor:
        """Return a group's rho at this step."""
        rho = group[self.keys["rho"]]
        if self.rho_schedule is None:
            return rho  # type: ignore[no-any-return]
        factor: float | Tensor
        if self.rho_schedule == "lr":  # as far down as lr is from its peak, which schedulers keep in the group
            lowest = group.get("min_lr", 0.0) if self.lr_min is None else self.lr_min
            peak = group.get("max_lr", group.get("initial_lr", group["lr"]))
            factor = _share_of_the_way(group["lr"], lowest, peak)
        else:
            factor = lr_factor(self.steps_done, self.total_steps or 1, 0, self.rho_schedule)
        return self.rho_end + (rho - self.rho_end) * factor  # type: ignore[no-any-return]

    # ---- where ------------------------------------------------------------------------------------------------

    def movable(self, has: Callable[[Tensor], bool] | None = None) -> list[PerturbedGroup]:
        """Return the parameters to perturb, group by group; by default only those with a gradient."""
        groups = []
        for group in self.param_groups:
            here = group["params"] if self.perturbed is None else [p for p in group["params"] if p in self.perturbed]
            here = [p for p in here if (p.grad is not None if has is None else has(p))]
            if here:
                sign = -1 if group.get("maximize") else 1
                groups.append(PerturbedGroup(here, self.rho_now(group), group.get("weight_decay", 0.0), sign))
        return groups

    @contextmanager
    def at_the_worst_point(self) -> Iterator[Tensor]:
        """Move the weights along the ascent direction; yield the norm, which must be finite.

        Gradients are listed in functions of their own: a list kept here would keep e alive through the second pass.
        """
        groups = self.movable()
        sparse = {p: Rows(p) for group in groups for p in with_sparse_gradients(group.parameters)}
        if sparse and not self.takes_sparse:
            raise ValueError(f"{type(self).__name__} takes no sparse gradients; SAM does")
        # From here on the copies of the rows stand for their tables, so that all code below sees dense parameters.
        if sparse:
            dense = [[sparse[p].copy if p in sparse else p for p in group.parameters] for group in groups]
            groups = [replace(group, parameters=parameters) for group, parameters in zip(groups, dense, strict=True)]
        if self.ascent_decay:
            for group in groups:
                weights = [as_real(p) for p in group.parameters]
                torch._foreach_add_(gradients(group.parameters), weights, alpha=group.sign * group.weight_decay)
        norm = self.ascent([p for group in groups for p in group.parameters])

        def e(group: PerturbedGroup) -> tuple[list[Tensor], Tensor]:
            return gradients(group.parameters), group.sign * self.radius(group, norm) / (norm + 1e-12)

        with self.moved(groups, e, sparse.values()):
            for parameter in self._parameters():
                parameter.grad = None  # frees e; and g' must not be added to it if the closure forgets to zero
            for rows in sparse.values():
                rows.copy.grad = None
            yield norm

    @contextmanager
    def moved(
        self,
        groups: list[PerturbedGroup],
        e: Callable[[PerturbedGroup], tuple[list[Tensor], Tensor | float]],
        sparse: Collection[Rows] = (),
    ) -> Iterator[None]:
        """Add e to the weights, and restore the exact bits on exit, also after an error.

        Args:
            e: returns a group's direction, whose tensors are overwritten, and the factor on that direction.
            sparse: rows of tables, whose copies are among the weights.
        """
        moved = WeightSwap()
        try:
            for group in groups:
                moved.add(group.parameters, *e(group))
            for rows in sparse:
                # The copies now hold w + e: the tables get them.
                rows.put_back()
            clear_caches()
            self._reshard()
            yield
        finally:
            # First the weights and the copies of rows get their bits back, then the tables get those of the copies.
            moved.put_back()
            for rows in sparse:
                rows.put_back()
            self._reshard()
            clear_caches()

    def _reshard(self) -> None:
        if any_sharded(p for group in self.param_groups for p in group["params"]):
            reshard(self.model)

    def rewinder(self) -> Callable[..., None]:
        """Return a function that restores the present random state and model state before a later pass.

        It is to be called within `kept_state`, with last=False where it will be called again.
        """
        self.state_of_forward.note(self.model, self._parameters())
        rewind_numbers = rewinder(self._parameters(), self.generators)

        def rewind(last: bool = True) -> None:
            rewind_numbers()
            self.state_of_forward.rewind(last)

        return rewind

    def kept_state(self) -> AbstractContextManager[None]:
        """Undo changes of later passes to the model's state: see `bench.optim.base.forward_state.ForwardState`."""
        return self.state_of_forward.kept(self.model, self._parameters())

    def generator(self, device: str | None = None) -> torch.Generator:
        """Return the random generator for this part of this step's batch, the same in every process.

        Args:
            device: where they are drawn; None: where the parameters are.
        """
        # One number for each part of each step: the step above bit 32, the part of the batch below it.
        place = (self.steps_done << 32) + self._parts_before + self._parts
        device = device or next(p.device for group in self.param_groups for p in group["params"])
        return torch.Generator(device).manual_seed(derive(self.seed, "direction", place))

    def with_first(self, first: dict[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters with a gradient in either pass, and their gradients at w, 0 if one is missing."""
        everything = [p for group in self.param_groups for p in group["params"]]
        parameters = [p for p in everything if p.grad is not None or p in first]
        # Stochastic depth may use a parameter in one of the two passes only: its other gradient is 0.
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return parameters, [first[p] if p in first else torch.zeros_like(as_real(p)) for p in parameters]

    def _copied_gradients(self) -> dict[Tensor, Tensor]:
        parameters = self.parameters_with_gradient()
        return {p: g.clone() for p, g in zip(parameters, gradients(parameters), strict=True)}


def _share_of_the_way(lr: float | Tensor, lowest: float, peak: float | Tensor) -> float | Tensor:
    """Return (lr - lowest) / (peak - lowest), at least 0; 1 if peak and lowest are equal."""
    if isinstance(lr, Tensor) or isinstance(peak, Tensor):  # on a device, which is not waited for
        way = torch.as_tensor(peak - lowest, dtype=torch.float32)
        return torch.where(way > 0, (lr - lowest) / way, 1.0).clamp(min=0.0)
    return max(0.0, (lr - lowest) / (peak - lowest)) if peak > lowest else 1.0


NORMALISATION = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
)
"""torch's layers; timm's BatchNormAct2d and its like are subclasses of them under other names."""


def normalisation_parameters(model: nn.Module | None, name: str, *, required: bool = True) -> set[nn.Parameter]:
    """Return the scales and shifts of normalisation layers.

    These are torch's layers, and others whose class name ends in "Norm" ("LlamaRMSNorm").

    Args:
        required: whether there must be some, as in a model that is not one stage of several.

    Raises:
        ValueError: there is no model, or the required parameters are missing.
    """
    parameters: set[nn.Parameter] = set()
    for module in [] if model is None else model.modules():
        if isinstance(module, NORMALISATION) or type(module).__name__.rstrip("123d").endswith("Norm"):
            parameters |= set(module.parameters(recurse=False))
    if model is None or (required and not parameters):
        raise ValueError(
            f'{name}: perturb_only="norm" needs '
            + ("model=..., to find the normalisation layers" if model is None else "normalisation layers")
            + ("" if model is None else f", but {type(model).__name__} has none")
        )
    return parameters


if not TYPE_CHECKING:  # to type checkers, every misspelt name would be there
    __getattr__ = renamed(__name__, {"Perturbing": "PerturbedOptimizer", "Movable": "PerturbedGroup"})
