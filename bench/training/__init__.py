"""What `bench.train.train` is made of: setup, steps, evaluation, checkpoints, precision."""
