#!/usr/bin/env bash
# The second derivative of torch's weight norm is wrong on a CPU, by reverse over reverse too.
#
# torch.nn.utils.parametrizations.weight_norm calls torch._weight_norm, whose fused CPU kernel hands the norm of the
# weights to its backward pass as a constant. The first derivative is right; differentiating it once more misses how the
# norm depends on the weights. gradcheck passes, gradgradcheck does not, and Hessian-vector products (sharpness,
# gradient penalties) are off without an error. v * (g / torch.norm_except_dim(v, 2, dim)), the same function, is right.
#
# Seen with torch 2.14.1: first derivative ok: True; second: False; of the same function in plain operations: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch.autograd import gradcheck, gradgradcheck

print("torch", torch.__version__)
torch.manual_seed(0)
v = torch.randn(4, 4, 1, dtype=torch.double, requires_grad=True)
g = torch.randn(4, 1, 1, dtype=torch.double, requires_grad=True)


def fused(v, g):
    return torch._weight_norm(v, g, 0)


def plain(v, g):
    return v * (g / torch.norm_except_dim(v, 2, 0))


assert torch.allclose(fused(v, g), plain(v, g))
first = gradcheck(fused, (v, g))
second = gradgradcheck(fused, (v, g), raise_exception=False)
of_plain = gradgradcheck(plain, (v, g))
print(f"first derivative ok: {first}; second: {second}; of the same function in plain operations: {of_plain}")
assert first and of_plain
assert not second, "torch has changed: the second derivative is right"
PY
