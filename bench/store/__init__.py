"""Files on disk: runs, records, locks, archives; and the choice of configurations from them. Never imports torch."""
