#!/bin/sh
# statsmodels: multipletests(method="holm") calls gc.collect(), alone among its methods and however few the p values are:
# correcting three numbers walks over every object of the process, 0.15 s in one that has imported torch, pandas and
# matplotlib, where the arithmetic takes microseconds. It was half of the time of a report's tables.
# A good engineer would guess that correcting p values costs what sorting them does, and leaves the collector alone.
#
# Seen with 0.15.0: one full collection per call for "holm", none for "bonferroni".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check statsmodels==0.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import gc
import sys

import statsmodels
from statsmodels.stats.multitest import multipletests

collections = []
gc.disable()  # no collection but those that are asked for
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "start" else None)
print("statsmodels", statsmodels.__version__)
seen = {}
for method in ("holm", "bonferroni"):
    collections.clear()
    corrected = multipletests([0.01, 0.02, 0.03], method=method)[1]
    seen[method] = list(collections)
    print(f"{method}: {corrected.round(3)}, collections of generation {seen[method]}")
sys.exit(0 if seen == {"holm": [2], "bonferroni": []} else 1)
PYTHON
