#!/usr/bin/env bash
# With Opacus, whatever is done to .grad between backward() and step() is lost: clip_grad_norm_, a mask, another gradient.
#
# After backward() .grad is there, has the plain gradient, and is what torch.nn.utils.clip_grad_norm_, hooks and methods
# such as SAM's variants or gradient surgery change in place. Every optimizer of torch follows .grad, and Opacus's is
# presented as a wrapper around one. But its step makes .grad anew, from the gradients of single examples that it keeps
# in .grad_sample, and only then calls the optimizer inside. The training loop runs, without a word, as if the lines
# between were not there.
#
# Seen with opacus 1.6.0, torch 2.14.1, no noise and no clipping by Opacus; how far one step of SGD moves the weights:
#   .grad unchanged, clipped by torch to a norm of 0.001, set to zero     SGD: 0.1500, 0.0001, 0
#                                                                     DPOptimizer: 0.1500, 0.1500, 0.1500
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6 opacus==1.6.0 2> "$folder/log" || { cat "$folder/log"; exit 2; }
cd "$folder"
cat > look.py <<'PY'
import warnings
from importlib.metadata import version

import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

warnings.simplefilter("ignore")  # torch's, about hooks where no input requires a gradient
CHANGES = {
    "unchanged": lambda parameters: None,
    "clipped to 0.001": lambda parameters: nn.utils.clip_grad_norm_(parameters, 0.001),
    "set to zero": lambda parameters: [parameter.grad.zero_() for parameter in parameters],
}


def way(change, private):
    """How far one step moves the weights."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    x = torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if private:
        model = GradSampleModule(model)
        optimizer = DPOptimizer(optimizer, noise_multiplier=0.0, max_grad_norm=1e6, expected_batch_size=8)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad()
    model(x).square().sum(1).mean().backward()
    change([*model.parameters()])
    optimizer.step()
    moved = [(parameter.detach() - old).flatten() for parameter, old in zip(model.parameters(), before)]
    return float(torch.cat(moved).norm())


print("torch", torch.__version__, "opacus", version("opacus"))
found = {name: [way(change, private) for private in (False, True)] for name, change in CHANGES.items()}
for name, (plain, private) in found.items():
    print(f".grad {name:<17} SGD moves {plain:.4f}, DPOptimizer {private:.4f}")
plain, private = zip(*found.values())
followed = plain[0] > 1e-2 and plain[1] < 2e-4 and plain[2] == 0
raise SystemExit(0 if followed and min(private) > 0.99 * plain[0] else 1)
PY
"$folder/venv/bin/python" look.py
