"""Reinforcement and on-policy distillation: learning from the model's own answers."""
