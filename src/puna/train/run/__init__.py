"""A run from outside: its directory, its processes, its checkpoints, its metrics, its signals."""
