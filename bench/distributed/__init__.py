"""Runs over several processes: their launcher, entry point, messages and rendezvous."""
