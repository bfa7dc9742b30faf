"""Puna's own engine behind the `Backend` protocol."""
