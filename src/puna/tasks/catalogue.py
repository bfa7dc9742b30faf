"""All tasks by name, Puna's own and those of plugins, and the score of the best constant answer to each."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from types import ModuleType
from typing import NamedTuple

from puna.core.plugins import Registry, entries
from puna.tasks.contract import Data, Grade, Problem, Task, Verdict
from puna.tasks.problems import (
    arithmetic,
    blocks,
    grid,
    hanoi,
    pipelines,
    programs,
    reasoning_gym,
    rewriting,
    schedules,
    shortest_path,
    tool_use,
    tracing,
)

_INTERPRETED = {task.name for task in programs.TASKS}
_MODULES = (arithmetic, rewriting, tracing, programs, grid, shortest_path, blocks, hanoi, schedules, tool_use)


def _named(module: ModuleType) -> list[tuple[str, Task]]:
    return [(task.name, task) for task in entries(module, "TASKS", Task)]


def built_in() -> Iterator[Task]:
    """Puna's own tasks, easiest families first."""
    for module in _MODULES:
        yield from module.TASKS


TASKS: Registry[Task] = Registry("task", ("puna.tasks",), lambda: ((task.name, task) for task in built_in()), _named)
"""Every task by its name, easiest families first, plugins last."""

BASELINE_SEED = 10**9
"""Constant answers are tried on problems of the seeds from here on, far from those that people sample."""


def find(name: str) -> Task:
    """Return the task of this name. Raises PunaError naming the nearest."""
    if name.startswith("gym.") and name not in TASKS:
        return reasoning_gym.find(name)
    return TASKS.find(name)


class Baseline(NamedTuple):
    """The best constant answer to a task at a level: its mean score, the answer, and the number of problems."""

    score: float
    answer: str
    problems: int


@lru_cache(maxsize=256)
def baseline(name: str, level: int, problems: int = 200) -> Baseline:
    """Return the best that a model could score by giving the same answer to every problem.

    It tries the task's own `constants`, the empty answer and the 32 most frequent reference answers to other problems.
    The best of many tries on few problems is overestimated, so this errs upwards. Puna's own programs are scored by
    its interpreter, without a sandbox; of other tasks with programs only the empty answer is tried.
    """
    task = find(name)
    seen = Counter(task.solution(task.sample(BASELINE_SEED + number, level)) for number in range(2 * problems))
    tried = [*task.constants, "", *(answer for answer, _ in seen.most_common(32))]
    asked = [task.sample(BASELINE_SEED + 2 * problems + number, level) for number in range(problems)]
    grade: Grade = task.grade
    if task.code and task.name not in _INTERPRETED:
        tried = [""]
    elif task.code:
        known = {programs.solve({"stages": stages}): stages for stages in _programs(task, level, problems)}
        tried = ["", *known]
        grade = partial(_grade_known, known)
    scores = [
        (sum(task.check(problem, answer, grade).score for problem in asked) / problems, answer) for answer in tried
    ]
    score, answer = max(scores, key=lambda entry: entry[0])
    return Baseline(score, answer, problems)


def _programs(task: Task, level: int, problems: int) -> list[list[pipelines.Stage]]:
    """The most frequent programs among the references."""
    samples: list[Problem] = [task.sample(BASELINE_SEED + number, level) for number in range(2 * problems)]
    seen = Counter(repr(problem.data["stages"]) for problem in samples)
    by_text = {repr(problem.data["stages"]): problem.data["stages"] for problem in samples}
    return [by_text[text] for text, _ in seen.most_common(32)]


def _grade_known(known: dict[str, list[pipelines.Stage]], data: Data, answer: str) -> Verdict:
    """Grade one of Puna's own programs by its stages instead of running its source."""

    def evaluate(_source: str, _function: str, inputs: list) -> list[programs.ProgramOutcome]:
        return [programs.ProgramOutcome(pipelines.apply(known[answer], given)) for (given,) in inputs]

    return programs.grade(data, answer, evaluate)  # type: ignore[arg-type]
