"""Choosing a layout: search over all legal ones, constraints, predictions, and suggestions when none fits."""
