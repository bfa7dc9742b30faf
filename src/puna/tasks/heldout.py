"""Keeps problems for training and problems for measuring apart. No torch.

Seeds alone would not do it, because an easy level has few problems and two seeds often make the same one. So the text
decides: whether a problem is held out follows from the hash of its prompt. Training skips held-out problems, measuring
uses nothing else, and neither has to know what the other one drew.
"""

import hashlib
import random

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import MAX_SEED, Problem, Task

HELDOUT_SHARE = 0.25
"""The share of all prompts. Measuring draws 4 problems for each one it may use, training 4 for 3."""
_TRIES = 400


def is_heldout(problem: Problem) -> bool:
    """Whether a problem is for measuring only and must not be trained on."""
    digest = hashlib.sha256(f"{problem.task}\n{problem.prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


def training_problem(task: Task, level: int, number: int, seed: int = 0) -> Problem:
    """Return the `number`-th problem to train on; it depends on (task, level, number, seed) only.

    Raises PunaError for a level in which nearly all problems are held out.
    """
    draw = random.Random(f"training/{task.name}/{level}/{seed}/{number}")
    for _ in range(_TRIES):
        problem = task.sample(draw.randrange(MAX_SEED), level)
        if not is_heldout(problem):
            return problem
    raise PunaError(f"{task.name} at level {level} has no problems to train on.", "Choose a higher level.")


def heldout_problems(name: str, level: int, count: int, seed: int = 0) -> list[Problem]:
    """Return `count` held-out problems with different prompts, or fewer if the level does not have as many.

    Raises PunaError for an unknown task or level, and if nothing is held out.
    """
    task = find(name)
    draw = random.Random(f"heldout/{name}/{level}/{seed}")
    found: dict[str, Problem] = {}
    unlucky = 0
    while len(found) < count and unlucky < _TRIES:
        problem = task.sample(draw.randrange(MAX_SEED), level)
        unlucky += 1
        if is_heldout(problem) and problem.prompt not in found:
            found[problem.prompt] = problem
            unlucky = 0
    if not found:
        raise PunaError(f"{name} at level {level} has no held-out problems.", "Choose a higher level.")
    return list(found.values())
