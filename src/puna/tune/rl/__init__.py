"""Reinforcement with verifiable rewards, and on-policy distillation: what learns from the model's own answers."""
