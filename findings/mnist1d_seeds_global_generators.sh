#!/usr/bin/env bash
# Making MNIST-1D's data sets the global seeds of Python and numpy, so seeds set before it are lost.
#
# mnist1d.data.make_dataset(args) calls random.seed(args.seed) and numpy.random.seed(args.seed) (42) and restores neither.
# A script that seeds itself, makes the data, and then draws initial weights, batch orders or noise with numpy gets the
# same draws for every seed: five "seeds" are five copies of one run. It also happens where the data come from the cache
# file: not in that case, so the first run of a study differs from the later ones.
#
# Seen with mnist1d 0.0.2.post1, numpy 2.4.6:
#   seed 1: numpy 0.3680, random 0.6394; seed 2: numpy 0.3680, random 0.6394
#   from the cache, seed 1: numpy 0.4170, random 0.1344; seed 2: numpy 0.4360, random 0.9560
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mnist1d==0.0.2.post1 numpy==2.4.6 scipy==1.17.1 matplotlib==3.11.0
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import importlib.metadata
import random

import numpy as np
from mnist1d.data import get_dataset, get_dataset_args, make_dataset

print("mnist1d", importlib.metadata.version("mnist1d"), "numpy", np.__version__)
args = get_dataset_args()
args.num_samples = 100


def draws_after(make, seed):
    random.seed(seed)
    np.random.seed(seed)
    make()
    return round(float(np.random.rand()), 4), round(random.random(), 4)


def told(draws):
    return "; ".join(f"seed {seed}: numpy {a:.4f}, random {b:.4f}" for seed, (a, b) in draws.items())


made = {seed: draws_after(lambda: make_dataset(args), seed) for seed in (1, 2)}
print(told(made))
assert made[1] == made[2], "mnist1d has changed: the caller's seeds survive"

get_dataset(args, path="data.pkl", download=False, verbose=False)  # writes the cache
cached = {seed: draws_after(lambda: get_dataset(args, path="data.pkl", download=False, verbose=False), seed) for seed in (1, 2)}
print("from the cache,", told(cached))
assert cached[1] != cached[2], "mnist1d has changed: reading the cache sets seeds, too"
PY
