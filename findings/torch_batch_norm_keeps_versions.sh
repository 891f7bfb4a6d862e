#!/usr/bin/env bash
# Batch norm writes its running statistics on a CPU without counting their version up, so autograd does not notice.
#
# A tensor's _version is to go up at every write in place: autograd compares it, and raises where a tensor that backward
# needs has changed since. torch.nn.BatchNorm1d and 2d in training mode write running_mean and running_var inside of the
# native kernel, which counts nothing (num_batches_tracked, and the statistics of InstanceNorm, are counted). A graph that
# has saved running_mean goes backward with the new numbers, silently; after running_mean.add_(1) it raises. Whoever finds
# out by versions which buffers a forward pass has changed misses just these.
#
# Seen with torch 2.14.1:
#   BatchNorm1d running_mean changed: True, version 1 -> 1; num_batches_tracked version 1 -> 2
#   BatchNorm2d running_mean changed: True, version 1 -> 1; num_batches_tracked version 1 -> 2
#   InstanceNorm1d running_mean changed: True, version 1 -> 2; num_batches_tracked version 1 -> 1
#   after batch norm: no error, gradient of the saved mean: False, of the new one: True
#   after add_: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 numpy==2.4.6
"$folder/venv/bin/python" - <<'PY'
import torch
from torch import nn

print("torch", torch.__version__)
torch.manual_seed(0)


def forward(norm, x):
    mean, count = norm.running_mean, norm.num_batches_tracked
    before, versions = mean.clone(), (mean._version, count._version)
    norm(x)
    changed = not torch.equal(mean, before)
    print(
        f"{type(norm).__name__} running_mean changed: {changed}, version {versions[0]} -> {mean._version}; "
        f"num_batches_tracked version {versions[1]} -> {count._version}"
    )
    assert changed
    return mean._version - versions[0]


counted = [forward(nn.BatchNorm1d(3), torch.randn(8, 3)), forward(nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5))]
assert forward(nn.InstanceNorm1d(3, track_running_stats=True), torch.randn(4, 3, 5)) == 1
assert counted == [0, 0], "torch has changed: batch norm counts versions"

norm, weight = nn.BatchNorm1d(3), torch.ones(3, requires_grad=True)
saved = norm.running_mean.clone()
product = (weight * norm.running_mean).sum()
norm(torch.randn(8, 3) + 5)
product.backward()
of_saved, of_new = torch.equal(weight.grad, saved), torch.equal(weight.grad, norm.running_mean)
print(f"after batch norm: no error, gradient of the saved mean: {of_saved}, of the new one: {of_new}")
assert of_new and not of_saved

product = (weight * norm.running_mean).sum()
norm.running_mean.add_(1)
try:
    product.backward()
    raise SystemExit("no error after add_")
except RuntimeError as error:
    print("after add_:", type(error).__name__)
    assert "modified by an inplace operation" in str(error)
PY
