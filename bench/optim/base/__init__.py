"""What all methods are built of: the wrapper around a base optimizer, perturbation, state, weights that come back."""
