"""Stages that learn from preferences: reward models, DPO and its relatives."""
