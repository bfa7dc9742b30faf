"""Training: loop, optimizer, loss, parallelism, checkpoints, guard, metrics and report."""
