"""The foundation: errors, specs, registries, seeds. Imports nothing of this package."""
