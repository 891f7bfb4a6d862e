"""Checks of what users give a step: a base optimizer and closures. Unusable ones raise an error at once."""

from __future__ import annotations

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from bench.optim.base.sharded import any_sharded, has_others
from bench.optim.base.sparse import is_sparse

Closure = Callable[..., Any]
"""Runs forward and backward on one batch; its result, by convention the loss, is also the result of `step`."""


def check_base(name: str, base: object) -> None:
    """Raise unless `base` is an optimizer that makes its step from gradients that are there.

    Args:
        name: the method that is to be built around it.

    Raises:
        TypeError: it is no optimizer, or a class of them.
        ValueError: its step needs a closure (LBFGS, another method): evaluations inside of the base would be at the
            weights and not where the method looks.
    """
    if not isinstance(base, torch.optim.Optimizer):
        got = f"the class {base.__name__}" if isinstance(base, type) else type(base).__name__
        raise TypeError(
            f"{name} wraps a constructed optimizer, for example "
            f"{name}(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05); got {got}"
        )
    # Of the class: schedulers and accelerate put a wrapper into the instance.
    closure = inspect.signature(type(base).step).parameters.get("closure")
    needed = closure is not None and closure.default is closure.empty
    if needed or getattr(base, "needs_closure", False):
        raise ValueError(
            f"{name} cannot wrap {type(base).__name__}, whose step needs a closure of its own: "
            "the base must compute its step from existing gradients, as SGD and Adam do"
        )
    for group in base.param_groups:
        fused = group.get("fused") and isinstance(base, torch.optim.SGD | torch.optim.Adagrad)
        if fused and any_sharded(group["params"]):
            kind = type(base).__name__
            raise ValueError(f"{name}: torch has no fused {kind} for DTensors: {kind}(..., foreach=True) instead")


class OldGradient:
    """A gradient from before a step, which the step's closure must not add to.

    It is the last step's, or one of a loop that accumulates (Lightning's `accumulate_grad_batches`): the ascent would
    follow a sum of which the second pass has only a part. Whoever zeroes it is seen: `zero_grad` with None or in place,
    of the method, the base or the model, and any other write to it before the first new gradient arrives.

    Args:
        parameters: one of them is watched.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._all = parameters
        watched = (p for p in parameters if p.grad is not None and p.requires_grad and not is_sparse(p))
        self.parameter = next(watched, None)
        self._kept = False
        if self.parameter is not None and self.parameter.grad is not None:
            self._versions = _versions(parameters)
            gradient = self.parameter.grad = self.parameter.grad.detach()  # the same numbers in an object of our own
            self._mark = weakref.ref(gradient)  # for the step's whole length: it must not keep a large gradient alive
            self._version = gradient._version
            self._hook = self.parameter.register_hook(self._arrives)  # type: ignore[no-untyped-call]

    def _arrives(self, _: Tensor) -> None:
        # Called before autograd adds to `.grad`: an old gradient that is still there now is added to.
        self._kept = self._kept or self._is_untouched()
        self._hook.remove()

    def _is_untouched(self) -> bool:
        gradient = None if self.parameter is None else self.parameter.grad
        if gradient is None or gradient is not self._mark() or gradient._version != self._version:
            return False
        return bool(gradient.any())  # waits for the device, but an error is next, or somebody zeroes past autograd

    def is_kept(self) -> bool:
        """Return whether the closure did not zero the old gradient: it is unchanged or was added to."""
        if self.parameter is None:
            return False
        self._hook.remove()
        return self._kept or self._is_untouched()

    def is_left_on_purpose(self, returned: object) -> bool:
        """Return whether a closure has computed no gradient at all, and returned a loss without a graph all the same.

        Lightning's does in the epoch for batch norm of StochasticWeightAveraging. A closure that has forgotten backward
        returns a loss with a graph; one that returns no tensor may have forgotten it, too.
        """
        is_left = not self._kept and self._versions == _versions(self._all)
        return is_left and isinstance(returned, Tensor) and not returned.requires_grad


def _versions(parameters: Sequence[Tensor]) -> list[int | None]:
    return [None if (gradient := p.grad) is None else gradient._version for p in parameters]


def check_backward(name: str, returned: object, parameters: Sequence[nn.Parameter]) -> None:
    """Raise RuntimeError if a closure has computed no gradient although its loss depends on the parameters."""
    if returned is None or any(p.grad is not None for p in parameters):
        return
    if any_sharded(parameters):  # FSDP2 goes backward to tensors of its own
        raise RuntimeError(
            f"the closure of {name} has left no gradient: it has to call loss.backward(), and FSDP2 has to reduce "
            "gradients in every pass: no set_requires_gradient_sync(False), and with accelerate's accumulate() "
            "GradientAccumulationPlugin(sync_each_batch=True)"
        )
    if not isinstance(returned, Tensor) or returned.grad_fn is None:
        return
    # By identity, since == between tensors compares numbers.
    wanted = {id(p) for p in parameters}
    if any(id(leaf) in wanted for leaf in leaves(returned)):
        raise RuntimeError(
            f"the closure of {name} has left no gradient: it has to call loss.backward() before it returns the loss"
        )


def leaves(result: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that get gradients from backward of a result, as far as its graph shows them."""
    # A stack and not recursion: the graph of a deep model would exceed Python's limit.
    seen, waiting = set[Any](), [result.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node not in seen:
            seen.add(node)
            if (leaf := getattr(node, "variable", None)) is not None:
                yield leaf
            waiting += [before for before, _ in node.next_functions if before is not None]


def detached(returned: Any) -> Any:
    """Return what a closure has returned, without its graph."""
    return returned.detach() if isinstance(returned, Tensor) else returned


def mean_loss(name: str, returned: Sequence[Any]) -> Tensor | None:
    """Return the mean of the results of closures over equal parts of a batch; None if all results are None.

    Raises:
        TypeError: one has returned neither a number nor a tensor with one.
    """
    if all(value is None for value in returned):
        return None
    for value in returned:
        if not isinstance(value, (Tensor, int, float)) or (isinstance(value, Tensor) and value.numel() != 1):
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}: closures over parts of a batch have to return their loss, one number; got {what}")
    # Numbers of Python in fp32 at least: a default dtype of fp16 ends at 65504.
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    losses = [value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype) for value in returned]
    return torch.stack([loss.reshape(()) for loss in losses]).mean()


