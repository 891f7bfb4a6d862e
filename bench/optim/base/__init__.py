"""The parts of all methods: the wrapper around a base optimizer, perturbation, state, weights that return."""
