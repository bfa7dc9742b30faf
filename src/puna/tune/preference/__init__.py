"""Stages that learn from preferences: reward models, direct preference optimisation and its relatives."""
