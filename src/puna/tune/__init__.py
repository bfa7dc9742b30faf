"""Stages after pretraining: fine-tuning, preferences, reinforcement, averaging."""
