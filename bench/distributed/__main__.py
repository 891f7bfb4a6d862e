import sys

from bench.distributed.launcher import main

sys.exit(main(sys.argv[1:]))
