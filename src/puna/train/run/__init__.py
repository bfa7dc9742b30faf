"""A run's directory, processes, checkpoints, metrics and signals."""
