"""Everything about a run except training: its directory, processes, checkpoints, metrics and signals."""
