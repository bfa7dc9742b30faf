"""The cost model: what a training step takes in time and memory, as equations over columns of numbers (NumPy only)."""
