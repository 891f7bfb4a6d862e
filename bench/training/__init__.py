"""The parts of `bench.train.train`: setup, steps, evaluation, checkpoints, precision."""
