"""Models for evaluation in which batch norm is part of the layer before it: fewer operations on activations."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def folded(model: nn.Module) -> nn.Module | None:
    """Return a copy of a model in eval mode whose batch norms are folded into the convolutions before them.

    Weights are multiplied by what batch norm would multiply outputs by, so outputs differ by rounding. The model itself
    stays as it is. Only pairs that torch.fx sees applied one after the other are folded, linear layers too.

    Returns:
        None where nothing can be folded: there is no such pair, somebody watches the model's layers by hooks, or the
        model's `forward` is more than torch.fx can follow.
    """
    before = _batch_norms(model)
    if not before or any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    from torch.fx.experimental.optimization import fuse  # slow to import

    try:
        twin = fuse(model)
    except Exception:  # of a net that nobody here knows: it can be evaluated all the same
        return None
    return twin if _batch_norms(twin) < before else None


def _batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())
