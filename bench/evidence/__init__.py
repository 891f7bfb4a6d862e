"""Checks of results: repeating, comparing, merging and exporting them, and measuring final weights."""
