"""Training: the loop, its optimizer, schedule, loss, parallelism, checkpoints, guard, metrics and report."""
