"""Tasks as benchmarks: 50 held-out problems at each level, one group for each level.

Training never uses these problems (`tasks.heldout`), so a model that was tuned on a task is measured on what it has not
seen. Tasks with tools are solved in several turns.
"""

from collections.abc import Callable

from puna.evals.contract import Benchmark, Item, MultiTurn, Score, Text, Transcript
from puna.evals.datasets import EvalData
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem, Task
from puna.tasks.heldout import heldout_problems

PER_LEVEL = 50
MAX_TOKENS = 256
"""The length limit of an answer, or of one turn."""


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
    ask: Text | MultiTurn = Text(prompt, ("\n\n\n",), MAX_TOKENS, tuple(problem.messages(instruction)))
    if task.tools:
        ask = MultiTurn(problem, MAX_TOKENS, instruct)
    solution = task.solution(problem)
    body = f"{problem.prompt}\n{solution}"
    name = f"{problem.level}-{problem.seed}"
    return Item(name, ask, problem.plain(), f"level {problem.level}", body, solution)


def score_attempt(item: Item, response: str | Transcript) -> Score:
    """Score 1 if the task's own check counts the problem as solved. parts: the check's score and breakdown.

    For a task with tools, a text is an answer that was given without them.
    """
    if isinstance(response, Transcript):
        answer, verdict = response.answer, response.verdict
    else:
        answer, verdict = response, find(item.target["task"]).check(Problem(**item.target), response)
    return Score(float(verdict.passed), answer.strip(), verdict.reason if not verdict.passed else "",
                 {"score": verdict.score, **verdict.breakdown})  # fmt: skip


def benchmark_of(task: Task) -> Benchmark:
    """Return a task as a benchmark, in the task's own suite and in `puna`."""
    return Benchmark(
        task.name,
        f"Puna: {task.name}",
        (task.suite or task.name.partition(".")[0], "puna"),
        _load(task),
        score_attempt,
        "zero-shot; the task's instruction and the problem" + ("; chat turns with tools" if task.tools else ""),
        f"solved; {task.scored}",
        "made by puna.tasks, held-out problems, Apache-2.0",
        constants=task.constants[:6],
        code=task.code,
        sandbox="python" in task.tools,
    )
