"""Run by torchrun in test_rl.py: the stage of a recipe, with the test's reward."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

from puna.core.recipe import check
from puna.tasks.contract import Problem, Task, Verdict
from puna.train.measure.machine import Machine
from puna.tune.rl.objective import RL
from puna.tune.rl.recipe import RLRecipe
from puna.tune.stage import run_stage


def likes_e(task: Task, problem: Problem, text: str) -> Verdict:
    """A reward that a random model earns sometimes: a tenth of the answer is the letter e."""
    share = sum(letter in "eE" for letter in text) / max(1, len(text))
    return Verdict(float(share > 0.1), {"share": share}, "")


if __name__ == "__main__":
    torch.set_num_threads(1)
    recipe = check(RLRecipe, json.loads(sys.argv[1]), "test")
    machine = Machine("cpu", "test", 1, 8 << 30, {"fp32": 1e11, "bf16": 1e11}, False)
    run_stage(recipe, Path(sys.argv[2]), partial(RL, recipe=recipe, check=likes_e), machine=machine)
