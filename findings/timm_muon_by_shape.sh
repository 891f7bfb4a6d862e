#!/usr/bin/env bash
# timm's Muon leaves many weight matrices to another optimizer, by their shape, and that one steps 1.9 times as far.
#
# Muon orthogonalizes the update of weight matrices and leaves vectors to AdamW; torch.optim.Muon does so with every 2-D
# weight. timm.optim.Muon also gives AdamW each matrix with fewer than 4 rows or columns (the head of a classifier of two
# or three classes), each convolution with one input channel (the first one over grey images; depthwise ones), and each
# matrix with one side over 128 times the other. Nothing is said unless verbose=True. And with nesterov=True the fallback
# is NAdamW: without a history it moves a weight by (0.9 * 0.1 + 0.1) / 0.1 = 1.9 times lr where AdamW moves it by lr.
#
# Seen with timm 1.0.31, torch 2.14.1: singular values of the first update over lr * 0.2 * sqrt(larger side), which are
# about 1 for an orthogonal update, and otherwise the step of each weight over lr:
#   Linear(64, 10) and Conv2d(3, 16, 3)   singular values 0.98 to 1.02 and 0.98 to 1.04
#   Linear(64, 2) and Conv2d(1, 16, 3)    nesterov=False: every weight moves by 1.00 lr; nesterov=True: by 1.90 lr
#   torch.optim.Muon on Linear(64, 2)     singular values 1.08 to 1.14
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check timm==1.0.31 torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import timm
import torch
from timm.optim import Muon
from torch import nn

print("timm", timm.__version__, "torch", torch.__version__)
LR = 0.01


def update(layer, make):
    """Return the first update of a layer's weight over lr, as a matrix of one row per output."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn_like(layer.weight))
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    make([weight]).step()
    return ((before - weight.detach()) / LR).flatten(1)


def orthogonal(step):
    values = torch.linalg.svdvals(step) / (0.2 * max(step.shape) ** 0.5)
    print(f"  singular values {values.min():.2f} to {values.max():.2f}")
    return 0.5 < values.min() and values.max() < 1.4


def of_one_size(step):
    sizes = step.abs()
    print(f"  every weight moves by {sizes.min():.2f} to {sizes.max():.2f} lr")
    return (sizes.max() - sizes.min()) < 0.02, float(sizes.mean())


def timms(nesterov):
    return lambda weights: Muon(weights, lr=LR, nesterov=nesterov)


for layer in (nn.Linear(64, 10), nn.Conv2d(3, 16, 3)):
    print(layer)
    assert orthogonal(update(layer, timms(True)))
for layer in (nn.Linear(64, 2), nn.Conv2d(1, 16, 3)):
    print(layer)
    for nesterov, expected in ((False, 1.0), (True, 1.9)):
        alike, size = of_one_size(update(layer, timms(nesterov)))
        assert alike and abs(size - expected) < 0.02, "timm has changed"
print("torch.optim.Muon, Linear(64, 2)")
assert orthogonal(
    update(nn.Linear(64, 2), lambda w: torch.optim.Muon(w, lr=LR, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
)
PY
