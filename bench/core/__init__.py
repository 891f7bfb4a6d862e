"""What everything else stands on: errors, specs, registries, seeds. It imports nothing of this package."""
