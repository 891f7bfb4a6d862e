"""`bench doctor`: what this machine can do for the suite, and what to do about each lack."""
