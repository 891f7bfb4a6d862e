#!/usr/bin/env bash
# Forward over reverse differentiation gives wrong Hessian-vector products for LayerNorm, and says nothing.
#
# torch.func.jvp of torch.func.jacrev (and so torch.func.hessian) is documented as the efficient way to a Hessian, and
# agrees with reverse over reverse for most layers. With LayerNorm and with batch norm over the batch it
# returns other numbers, without an error. Reverse over reverse agrees with finite differences.
#
# Seen with torch 2.14.1 on a CPU (relative error of H v against finite differences, double precision):
#   LayerNorm                 jvp of jacrev 3.8e-02, reverse over reverse 5.0e-11
#   batch norm of the batch   jvp of jacrev 1.2e-01, reverse over reverse 1.3e-10
#   GELU, for comparison      1.4e-11 both
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from torch import nn
from torch.func import functional_call, jacrev, jvp

warnings.filterwarnings("ignore", category=FutureWarning)
print("torch", torch.__version__)


def errors(layer: nn.Module) -> tuple[float, float]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, 1)).double().train()
    x, y = torch.randn(8, 4).double(), torch.randn(8, 1).double()
    names = [name for name, _ in model.named_parameters()]
    weights = tuple(p.detach().clone() for p in model.parameters())
    along = tuple(torch.randn_like(w) for w in weights)

    def loss(*tensors):
        return (functional_call(model, dict(zip(names, tensors)), x) - y).square().mean()

    def gradient(sign):
        moved = [(w + sign * 1e-6 * v).requires_grad_() for w, v in zip(weights, along)]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(*moved), moved)])

    expected = (gradient(1) - gradient(-1)) / 2e-6
    _, forward = jvp(jacrev(loss, argnums=tuple(range(len(weights)))), weights, along)
    leaves = [w.clone().requires_grad_() for w in weights]
    first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    reverse = torch.autograd.grad(first, leaves, along)
    return tuple(
        float((torch.cat([p.flatten() for p in got]) - expected).norm() / expected.norm()) for got in (forward, reverse)
    )


layers = {
    "LayerNorm": nn.LayerNorm(6),
    "batch norm of the batch": nn.BatchNorm1d(6, track_running_stats=False),
    "GELU": nn.GELU(),
}
found = {name: errors(layer) for name, layer in layers.items()}
for name, (forward, reverse) in found.items():
    print(f"{name}: relative error of jvp of jacrev {forward:.1e}, of reverse over reverse {reverse:.1e}")
assert all(reverse < 1e-5 for _, reverse in found.values())
assert found["GELU"][0] < 1e-5
assert min(found["LayerNorm"][0], found["batch norm of the batch"][0]) > 1e-2, "torch has changed: forward over reverse is right"
PY
