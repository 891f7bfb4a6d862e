"""The parts of all methods: the wrapper around a base optimizer, perturbation, state, and weights that are restored."""
