"""What is particular to a GPU: paged attention, CUDA graphs of the decode step, and overlapped steps."""
