"""Stages after pretraining: supervised fine-tuning, reward models, preferences, reinforcement, averaging."""
