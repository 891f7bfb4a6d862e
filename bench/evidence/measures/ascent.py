"""One-step m-sharpness: how much the loss of m examples rises when the weights take SAM's ascent step on them."""

from __future__ import annotations

import torch

from bench.evidence.measures.surface import Surface
from bench.optim.base.tensors import global_norm


def m_sharpness(surface: Surface, rho: float, m: int) -> tuple[float, int]:
    """Return the mean rise of the loss after one SAM ascent step of radius rho, over batches of m examples.

    The rise of a batch b is L_b(w + rho g_b / ||g_b||) - L_b(w), with g_b the gradient of L_b at w.

    SAM's ascent (Foret et al. 2021, arXiv:2010.01412, eq. 2) with a norm over all parameters, one step, in eval mode;
    m is that of their section 4.1 (Andriushchenko & Flammarion 2022, arXiv:2206.06232, compare values of it).

    Args:
        rho: radius of the ascent.
        m: examples per batch; those left over are left out. Fewer examples than m are one batch.

    Returns:
        The mean, in the unit of the loss, and over how many batches it is.
    """
    rises = []
    for part in surface.parts(m):
        # The rise depends on m, so a smaller last part is left out.
        if len(part[1]) < min(m, len(surface.split)):
            continue
        loss = surface.mean_loss(part)
        gradient = torch.autograd.grad(loss, surface.parameters, allow_unused=True, materialize_grads=True)
        # As in the step of SAM: where the gradient is 0, nothing is divided by 0.
        scale = rho / (global_norm(list(gradient)) + 1e-12)
        with surface.moved([g * scale.to(g.dtype) for g in gradient]), torch.no_grad():
            rises.append((surface.mean_loss(part) - loss).double())
    return torch.stack(rises).mean().item(), len(rises)
