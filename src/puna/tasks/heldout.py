"""Problems to train on and problems to measure with: two sides that never meet. No torch.

Seeds alone would not keep them apart, because an easy level has few problems and two seeds often make the same one. So
the text decides: a problem is held out when the hash of its prompt says so. Whoever trains skips those, whoever
measures takes only those, and nobody has to know what the other one drew.
"""

import hashlib
import random

from puna.core.errors import PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import MAX_SEED, Problem, Task

HELDOUT_SHARE = 0.25
"""Of all prompts. Measuring draws 4 problems for one that it may use, training 4 for 3."""
_TRIES = 400


def is_heldout(problem: Problem) -> bool:
    """Whether a problem is for measuring, and may not be trained on."""
    digest = hashlib.sha256(f"{problem.task}\n{problem.prompt}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT_SHARE * 2**64


def training_problem(task: Task, level: int, number: int, seed: int = 0) -> Problem:
    """The `number`-th problem to train on; the same for the same (task, level, number, seed) everywhere.

    Raises PunaError when a level has hardly any problems that are not held out.
    """
    draw = random.Random(f"training/{task.name}/{level}/{seed}/{number}")
    for _ in range(_TRIES):
        problem = task.sample(draw.randrange(MAX_SEED), level)
        if not is_heldout(problem):
            return problem
    raise PunaError(f"{task.name} at level {level} has no problems to train on.", "Choose a higher level.")


def heldout_problems(name: str, level: int, count: int, seed: int = 0) -> list[Problem]:
    """`count` held-out problems with different prompts, fewer where the level does not have so many.

    Raises PunaError for a task or level that there is not, and where nothing is held out.
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
