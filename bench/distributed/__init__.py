"""A run over several processes: started, joined, told about each other."""
