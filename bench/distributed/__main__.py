import sys

from bench.distributed.launcher import main

# The exit status is how `launcher.Rank`, srun and torchrun learn that this process has failed.
sys.exit(main(sys.argv[1:]))
