"""What every method that wraps an optimizer has in common: whose state is whose, and when an update happens."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_

from bench.group import ALONE
from bench.optim.sparse import coalesced, is_sparse

Closure = Callable[..., Tensor]


class Method(torch.optim.Optimizer):
    """A base optimizer, fed a gradient that the method makes from as many evaluations of the closure as it needs.

    By itself it is the base optimizer, with clipping and with protection from non-finite gradients. SAM and its kin
    override `gradient`. It *shares* the base's `param_groups` and `state` (they are the same objects, always), so
    schedulers, checkpoints and the base see one lr and one momentum, before and after a `load_state_dict`.

    Args:
        base: a constructed torch optimizer.
        model: the module being trained; given it, a second evaluation leaves its buffers (batch-norm statistics)
            as the first one left them.
        clip_norm: largest norm of the gradient handed to the base; None leaves it alone. Nothing else is clipped.

    Over several processes the gradient is averaged in one of two places. Where closures do it (those of `bench run` for
    the whole batch, or DistributedDataParallel's backward pass), every method sees what one process with the whole
    batch would. Where `group` is set to those processes, the method is applied in each of them to its own parts of the
    batch, and only what comes out is averaged, with the loss; a norm that is not finite in one is so in all.
    What a method remembers must come out the same in all processes: only the first one's is in a checkpoint (`bench
    run` checks that). Random numbers are each process's own.

    Attributes:
        takes_losses: whether closures are to return the losses of single examples, and leave backward to the method:
            those of the examples they are told, by default of all (see `bench.optim.esam.ESAM`).
        loss_is_at_w: whether the loss that `step` returns is that of the weights themselves.
        first_pass: whether the closure is being evaluated for the first time in a step, or not at all. A closure that
            logs or counts does so once a step if it asks.
        total_steps: steps of the whole training, for methods that go by shares of it; None: nobody has said.
        seed: what a method draws by itself comes from this and the number of steps, alike in all processes.

    Nothing in a step waits for the device when the base is a fused torch optimizer (as all of this package are); with
    another base, one value a step is fetched to see whether the gradient is finite.
    """

    takes_losses: ClassVar[bool] = False
    loss_is_at_w: ClassVar[bool] = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        *,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        **group_defaults: float,
    ) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(
                f"{type(self).__name__} wraps a constructed optimizer, for example "
                f"{type(self).__name__}(torch.optim.SGD(model.parameters(), lr=0.1)); got {type(base).__name__}"
            )
        # Optimizer.__init__ would make groups and state of its own; __setstate__ makes only the hooks.
        super().__setstate__({"base": base, "defaults": {**base.defaults, **group_defaults}})
        self.base: torch.optim.Optimizer
        self.model = model
        self.clip_norm = clip_norm
        self.group = ALONE
        self.total_steps: int | None = None
        self.seed = 0
        self.first_pass = True
        self._has_gradient = False  # `.grad` is what `backward` left there
        self._parts = 0  # of this step that `gradient` has been asked for,
        self._parts_before = 0  # and those that are other processes'
        self._zeroed = True
        self._skipped: int | Tensor = 0
        self._group_defaults = group_defaults
        for group in self.param_groups:
            self._fill(group)

    def gradient(self, closure: Closure) -> tuple[Tensor, Tensor | None]:
        """Leave in `.grad` what the base shall follow, with the weights as they were found.

        Returns:
            The loss at w, and the norm of a gradient that was needed on the way (None if none was): the update is
            skipped unless it is finite.
        """
        return closure(), None

    def after_update(self, skip: Tensor) -> None:
        """What is left to do when the base has made its step, or has left it out where `skip` is 1."""
        for group in self.param_groups:
            if "steps_done" in group:
                group["steps_done"] += 1

    @property
    def steps_done(self) -> int:
        """Calls of `step` so far, where the method asks for the count ("steps_done" in the groups), else 0."""
        return int(self.param_groups[0].get("steps_done", 0))

    @property
    def skipped_steps(self) -> int:
        """Updates left out because a gradient was not finite; weights and base state were not touched."""
        return int(self._skipped)

    @overload  # type: ignore[override]
    def step(self, closure: Closure | Sequence[Closure]) -> Tensor: ...

    @overload
    def step(self, closure: None = None) -> None: ...

    @torch.no_grad()
    def step(self, closure: Closure | Sequence[Closure] | None = None) -> Tensor | None:
        """One update.

        Args:
            closure: zeroes the gradients, runs forward and backward on one batch, returns the loss; evaluated as
                often as the method needs, each time on the same batch with the same random numbers. Or several, each
                over an equal part of the batch: the method is applied to each part by itself, and the update follows
                the mean of what they give (m-SAM: one perturbation for every m examples). None after `backward`.

        Returns:
            The loss at the weights before the update, the mean over the parts; None after `backward`.

        Raises:
            TypeError: there is neither a closure nor a gradient from `backward`, or there are both.
            RuntimeError: the closure has added to gradients that it should have zeroed.
        """
        loss, norms_on_the_way = None, list[Tensor]()
        if self._has_gradient:
            # Lightning's manual optimization hands one over all the same, which computes nothing (but may clip).
            if closure is not None and (not callable(closure) or torch.enable_grad()(closure)() is not None):
                raise TypeError(f"{type(self).__name__}.step takes no closure after backward(closure)")
        elif closure is None or closure == []:
            raise TypeError(
                f"{type(self).__name__}.step needs a closure that zeroes the gradients, runs forward and backward, "
                "and returns the loss: optimizer.step(closure); or optimizer.backward(closure) before it, where a loop "
                "has loss.backward()"
            )
        else:
            loss, norms_on_the_way = self._mean_gradient([closure] if callable(closure) else closure)
            everything = (p for group in self.param_groups for p in group["params"])
            loss, *norms_on_the_way = self.group.mean_gradients(everything, loss, *norms_on_the_way)
        self._has_gradient = False
        parameters = self.parameters_with_gradient()
        final = gradients(parameters)
        if self.clip_norm is not None:
            norm = global_norm(final)
            clip_grads_with_norm_(parameters, self.clip_norm, norm)
            final = [norm]
        skip = found_inf([*final, *norms_on_the_way])
        self._update_unless(skip, parameters)
        self.after_update(skip)
        return loss

    @torch.no_grad()
    def backward(self, closure: Closure) -> Tensor:
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
            The loss at the weights, scaled if the closure's is.

        With DistributedDataParallel every micro-batch's gradients have to be averaged (no `no_sync`; accelerate calls
        it `sync_each_batch`): what earlier ones left in `.grad` is set aside while this one's are computed.
        """
        earlier = [(p, p.grad) for p in self.parameters_with_gradient()]
        self._parts = self._parts if earlier else 0
        for parameter, _ in earlier:
            parameter.grad = None
        loss, norm = self._evaluated(closure)
        parameters = self.parameters_with_gradient()
        if norm is not None and parameters:
            # For whoever looks at gradients before `step` does. 1 * g is g to the bit.
            gradients(parameters)[0].mul_(1 + 0 * norm)
        for parameter, gradient in earlier:
            parameter.grad = gradient if parameter.grad is None or gradient is None else parameter.grad.add_(gradient)
        self._has_gradient = True
        return loss.detach()

    def _evaluated(self, closure: Closure) -> tuple[Tensor, Tensor | None]:
        """What `gradient` makes of the closure, which can see in `first_pass` which evaluation it is."""

        def evaluation(*examples: Tensor, grad: bool = True) -> Tensor:
            try:
                with torch.set_grad_enabled(grad):
                    return closure(*examples)
            finally:
                self.first_pass = False

        try:
            return self.gradient(evaluation)
        finally:
            self.first_pass = True
            self._parts += 1

    def _checked(self, closure: Closure) -> Closure:
        """The closure, which must not add to the gradients that are there before a step.

        They are the last step's, or a loop's that accumulates (Lightning's `accumulate_grad_batches`): the ascent would
        follow a sum of which the second pass has only a part.
        """
        old = next((p for p in self.parameters_with_gradient() if not is_sparse(p)), None)
        if old is None or old.grad is None:
            return closure
        old.grad = old.grad.detach()  # the same numbers in another object: whoever zeroes, makes a third
        mark = weakref.ref(old.grad)  # for the step's whole length: it must not keep a large gradient alive
        self._zeroed = False

        def checked() -> Tensor:
            loss = closure()
            if old.grad is not None and old.grad is mark() and not self._zeroed:
                raise RuntimeError(
                    f"the closure of {type(self).__name__}.step has added to gradients that were there: it has to zero "
                    "them by optimizer.zero_grad(). To accumulate over micro-batches: optimizer.backward(closure) for "
                    "each, then optimizer.step()"
                )
            self._zeroed = True  # once is enough: later evaluations of a step start from none
            return loss

        return checked

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._zeroed = True
        super().zero_grad(set_to_none)

    def _mean_gradient(self, closures: Sequence[Closure]) -> tuple[Tensor, list[Tensor]]:
        """Leave the mean of the parts' gradients in `.grad`; the mean loss, and the norms met on the way."""
        losses, norms, total = [], [], dict[nn.Parameter, Tensor]()
        self._parts, self._parts_before = 0, self.group.rank * len(closures)
        if not self.takes_losses:
            closures = [self._checked(closures[0]), *closures[1:]]
        for closure in closures:
            loss, norm = self._evaluated(closure)
            losses.append(loss.detach())
            norms += [] if norm is None else [norm]
            if len(closures) == 1:
                return loss, norms
            for parameter in self.parameters_with_gradient():
                gradient, parameter.grad = parameter.grad, None  # ours now: no closure can zero it
                assert gradient is not None
                total[parameter] = total[parameter].add_(gradient) if parameter in total else gradient
        torch._foreach_mul_(list(total.values()), 1 / len(closures))
        for parameter, gradient in total.items():
            parameter.grad = gradient
        return torch.stack(losses).mean(), norms

    def _update_unless(self, skip: Tensor, parameters: list[nn.Parameter]) -> None:
        """A step of the base, or where `skip` is 1 nothing at all: decided on the device, if the base can."""
        base = self.base
        # Fused optimizers take `found_inf`, as from a GradScaler. They make their state on the first step even if they
        # skip it, uninitialised: that step must be decided here.
        started = all(p in base.state for p in parameters)
        stateless = all(group.get("momentum") == 0 for group in self.param_groups)
        if getattr(base, "_step_supports_amp_scaling", False) and (started or stateless):
            base.found_inf = skip  # type: ignore[attr-defined]
            try:
                base.step()
            finally:
                del base.found_inf  # type: ignore[attr-defined]
            self._skipped = self._skipped + skip
        elif skip.item():
            self._skipped = self._skipped + 1
        else:
            base.step()

    def parameters_with_gradient(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    # ---- one list of groups, one state: the base's -----------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.base.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        return self.base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.base.add_param_group(param_group)
        self._fill(self.param_groups[-1])

    def _fill(self, group: dict[str, Any]) -> None:
        for name, value in self._group_defaults.items():
            group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        hooks = {name for name in self.__dict__ if name.startswith("_optimizer_")}
        own = {name: value for name, value in self.__dict__.items() if name not in hooks}
        own.pop("step", None)  # a scheduler's patch of this very object
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "base" in state:  # unpickling or copying
            super().__setstate__(state)
        else:  # the end of load_state_dict: groups and state are the base's to take in
            self.base.__setstate__(state)
            for group in self.param_groups:
                self._fill(group)


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Their gradients; a sparse one has each of its entries once from here on."""
    found = [p.grad for p in parameters if p.grad is not None]
    if any(gradient.is_sparse for gradient in found):
        return [coalesced(p) if p.grad.is_sparse else p.grad for p in parameters if p.grad is not None]
    return found


def global_norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, a scalar on their device; half precision is summed in fp32.

    Sparse ones have to be coalesced, as those of `gradients` are.
    """
    if not tensors:
        return torch.zeros(())
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    norms = torch._foreach_norm([t._values() if t.is_sparse else t for t in tensors], 2, dtype=dtype)
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def found_inf(tensors: list[Tensor]) -> Tensor:
    """1.0 where a number in any of them is not finite, else 0.0: a scalar on their device.

    It is what a GradScaler computes while it divides by its scale, here by 1, which changes no bit. Of many small
    tensors on a CPU it takes a quarter of the time of their norm. Sparse ones have to be coalesced.
    """
    device = tensors[0].device if tensors else None
    found = torch.zeros((), device=device)
    if tensors:
        dense = [t._values() if t.is_sparse else t for t in tensors]
        torch._amp_foreach_non_finite_check_and_unscale_(dense, found, torch.ones((), device=device))
    return found


def rewinder(device: torch.device) -> Callable[[], None]:
    """A function that sets torch's random numbers, on the host and on `device`, back to where they are now."""
    host = torch.get_rng_state()
    on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def rewind() -> None:
        torch.set_rng_state(host)
        if on_device is not None:
            torch.cuda.set_rng_state(on_device, device)

    return rewind


@contextmanager
def kept_buffers(model: nn.Module | None) -> Iterator[None]:
    """Undo, on leaving, every change of the model's buffers: running statistics and counters of any kind of layer.

    A copy put back is exact. (momentum = 0 instead would turn an infinite statistic into NaN, and a helper that
    swaps momenta freezes them for ever when it is entered twice.)
    """
    places = [(m, name, b) for m in _modules(model) for name, b in m._buffers.items() if b is not None]
    buffers = [buffer for _, _, buffer in places]
    copies = [torch.empty_like(buffer) for buffer in buffers]
    if buffers:
        torch._foreach_copy_(copies, buffers)
    try:
        yield
    finally:
        if buffers:
            torch._foreach_copy_(buffers, copies)
        for module, name, buffer in places:
            module._buffers[name] = buffer


def _modules(model: nn.Module | None) -> Iterator[nn.Module]:
    """A module and all within it, each once: `model.modules()` makes their names too, which takes ten times as long."""
    seen, waiting = set[nn.Module](), [] if model is None else [model]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += [child for child in module._modules.values() if child is not None]
            yield module
