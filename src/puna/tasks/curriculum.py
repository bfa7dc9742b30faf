"""Chooses the level of the next problems so that the share that is solved stays between two bounds.

Reinforcement learns nothing from problems that are always or never solved. The curriculum has a position among the
levels, from 1 to the last. Most problems come from the levels next to it, some from all levels below, so that nothing
is forgotten. After each window of results at the position, a pass rate above the upper bound moves it up and one below
the lower bound moves it down.

Everything is a function of the recorded results: the same results in the same order give the same problems, in any
process. The state is plain JSON, so that a stopped run can go on.
"""

import math
import random
from typing import Any, NamedTuple

from puna.core.errors import PunaError
from puna.tasks.contract import MAX_SEED, PASS, Problem, Task


class Drawn(NamedTuple):
    """The next problem: the number of the draw, the level and the seed."""

    number: int
    level: int
    seed: int


class Curriculum:
    """Draws problems of a task and moves its levels.

    low, high: bounds of the pass rate. window: results at the position before it moves. step: how far it moves, in
    levels. review: share of problems from the levels below. seed: of the draws. first: the level to begin at.
    """

    def __init__(
        self,
        task: Task,
        *,
        low: float = 0.3,
        high: float = 0.8,
        window: int = 64,
        step: float = 0.5,
        review: float = 0.15,
        seed: int = 0,
        first: int = 1,
    ) -> None:
        if not 0 < low < high < 1:
            raise PunaError(
                f"A curriculum cannot keep the pass rate between {low} and {high}.",
                "Give bounds with 0 < low < high < 1.",
            )
        if window < 1 or step <= 0 or not 0 <= review < 1 or not 1 <= first <= len(task.levels):
            raise PunaError(
                f"A curriculum cannot have window {window}, step {step}, review {review} and first {first}.",
                f"Give window >= 1, step > 0, 0 <= review < 1 and a level from 1 to {len(task.levels)}.",
            )
        self.task, self.low, self.high, self.window, self.step = task, low, high, window, step
        self.review, self.seed = review, seed
        self.position = float(first)
        self.drawn = self.passed = self.seen = 0
        self.counts = [[0, 0] for _ in task.levels]

    def distribution(self) -> list[float]:
        """Return the share of problems from each level; they sum to 1."""
        top = len(self.task.levels)
        below, above = math.floor(self.position), min(top, math.floor(self.position) + 1)
        shares = [0.0] * top
        easier = below - 1
        review = self.review if easier else 0.0
        for level in range(easier):
            shares[level] += review / easier
        shares[below - 1] += (1 - review) * (1 - (self.position - below))
        shares[above - 1] += (1 - review) * (self.position - below)
        return shares

    def draw(self) -> Drawn:
        """Draw the next level and seed."""
        source = random.Random(f"curriculum/{self.task.name}/{self.seed}/{self.drawn}")
        point, level = source.random(), 0
        shares = self.distribution()
        while level < len(shares) - 1 and point >= shares[level]:
            point -= shares[level]
            level += 1
        self.drawn += 1
        return Drawn(self.drawn - 1, level + 1, source.randrange(MAX_SEED))

    def sample(self) -> Problem:
        """Draw the next problem."""
        drawn = self.draw()
        return self.task.sample(drawn.seed, drawn.level)

    def record(self, level: int, score: float) -> None:
        """Record the score of an answer at this level. Levels in review do not move the position."""
        if not 1 <= level <= len(self.counts):
            raise PunaError(f"{self.task.name} has no level {level}.", f"It has levels 1 to {len(self.counts)}.")
        solved = score >= PASS
        self.counts[level - 1][0] += solved
        self.counts[level - 1][1] += 1
        if level < math.floor(self.position):
            return
        self.passed += solved
        self.seen += 1
        if self.seen < self.window:
            return
        rate = self.passed / self.seen
        if rate > self.high:
            self.position = min(float(len(self.counts)), self.position + self.step)
        elif rate < self.low:
            self.position = max(1.0, self.position - self.step)
        self.passed = self.seen = 0

    def state(self) -> dict[str, Any]:
        """Return everything that the next draws depend on, besides the arguments, as plain JSON."""
        return {
            "task": self.task.name,
            "position": self.position,
            "drawn": self.drawn,
            "passed": self.passed,
            "seen": self.seen,
            "counts": [list(count) for count in self.counts],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises PunaError for the state of another task or a damaged one."""
        try:
            counts = [[int(solved), int(seen)] for solved, seen in state["counts"]]
            position = float(state["position"])
            drawn, passed, seen = int(state["drawn"]), int(state["passed"]), int(state["seen"])
            fits = state["task"] == self.task.name and len(counts) == len(self.counts)
            fits = fits and 1 <= position <= len(counts) and drawn >= 0 and 0 <= passed <= seen < self.window
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise PunaError(
                f"This is not the state of a curriculum of {self.task.name}.", "Start the curriculum again."
            )
        self.position, self.drawn, self.passed, self.seen, self.counts = position, drawn, passed, seen, counts
