"""Reinforcement with verifiable rewards, and on-policy distillation: learning from the model's own answers."""
