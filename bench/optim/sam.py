"""Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412, algorithm 1), plain and adaptive."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from typing_extensions import Unpack

from bench.core.registry import register_optimizer
from bench.optim.base.options import AscentOptions, check_choice, one_more_where_perturbed
from bench.optim.base.perturbation import PerturbedOptimizer
from bench.optim.base.sparse import whole
from bench.optim.base.tensors import as_real, gradients
from bench.optim.base.types import NonNegative

AdaptiveOn = Literal["all", "weight"]


# The three settings of ASAM are no hyperparameters of "sam": in experiment files ASAM is a method of its own.
@register_optimizer("sam", wraps_base=True, passes=one_more_where_perturbed, without=("adaptive", "eta", "adaptive_on"))
class SAM(PerturbedOptimizer):
    """Sharpness-aware minimization over a base optimizer: two passes per step (Foret et al. 2021).

    Descends along the gradient found at the worst point within rho of the weights:

        g  = grad L(w)                                   first evaluation of the closure
        e  = rho * g / (||g|| + 1e-12)                   one norm over all parameters of all groups
        g' = grad L(w + e)                               second evaluation, same batch, same dropout masks
        w  <- base.step(w, g')                           from w itself, restored bit for bit

    ASAM (Kwon et al. 2021, arXiv:2102.11600) with `adaptive`: e = rho * T^2 g / (||T g|| + 1e-12), T = |w| + eta;
    `bench.optim.asam.ASAM` is this with the paper's defaults.

    Args:
        base: a constructed torch optimizer; its param_groups are shared, "rho" in a group overrides `rho` there
            ("sam_rho" does over Adadelta, whose "rho" is another).
        rho: radius of the neighbourhood, in the norm of the weights; 0 is the base optimizer. ASAM wants about ten
            times SAM's.
        adaptive: scale the neighbourhood by the size of each weight (ASAM).
        eta: ASAM's floor under the size of a weight.
        adaptive_on: "all": every parameter's neighbourhood scales with it. "weight": only that of parameters with
            "weight" in their names, as in the authors' code, and T = 1 for the others (biases, the shifts of
            normalisation layers); it needs `model`, with at least one such parameter.
        model: the module being trained. Given it, buffers (batch-norm statistics) and parameters in no group (a
            momentum encoder) move once per step, as in a plain step; without it they move in both passes. Attributes
            that are plain tensors (the hidden state of a recurrent net) move in both passes: register them as buffers.
        clip_norm: largest norm of the final gradient g'; the ascent is never clipped.
        total_steps: steps of the whole training, for options that are shares of it; `bench run` knows it.
        norm_group: the processes among which the model is split where no DTensor tells of it (pipeline stages, FSDP1);
            the norm of g is then taken over the weights of all of them. Default: of this process's own weights.
        options: where and when to perturb (m, perturb_only, perturb_every, perturb_from, perturb_until, rho_schedule,
            rho_end, ascent_decay): see `bench.optim.base.options`. m, a divisor of the batch size (m-sharpness, section
            3 of the paper, whose m is 32: 256 images over 8 devices), is for loops that ask (that of `bench run` does):
            they hand `step` a closure for every m examples of a batch. Default: the whole batch.

    Raises:
        TypeError: base is no optimizer, `step` gets no closure, or there is no such option.
        ValueError: base needs a closure of its own (LBFGS), rho or eta is negative, an option is impossible, or
            adaptive_on="weight" finds no parameter to scale: it would be SAM.

    Other codes of ASAM: the paper's authors (SamsungLabs/ASAM) scale only parameters called "weight", so biases and
    shifts have most of ||e||^2 there (84 % in a small convolutional net at rho 0.5) and next to nothing with
    adaptive_on="all". After 20 steps of that net the two differ by .38 of the distance moved at rho .5 and .57 at rho
    1; with adaptive_on="weight" ours equals theirs to 6e-12. davda54/sam and pytorch_optimizer have no eta and scale
    everything: adaptive_on="all" with eta=0.

    The ascent follows the gradient of the loss alone, unless ascent_decay adds the base's weight decay. The loss that
    is returned is L(w). A gradient that is not finite, in either pass, leaves weights and base state alone and counts
    in `skipped_steps`.
    In a loop of yours with DistributedDataParallel, a closure that calls the wrapped model averages the gradients of
    both passes over the processes: one perturbation for the whole batch. For one a process (the paper's m), have the
    first evaluation of each step go forward *and* backward under `ddp.no_sync()`, and the second one not: weights stay
    the same in all processes, since they only ever follow the second gradient. A first gradient that is not finite
    makes NaN of that process's second one, so of everyone's mean, and all of them skip the step.

    Parameters in no group keep the gradients of one plain pass at w, for an optimizer of their own; to descend with
    them along the second gradient, give them a group with rho 0. With `no_sync` around the first evaluation these
    gradients are each process's own. A loss's own weights are found in the graph of the first loss that is returned
    with one; to be sure of them: model=torch.nn.ModuleList([net, loss]).

    Memory above the base: one copy of the parameters, during the step only. With `model` also two copies of its buffers
    and of its parameters in no group, each as far as it has at most 65,536 numbers or forward moves it; large ones that
    stay as they are cost nothing (see `bench.optim.base.forward_state`). e is built in the gradients' storage, where on
    a CPU a large weight is during the second pass, unless its own memory has other users (see
    `bench.optim.base.weight_swap`). Of parameters with sparse gradients (embeddings) only the rows that a batch touches
    are moved and copied.

    In a loop that is not yours, `backward(closure)` takes the place of `loss.backward()`, and `step()` stays what it is
    there; that is the way to accumulate, to clip by your own rule, and to use a GradScaler (fp16).

    Example:
        >>> optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05, model=model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = loss_function(model(x), y)
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
    """

    # Without ascent_decay e is 0 wherever g is 0: embedding rows that a batch does not use need not be moved.
    takes_sparse = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        rho: NonNegative = 0.05,
        adaptive: bool = False,
        eta: NonNegative = 0.01,
        model: nn.Module | None = None,
        clip_norm: float | None = None,
        total_steps: int | None = None,
        adaptive_on: AdaptiveOn = "all",
        norm_group: ProcessGroup | None = None,
        **options: Unpack[AscentOptions],
    ) -> None:
        if not eta >= 0:
            raise ValueError(f"SAM: eta must be >= 0, got {eta}")
        super().__init__(
            base, rho=rho, model=model, clip_norm=clip_norm, total_steps=total_steps, norm_group=norm_group, **options
        )
        self.adaptive = adaptive
        self.eta = eta
        # None: every parameter is scaled. A set: only these are, and T = 1 for the others.
        check_choice(type(self).__name__, "adaptive_on", adaptive_on, get_args(AdaptiveOn))
        self.scaled = None if adaptive_on == "all" else self._called_weight(model, required=norm_group is None)

    def ascent(self, weights: list[Tensor]) -> Tensor:
        if not self.adaptive or not weights:
            return super().ascent(weights)
        # Of a parameter with a sparse gradient `w` is only a copy of some rows; `whole` finds the parameter in the set.
        scaled = [w for w in weights if self.scaled is None or whole(w) in self.scaled]
        # T = 1 everywhere: ASAM is then SAM.
        if not scaled:
            return super().ascent(weights)
        # `direction` holds the gradients themselves: both products below overwrite them in place.
        direction, scale = gradients(scaled), torch._foreach_abs([as_real(w) for w in scaled])
        torch._foreach_add_(scale, self.eta)
        torch._foreach_mul_(direction, scale)  # T g, which the norm is of,
        # One norm over all weights: those with T = 1 count with their plain gradient.
        norm = self.reductions.norm(weights, gradients(weights))
        torch._foreach_mul_(direction, scale)  # and T^2 g, which the way follows
        return norm

    def _called_weight(self, model: nn.Module | None, *, required: bool) -> set[Tensor]:
        """Return the parameters with "weight" in their names; one that has several names goes by its first.

        Args:
            required: whether there must be some in the groups, as in a model that is not one stage of several.

        Raises:
            ValueError: there is no model to know names from, or none of the groups' parameters is called so.
        """
        needs = f'{type(self).__name__}: adaptive_on="weight" needs '
        if model is None:
            raise ValueError(f"{needs}model=..., to find its parameters by name")
        called: set[Tensor] = {parameter for name, parameter in model.named_parameters() if "weight" in name}
        if required and called.isdisjoint(self._parameters()):
            raise ValueError(
                f'{needs}parameters with "weight" in their names, but {type(model).__name__} has none in the '
                'param_groups: take adaptive_on="all"'
            )
        return called