@contextmanager
def no_sync_refused(name: str) -> Iterator[None]:
    """Raise RuntimeError, on exit, if DistributedDataParallel's last forward pass was under `no_sync`.

    Args:
        name: the method whose closure is evaluated in here.
    """
    averaged = True

    def look(module: nn.Module, _: Any) -> None:
        nonlocal averaged
        # Already in the forward pass DistributedDataParallel decides whether backward will average the gradients.
        if isinstance(module, DistributedDataParallel) and torch.is_grad_enabled():
            averaged = module.require_backward_grad_sync

    if not has_others():
        yield
        return
    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
    if not averaged:
        raise RuntimeError(
            f"{name} needs gradients that are averaged over all processes in every pass, and no_sync() left this one "
            "out, so that weights would differ between processes: remove no_sync(). With accelerate and Hugging Face's "
            "Trainer: "
            'GradientAccumulationPlugin(sync_each_batch=True), accelerator_config={"gradient_accumulation_kwargs": '
            '{"sync_each_batch": True}}'
        )


def check_accelerate(method: torch.optim.Optimizer) -> None:
    """Raise RuntimeError if accelerate hands over a closure of one micro-batch after it has dropped those before.

    accelerate's optimizer calls ours only at the last of `gradient_accumulation_steps` micro-batches: the closures of
    the others are never evaluated.
    """
    state = sys.modules.get("accelerate.state")
    if state is None or state.GradientState().num_steps < 2:
        return
    # Only a call that comes through accelerate is refused: a loop of the user's own beside it evaluates every closure.
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if type(caller).__name__ == "AcceleratedOptimizer" and caller.optimizer is method:  # type: ignore[union-attr]
            steps, name = state.GradientState().num_steps, type(method).__name__
            raise RuntimeError(
                f"accelerate evaluates no closure in {steps - 1} of {steps} micro-batches "
                f"(gradient_accumulation_steps): within accumulate(), call {name}.backward(closure), which is "
                "optimizer.optimizer.backward, for each micro-batch, then optimizer.step() and optimizer.zero_grad(); "
                "or, if one closure evaluates all micro-batches, leave gradient_accumulation_steps at 1"
            )
        frame = frame.f_back
