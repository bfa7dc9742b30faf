"""Measurements: this machine, the time and memory of a run, bits per byte."""
