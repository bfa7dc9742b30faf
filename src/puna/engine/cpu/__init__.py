"""What is particular to a CPU: compiled kernels, the weight layouts they read, and the fused model."""
