"""Getting runs done: on this machine's GPUs or cores (local), or as jobs of a cluster (slurm)."""
