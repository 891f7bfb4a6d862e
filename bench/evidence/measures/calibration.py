"""Calibration: whether a classifier's confidence equals its accuracy."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BINS = 15
"""Of equal width over confidences from 0 to 1 (Guo et al. 2017, arXiv:1706.04599, section 2, use as many)."""


def expected_calibration_error(logits: Tensor, targets: Tensor, bins: int = BINS) -> float:
    """Return the mean over examples of |accuracy - mean confidence| of the bin that holds the example's confidence.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3: confidence is the largest softmax probability, bins are of equal width,
    a bin has its upper edge and not its lower one.

    Args:
        logits: (N, classes).
        targets: (N,) class numbers.

    Returns:
        A fraction: 0 is perfect.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    right = (predicted == targets).double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)
    place = torch.bucketize(confidence, edges[1:-1])  # edges[place] < confidence <= edges[place + 1]
    difference = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    # |sum of (right - confidence)| over a bin is its size times |accuracy - mean confidence|.
    difference.index_add_(0, place, right - confidence)
    return (difference.abs().sum() / len(targets)).item()


def negative_log_likelihood(logits: Tensor, targets: Tensor) -> float:
    """Return the mean of -log p(target) over examples, in nats."""
    return F.cross_entropy(logits.double(), targets).item()
