"""The process that imports torch once and forks all workers of a launch."""

from __future__ import annotations

import signal
from multiprocessing import forkserver, resource_tracker

from bench.core.allocator import preloaded
from bench.launch.local.sockets import short_sockets

# torch imports its compiler when a process makes its first optimizer, which takes a second: here once for all workers.
PRELOAD = ["bench.launch.local.worker", "torch._dynamo"]


def start_fork_server() -> None:
    """Start the fork server, with a faster allocator if there is one; it imports while this process continues.

    It has no threads and no CUDA context, so forking it is safe. One that runs already is kept.

    Raises:
        BenchError: BENCH_MALLOC names an allocator that is not installed, or TMPDIR is too long and /tmp of no use.
    """
    short_sockets()
    forkserver.set_forkserver_preload(PRELOAD)
    # Here and not in `ensure_running` below, since it would unblock SIGINT there.
    resource_tracker.ensure_running()
    # Ctrl-C is for the launcher; in the middle of the server's imports it would end in a traceback of the server's.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with preloaded():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
