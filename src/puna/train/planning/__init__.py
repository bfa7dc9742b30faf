"""Predict what a run will take before it starts: layout, memory, time per step."""
