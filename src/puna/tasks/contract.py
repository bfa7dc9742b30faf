"""The contract of a task: `sample(seed, level) -> Problem`, `check(problem, answer) -> Verdict`.

A task is a value with three plain functions. `generate(draw, level)` returns a prompt and its data, `grade(data,
answer)` scores a text, and `solve(data)` writes the reference answer, which a model may learn from. Data are plain JSON
and contain everything that grading needs (the right answer, the cost of the best plan, hidden tests), so a problem can
be written to a file and graded elsewhere.

Prompts are short, because a model of a million parameters must read them. The task's `instruction` explains them; it
becomes the system message for models that were not tuned on the task.
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from puna.core.errors import PunaError

Data = dict[str, Any]
Draw = random.Random

MAX_ANSWER = 200_000
"""The longest answer, in characters, that is read; a longer one scores 0."""
PASS = 0.999
"""The score from which a problem counts as solved."""
MAX_SEED = 2**63


@dataclass(frozen=True)
class Problem:
    """One problem. prompt: what the model reads; data: what grading reads, plain JSON."""

    task: str
    level: int
    seed: int
    prompt: str
    data: Data

    def messages(self, instruction: str = "") -> list[dict[str, str]]:
        """The problem as a dialogue; `instruction` (see `Task`) becomes its system message."""
        system = [{"role": "system", "content": instruction}] if instruction else []
        return [*system, {"role": "user", "content": self.prompt}]

    def plain(self) -> dict[str, Any]:
        """The problem as plain JSON."""
        return {
            "task": self.task,
            "level": self.level,
            "seed": self.seed,
            "prompt": self.prompt,
            "data": self.data,
        }


@dataclass(frozen=True)
class Verdict:
    """score: 0 to 1. breakdown: what was examined, each as a number. reason: one sentence."""

    score: float
    breakdown: dict[str, float]
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the problem counts as solved."""
        return self.score >= PASS


def refused(reason: str, **breakdown: float) -> Verdict:
    """Return a verdict with score 0."""
    return Verdict(0.0, breakdown, reason)


Grade = Callable[[Data, str], Verdict]


@dataclass(frozen=True)
class Task:
    """A family of problems.

    name: dotted, such as "planning.grid". scored: which answer earns which score, one sentence. instruction: explains
    the notation and the form of the answer. levels: what each level is, from level 1, easiest first. constants: answers
    that a model which has learned nothing might always give; `baseline` tries them together with answers to other
    problems. tools: names of the tools that an episode offers (`puna.tasks.tools`); empty for a single answer.
    """

    name: str
    scored: str
    instruction: str
    levels: tuple[str, ...]
    generate: Callable[[Draw, int], tuple[str, Data]]
    grade: Grade
    solve: Callable[[Data], str]
    constants: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    code: bool = False
    """Whether answers are programs, which only the sandbox may run."""
    suite: str = ""
    """The suite of `puna eval` that the task belongs to; by default its family, the name up to the first dot."""

    def sample(self, seed: int, level: int = 1) -> Problem:
        """Return the problem of this seed and level. Raises PunaError for an unknown level or seed."""
        if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= len(self.levels):
            raise PunaError(f"{self.name} has no level {level!r}.", f"It has levels 1 to {len(self.levels)}.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
            raise PunaError(f"{seed!r} is not a seed.", "Give a whole number from 0.")
        # random.Random hashes a string seed with SHA-512, so it does not depend on the process's hash seed.
        draw = random.Random(f"{self.name}/{level}/{seed}")
        prompt, data = self.generate(draw, level)
        return Problem(self.name, level, seed, prompt, data)

    def check(self, problem: Problem, answer: Any, grade: Grade | None = None) -> Verdict:
        """Score any value as the answer. Never raises, except PunaError where a program needs a sandbox that is
        missing.

        grade: another grader with the same meaning, for example one bound to another sandbox.
        """
        if not isinstance(answer, str):
            return refused("The answer is not a text.")
        if len(answer) > MAX_ANSWER:
            return refused(f"The answer is longer than {MAX_ANSWER:,} characters.")
        try:
            return (grade or self.grade)(problem.data, answer)
        except PunaError:
            raise
        except Exception as error:  # a grader that fails must not end a batch of rewards
            return refused(f"The check failed with {type(error).__name__}; the problem may be damaged.")

    def solution(self, problem: Problem) -> str:
        """Return the reference answer, with its working."""
        return self.solve(problem.data)


def canonical(problem: Problem) -> str:
    """Return the problem as one line of JSON, the same on every machine."""
    return json.dumps(problem.plain(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
