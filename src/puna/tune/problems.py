"""Problems to train on and to measure with: see `puna.tasks.heldout`, where evaluations find the same ones."""

from puna.tasks.heldout import heldout_problems, is_heldout, training_problem

__all__ = ["heldout_problems", "is_heldout", "training_problem"]
