"""What a process is started with, as JSON: for `test_prefork.py`."""

import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    print("to stderr", file=sys.stderr)
    started = {
        "arguments": sys.argv,
        "path": sys.path[0],
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "stdin": sys.stdin.read(),
        "leads a session": os.getsid(0) == os.getpid(),
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "handlers": {number.name: str(signal.getsignal(number)).split(" at ")[0] for number in signal.Signals},
        "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "command line": Path("/proc/self/cmdline").read_text().rstrip("\0").split("\0")[1:],
    }
    print(json.dumps(started))
    sys.exit(7)
