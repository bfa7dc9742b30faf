"""Training: the loop, optimizer, schedule, loss, parallelism, checkpoints, guard, metrics and report."""
