"""The common base of all methods that wrap an optimizer: when the base updates, and with which gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from bench.core.deprecated import renamed
from bench.core.process_group import ALONE
from bench.optim.base.closures import (
    Closure,
    OldGradient,
    check_accelerate,
    check_backward,
    check_base,
    detached,
    mean_loss,
    no_sync_refused,
)
from bench.optim.base.delegation import Delegating, quiet_global_hooks
from bench.optim.base.earlier import Earlier
from bench.optim.base.forward_state import ForwardState
from bench.optim.base.inputs import SameInputs, compiled_frames
from bench.optim.base.reductions import Reductions
from bench.optim.base.tensors import found_inf, gradients

Loss = TypeVar("Loss")


class OptimizerWrapper(Delegating):
    """A base optimizer that follows a gradient computed by the method from one or more evaluations of the closure.

    By itself it is the base optimizer, with clipping and with protection from non-finite gradients. SAM and its kin
    override `gradient`. It shares the base's `param_groups`, state and checkpoints (see `bench.optim.base.delegation`),
    so schedulers, checkpoints and the base see one lr and one momentum, before and after a `load_state_dict`.

    Args:
        base: a constructed torch optimizer.
        model: the module being trained; given it, a second evaluation leaves its buffers (batch-norm statistics)
            as the first one left them.
        clip_norm: largest norm of the gradient handed to the base; None leaves it alone. Nothing else is clipped.
        norm_group: the processes among which one model is split where no DTensor tells of it (pipeline stages, FSDP1):
            norms are those of all of it, and a step is skipped by all of them.

    Over several processes the gradient is averaged in one of two places. Where closures do it (those of `bench run` for
    the whole batch, or DistributedDataParallel's backward pass), every method sees what one process with the whole
    batch would. Where `group` is set to those processes, the method is applied in each of them to its own parts of the
    batch, and only what comes out is averaged, with the loss; a norm that is not finite in one is so in all.
    What a method remembers must come out the same in all processes: only the first one's is in a checkpoint (`bench
    run` checks that). Random numbers are each process's own.

    Raises:
        TypeError: base is no optimizer.
        ValueError: base needs a closure of its own (LBFGS, another method).

    Attributes:
        needs_closure: says that `step` needs a closure, so that the method cannot be the base of another one.
        takes_losses: whether closures return the loss of each example (of all, or of those whose numbers they are
            given) and leave backward to the method (see `bench.optim.esam.ESAM`).
        loss_is_at_w: whether the loss that `step` returns is that of the weights themselves.
        needs_averages: whether gradients have to be averaged over processes in every pass of a micro-batch, since what
            is made of them, or remembered, is not in proportion to them.
        first_pass: false only in later evaluations of the closure in a step. A closure that logs or counts asks for
            this, to do so once per step.
        total_steps: steps of the whole training, for methods that use shares of it; None: not given.
        seed: what a method draws by itself comes from this and the number of steps, alike in all processes.
        checked_steps: number of calls of `step` or `backward`, after the first, that check whether all passes call
            `model` with the same inputs (see `bench.optim.base.inputs`) and wait for the device to do so. 0: no check;
            it becomes 0 if the first call has compiled something.

    Nothing else in a step waits for the device when the base is a fused torch optimizer (sgd, adam, adamw here);
    with another base, one value per step is fetched to see whether the gradient is finite.
    """

    needs_closure: ClassVar[bool] = True
    takes_losses: ClassVar[bool] = False
    loss_is_at_w: ClassVar[bool] = True
    needs_averages: ClassVar[bool] = False

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        norm_group: ProcessGroup | None = None,
        **group_defaults: float,
    ) -> None:
        check_base(type(self).__name__, base)
        super().__init__(base, **group_defaults)
        self.model = model
        self.clip_norm = clip_norm
        self.reductions = Reductions(self._parameters, norm_group)
        self.state_of_forward = ForwardState()
        self.group = ALONE
        self.total_steps: int | None = None
        self.seed = 0
        self.checked_steps = 3
        self._checked_so_far = 0
        self.first_pass = True
        self._is_idle = False  # the first pass has called no backward
        self._has_gradient = False  # `.grad` is what `backward` left there
        self._earlier = Earlier([])  # what parts of this step have left so far
        self._parts = 0  # of this step that `gradient` has been asked for,
        self._parts_before = 0  # and those that are other processes'
        self._skipped: int | Tensor = 0

    def gradient(self, closure: Closure) -> tuple[Any, Tensor | None]:
        """Leave in `.grad` the gradient that the base will follow, with the weights restored.

        Returns:
            What the closure has returned at w, and the norm of a gradient that was needed on the way (None if none
            was): the update is skipped unless it is finite.
        """
        with self.last_pass():
            return closure(), None

    @contextmanager
    def last_pass(self) -> Iterator[None]:
        """Add the gradients of the pass in this context, the ones to follow, to those of earlier micro-batches.

        See `bench.optim.base.earlier.Earlier`. Not for a method that makes something else of these gradients.
        """
        with nullcontext() if self.needs_averages or self.group.size > 1 else self._earlier.while_adding():
            yield

    def after_update(self, skip: Tensor) -> None:
        """Finish the step after the base has updated, or has skipped its update where `skip` is 1."""
        if counter := self.keys.get("steps_done"):
            for group in self.param_groups:
                group[counter] += 1

    @property
    def steps_done(self) -> int:
        """Return the calls of `step` so far if the method asks for the count ("steps_done" in the groups), else 0."""
        counter = self.keys.get("steps_done")
        return int(self.param_groups[0][counter]) if counter else 0

    @property
    def skipped_steps(self) -> int:
        """Return the number of updates skipped, weights and base state untouched, for a gradient that is not finite."""
        return int(self._skipped)

    @overload  # type: ignore[override]
    def step(self, closure: Callable[..., Loss]) -> Loss: ...

    @overload
    def step(self, closure: Sequence[Closure]) -> Tensor: ...

    @overload
    def step(self, closure: None = None) -> None: ...

    @torch.no_grad()
    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Any:
        """Make one update.

        Args:
            closure: zeroes the gradients, runs forward and backward on one batch, returns the loss; evaluated as
                often as the method needs, each time on the same batch with the same random numbers. Or several, each
                over an equal part of the batch: the method is applied to each part by itself, and the update follows
                the mean of what they give (m-SAM: one perturbation for every m examples). None after `backward`.

        Returns:
            What the closure has returned at the weights before the update: the loss, or whatever else it returns, as
            torch's optimizers do. Over several parts the mean of their losses. None after `backward`.

        Raises:
            TypeError: there is neither a closure nor a gradient from `backward`, or there are both; one of several
                closures returns no number.
            RuntimeError: the closure has added to gradients that it should have zeroed, or has not called backward.
        """
        loss: Any = None
        norms_on_the_way = list[Tensor]()
        if self._has_gradient:
            # Lightning's manual optimization hands one over all the same, which computes nothing (but may clip).
            if closure is not None and (not callable(closure) or torch.enable_grad()(closure)() is not None):
                raise TypeError(f"{type(self).__name__}.step takes no closure after backward(closure)")
        elif closure is None or closure == []:
            if self._has_nothing_to_do():
                return self.make_state()
            raise TypeError(
                f"{type(self).__name__}.step needs a closure that zeroes the gradients, runs forward and backward, "
                "and returns the loss: optimizer.step(closure); or optimizer.backward(closure) before it, where a loop "
                "has loss.backward()"
            )
        else:
            check_accelerate(self)
            loss, norms_on_the_way = self._mean_gradient([closure] if callable(closure) else closure)
            loss, *norms_on_the_way = self.group.mean_gradients(self._parameters(), loss, *norms_on_the_way)
        self._has_gradient = False
        final = gradients(self._parameters())
        if self.clip_norm is not None:
            norm = self.reductions.norm(self.parameters_with_gradient(), final)
            if final:
                # 1e-6 and no comparison on the host, as torch.nn.utils.clip_grad_norm_.
                torch._foreach_mul_(final, torch.clamp(self.clip_norm / (norm + 1e-6), max=1.0))
            # Not finite if any gradient is not: one number to check instead of all gradients.
            final = [norm]
        skip = self.reductions.anywhere(found_inf([*final, *norms_on_the_way]))
        self._update_unless(skip)
        self.after_update(skip)
        return loss

    def make_state(self) -> None:
        """Make the base create its state, for torch.distributed.checkpoint to load into; change nothing else.

        It calls `step()` with gradients and lr set to 0, which no training loop does.
        """
        with quiet_global_hooks():
            self.base.step()

    def _has_nothing_to_do(self) -> bool:
        gradients_there = [p.grad for p in self._parameters() if p.requires_grad]
        if any(gradient is None for gradient in gradients_there) or any(group.get("lr") for group in self.param_groups):
            return False
        return not any(gradient.any() for gradient in gradients(self.parameters_with_gradient()))

    @torch.no_grad()
    def backward(self, closure: Callable[..., Loss]) -> Loss:
        """Add the method's gradient to `.grad`, as `loss.backward()` adds the plain one; `step()` then follows it.

        For loops that call backward and step in two places, with whatever they do between the two: accumulate over
        micro-batches (each with a perturbation of its own), unscale, clip.

        Args:
            closure: runs forward and backward on one (micro-)batch, returns the loss; it need not zero gradients. A
                loss may be scaled, by a GradScaler or by 1 / (number of micro-batches): SAM's perturbation does not
                depend on it, and the gradient is scaled alike (not so with `ascent_decay`, nor where a method remembers
                gradients of other steps: LookSAM, Friendly-SAM). A GradScaler unscales, skips and backs off as ever; a
                gradient that is not finite on the way makes the one that is left not finite too.

        Returns:
            What the closure has returned at the weights, detached: the loss, scaled if the closure's is.

        Gradients of earlier micro-batches are set aside while this one's perturbation is found. Where
        DistributedDataParallel averages this pass, all processes share one perturbation. Under `no_sync` (the default
        of accelerate and Hugging Face's Trainer for all but a step's last micro-batch) each process has its own, and
        the last micro-batch averages the sum. Methods with `needs_averages` (GSAM and LookSAM, for example) need the
        average in every pass: accelerate's `sync_each_batch`.

        Raises:
            RuntimeError: the closure has not called backward, or is under `no_sync` where the method cannot be.
        """
        if "base" not in vars(self):  # Lightning's and Fabric's wrappers are of our class, and have none of our state
            return self.optimizer.backward(closure)  # type: ignore[attr-defined, no-any-return]
        # Without gradients this is the first micro-batch of a step, and counting starts again.
        self._parts = self._parts if self.has_gradient() else 0
        self._earlier = Earlier(self._parameters())
        loss, norm = self._evaluated(closure)
        self._tell_of(norm)
        self._earlier.put_back()
        self._has_gradient = True
        returned: Loss = detached(loss)
        return returned

    def _tell_of(self, norm: Tensor | None) -> None:
        """Make the gradients non-finite if an intermediate norm, or a gradient in another part of the model, is.

        For whoever looks at gradients before `step` does: a GradScaler of this process's own.
        """
        parameters = self.parameters_with_gradient()
        here = gradients(parameters)
        if self.reductions.group is not None:
            bad = self.reductions.anywhere(found_inf(here if norm is None else [*here, norm]))
            norm = torch.where(bad > 0, torch.inf, 0.0)
        if norm is not None and parameters:
            here[0].mul_(1 + 0 * norm)  # 1 * g is g to the bit

    def _evaluated(self, closure: Closure) -> tuple[Any, Tensor | None]:
        """Call `gradient` with a checked closure; `first_pass` tells the closure which evaluation it is."""
        # What a stage of a pipeline is called with comes from weights that have moved.
        is_stage = self.reductions.group is not None
        checked = 0 < self._checked_so_far <= self.checked_steps and not self.takes_losses and not is_stage
        # A compiled model would be compiled once more for the hooks: the first call shows whether there is one.
        compiled = compiled_frames() if self._checked_so_far == 0 else None
        inputs = SameInputs(f"{type(self).__name__}.step", self.model if checked else None)
        self._checked_so_far += 1
        self._is_idle = False

        def evaluation(*examples: Tensor, grad: bool = True) -> Any:
            refused = no_sync_refused(type(self).__name__) if self.needs_averages else nullcontext()
            try:
                with torch.set_grad_enabled(grad), refused, inputs.looked_at():
                    returned = closure(*examples)
                if not self.takes_losses:
                    check_backward(f"{type(self).__name__}.step", returned, self._parameters())
                self.state_of_forward.see(returned, self._parameters())
                return returned
            finally:
                self.first_pass = False

        try:
            return self.gradient(evaluation)
        finally:
            self.first_pass = True
            self._parts += 1
            if compiled is not None and compiled_frames() > compiled:
                self.checked_steps = 0

    def _checked(self, closure: Closure) -> Closure:
        """Wrap the closure in a check that it does not add to gradients that existed before the step."""
        old: OldGradient | None = OldGradient(self._parameters())

        def checked() -> Any:
            nonlocal old
            returned = closure()
            kept = old is not None and old.is_kept()
            self._is_idle = old is not None and kept and old.is_left_on_purpose(returned)
            if kept and not self._is_idle:
                raise RuntimeError(
                    f"the closure of {type(self).__name__}.step has added to existing gradients: it must zero them "
                    "first with optimizer.zero_grad(). To accumulate over micro-batches: optimizer.backward(closure) "
                    "for each, then optimizer.step()"
                )
            old = None  # once is enough: later evaluations of a step start from none
            return returned

        return checked

    def _mean_gradient(self, closures: Sequence[Closure]) -> tuple[Any, list[Tensor]]:
        """Leave the mean of the parts' gradients in `.grad`; return the mean loss and the intermediate norms."""
        losses, norms = [], []
        self._parts, self._parts_before = 0, self.group.rank * len(closures)
        old_outside = OldGradient(self._outside() if len(closures) > 1 else [])
        if not self.takes_losses:
            closures = [self._checked(closures[0]), *closures[1:]]
        for number, closure in enumerate(closures):
            self._earlier = Earlier(self._parameters() if number else [])
            earlier_outside = Earlier(self._outside() if number else [])
            loss, norm = self._evaluated(closure)
            losses.append(detached(loss))
            norms += [] if norm is None else [norm]
            if len(closures) == 1:
                return loss, norms
            self._earlier.put_back()
            earlier_outside.put_back()
            if number == 0 and old_outside.is_kept():
                raise RuntimeError(
                    f"{type(self).__name__}.step over several closures leaves the mean of their gradients: zero the "
                    "gradients of parameters outside its param_groups before the step, too"
                )
        everything = [*self._parameters(), *self._outside()]
        torch._foreach_mul_([p.grad for p in everything if p.grad is not None], 1 / len(closures))
        return mean_loss(f"{type(self).__name__}.step", losses), norms

    def _outside(self) -> list[Tensor]:
        """Return tensors outside the param_groups that may get gradients."""
        return self.state_of_forward.outside(self.model, self._parameters())

    def _update_unless(self, skip: Tensor) -> None:
        """Make the base's step unless `skip` is 1; the device decides if the base can do that."""
        base = self.base
        # Fused optimizers take `found_inf`, as from a GradScaler. They make their state on the first step even if they
        # skip it, uninitialised: that step must be decided here. So must those of groups that are no longer fused,
        # since a checkpoint says which are: they would refuse it.
        is_known = base.state.__contains__
        started = all(map(is_known, self._parameters())) or all(map(is_known, self.parameters_with_gradient()))
        stateless = all(group.get("momentum") == 0 for group in self.param_groups)
        takes_it = getattr(base, "_step_supports_amp_scaling", False)
        takes_it = takes_it and all(group.get("fused", True) for group in self.param_groups)
        if takes_it and (started or stateless):
            base.found_inf = skip  # type: ignore[attr-defined]
            try:
                with quiet_global_hooks():
                    base.step()
            finally:
                del base.found_inf  # type: ignore[attr-defined]
            self._skipped = self._skipped + skip
        elif skip.item():
            self._skipped = self._skipped + 1
        else:
            with quiet_global_hooks():
                base.step()

    def nothing_to_follow(self) -> bool:
        """Return whether the first pass has computed no gradient, so that a second pass would be useless.

        Lightning's closures compute none if `training_step` returns None, and in the epoch of its
        StochasticWeightAveraging for batch norm. With several processes others may have some, and wait for this one.
        """
        alone = self.reductions.group is None and not (dist.is_available() and dist.is_initialized())
        return self._is_idle or (alone and not self.has_gradient())

    def has_gradient(self) -> bool:
        """Return whether any parameter has a gradient."""
        return any(p.grad is not None for p in self._parameters())

    def parameters_with_gradient(self) -> list[nn.Parameter]:
        return [p for p in self._parameters() if p.grad is not None]


if not TYPE_CHECKING:  # to type checkers, every misspelt name would be there
    __getattr__ = renamed(__name__, {"Method": "OptimizerWrapper"})
