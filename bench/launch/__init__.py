"""Getting runs done: on this machine's GPUs or cores (local)."""
