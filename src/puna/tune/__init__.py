"""After pretraining: supervised fine-tuning, reward models, preferences, reinforcement, averaging."""
