"""What is on disk: runs, records, locks, archives; and which configuration is chosen from them. Never torch."""
