#!/usr/bin/env bash
# submitit 1.5.4: a subclass of SlurmExecutor is used for single jobs only. Of an array of jobs (submit_array, map_array,
# batch()) submitit makes a new, plain SlurmExecutor inside, so methods that the subclass overrides (here the command
# that calls sbatch) are passed over without a word.
#
# Seen: a single job asks the subclass 1 time(s), an array 0 time(s).
#
# sbatch and srun are two shell scripts here: only which command is called matters.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4 cloudpickle==3.1.1 typing_extensions==4.12.2
mkdir "$folder/bin"
printf '#!/bin/sh\necho "Submitted batch job 7"\n' > "$folder/bin/sbatch"
printf '#!/bin/sh\n' > "$folder/bin/srun"
chmod +x "$folder/bin/sbatch" "$folder/bin/srun"
PATH="$folder/bin:$PATH" "$folder/venv/bin/python" - "$folder/logs" <<'EOF'
import sys
from importlib.metadata import version

import submitit

calls = []


class Ours(submitit.SlurmExecutor):
    def _make_submission_command(self, submission_file_path):
        calls.append("ours")
        return super()._make_submission_command(submission_file_path)


print("submitit", version("submitit"))
Ours(sys.argv[1]).submit(print, 1)
single, calls[:] = len(calls), []
Ours(sys.argv[1]).map_array(print, [1, 2])
print(f"a single job asks the subclass {single} time(s), an array {len(calls)} time(s)")
assert (single, len(calls)) == (1, 0), "changed: the subclass counts for arrays too"
EOF
