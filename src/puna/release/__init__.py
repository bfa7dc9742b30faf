"""Exports: a model leaves the house in the formats that other programs run."""
