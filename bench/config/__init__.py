"""Experiment files: found, read, overridden, checked and resolved into runs."""
