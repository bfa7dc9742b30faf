"""Our own tasks as benchmarks: 50 held-out problems at each level, a group for each.

The problems are those that nobody trains on (`tasks.heldout`), so a model that was tuned on a task is measured on what
it has not seen. Tasks with tools are worked on in several turns and are not among these; `puna tune` measures them.
"""

from collections.abc import Callable

from puna.evals.benchmark import Benchmark, Item, Score, Text
from puna.evals.files import EvalData
from puna.tasks.catalogue import TASKS, find
from puna.tasks.heldout import heldout_problems
from puna.tasks.task import Problem, Task

PER_LEVEL = 50
MAX_TOKENS = 256
_SUITES = {"arithmetic": "reasoning", "rewriting": "reasoning", "code": "code", "planning": "planning"}


def _load(task: Task) -> Callable[[EvalData], list[Item]]:
    def load(data: EvalData) -> list[Item]:
        return [
            _item(task, problem, data.instruct)
            for level in range(1, len(task.levels) + 1)
            for problem in heldout_problems(task.name, level, PER_LEVEL)
        ]

    return load


def _item(task: Task, problem: Problem, instruct: bool) -> Item:
    instruction = task.instruction if instruct else ""
    prompt = f"{instruction}\n\n{problem.prompt}\n" if instruct else f"{problem.prompt}\n"
    ask = Text(prompt, ("\n\n\n",), MAX_TOKENS, tuple(problem.messages(instruction)))
    solution = task.solution(problem)
    body = f"{problem.prompt}\n{solution}"
    name = f"{problem.level}-{problem.seed}"
    return Item(name, ask, problem.plain(), f"level {problem.level}", body, solution)


def checked(item: Item, response: str) -> Score:
    """1 when the task's own check counts the problem as solved. parts: the check's score and its breakdown."""
    verdict = find(item.target["task"]).check(Problem(**item.target), response)
    return Score(float(verdict.passed), response.strip(), verdict.reason if not verdict.passed else "",
                 {"score": verdict.score, **verdict.breakdown})  # fmt: skip


BENCHMARKS = tuple(
    Benchmark(
        task.name,
        f"Puna: {task.name}",
        (_SUITES[task.name.partition(".")[0]], "puna"),
        _load(task),
        checked,
        "zero-shot; the task's instruction and the problem",
        f"solved; {task.scored}",
        "made by puna.tasks, held-out problems, Apache-2.0",
        constants=task.constants[:6],
        code=task.code,
    )
    for task in TASKS.values()
    if not task.tools
)
