"""Runs on this machine: workers over its GPUs or cores."""
