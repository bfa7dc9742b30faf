"""What is measured: this machine, the clock of a run, bits per byte."""
