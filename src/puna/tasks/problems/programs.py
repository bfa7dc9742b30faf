"""Program synthesis and program repair: the answer is a Python function, checked by running it on hidden inputs.

Only the sandbox runs model code: it gets the source and the inputs and returns plain values. The expected values stay
here and are compared strictly, type by type. The visible examples are run together with the hidden inputs, and the
program cannot tell them apart, so `visible` far above `hidden` in the breakdown means that examples were memorized. A
program scores 1 if all hidden inputs give the right value, else 0.
"""

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from puna.tasks import answer_parser, sandboxed
from puna.tasks.contract import Data, Draw, Task, Verdict, refused
from puna.tasks.problems import pipelines

VISIBLE, HIDDEN = 3, 12
"""The number of examples that are shown, and of inputs that are not."""

# The kinds of stages of each level.
_SYNTHESIS = (
    ("number",),
    ("number", "number"),
    ("map",),
    ("keep", "end"),
    ("keep", "map", "end"),
    ("choose", "number", "choose"),
    ("list", "keep", "map", "list", "end"),
)
_REPAIR = (
    ("number",),
    ("number", "number"),
    ("keep", "end"),
    ("map", "keep", "end"),
    ("choose", "number", "choose"),
    ("list", "keep", "map", "list", "end"),
)


class ProgramOutcome(NamedTuple):
    """What a call returned, or in `error` why it did not return: an exception, or what ended the program."""

    value: Any = None
    error: str = ""


Evaluate = Callable[[str, str, Sequence[Sequence[Any]]], Sequence[ProgramOutcome]]
"""`evaluate(source, function, inputs)`: run `function(*arguments)` of `source` for each of `inputs`, isolated.

Returns one CallResult for each input. Raises PunaError if there is no isolation to run it in.
"""


def synthesis(draw: Draw, level: int) -> tuple[str, Data]:
    """A specification with examples."""
    stages = _interesting(draw, _SYNTHESIS[level - 1])
    data = _tests(draw, stages, [])
    return f"{pipelines.phrase(stages)}\n{_examples(data)}", data


def repair(draw: Draw, level: int) -> tuple[str, Data]:
    """A specification, examples and a program with one mistake, revealed by at least a third of the hidden inputs."""
    while True:
        stages = _interesting(draw, _REPAIR[level - 1])
        broken = pipelines.mutate(draw, stages)
        data = _tests(draw, stages, broken)
        wrong = sum(pipelines.apply(broken, given) != right for given, right in data["hidden"])
        if wrong * 3 >= HIDDEN:
            break
    return f"{pipelines.phrase(stages)}\n{_examples(data)}\n```\n{pipelines.write(broken)}\n```", data


def _interesting(draw: Draw, kinds: tuple[str, ...]) -> list[pipelines.Stage]:
    """Stages that each change something, so that no shorter program does the same by chance."""
    while True:
        stages = [pipelines.draw_stage(draw, kind) for kind in kinds]
        if any(one[:2] == other[:2] for one, other in itertools.pairwise(stages)):
            continue
        inputs = [pipelines.draw_input(draw, stages) for _ in range(24)]
        results = [pipelines.apply(stages, given) for given in inputs]
        if len({json.dumps(result) for result in results}) < 4:
            continue
        if sum(result == given for result, given in zip(results, inputs, strict=True)) > 12:
            continue
        return stages


def _tests(draw: Draw, stages: list[pipelines.Stage], broken: list[pipelines.Stage]) -> Data:
    """Inputs with their results, all different; the visible ones are not among the hidden."""
    seen: dict[str, list[Any]] = {}
    while len(seen) < VISIBLE + HIDDEN:
        given = pipelines.draw_input(draw, stages)
        # The visible examples should show something: no empty lists.
        if len(seen) < VISIBLE and given == []:
            continue
        seen.setdefault(json.dumps(given), [given, pipelines.apply(stages, given)])
    cases = list(seen.values())
    return {
        "stages": stages,
        "broken": broken,
        "visible": cases[:VISIBLE],
        "hidden": cases[VISIBLE:],
    }


def _examples(data: Data) -> str:
    return "\n".join(f"{pipelines.NAME}({given}) == {result}" for given, result in data["visible"])


def grade(data: Data, text: str, evaluate: Evaluate | None = None) -> Verdict:
    """Score 1 if every hidden input gives the right value, else 0. Raises PunaError if there is no sandbox."""
    found = answer_parser.program(text)
    if found.text is None:
        return refused(found.reason)
    cases = [*data["visible"], *data["hidden"]]
    outcomes = list((evaluate or in_sandbox)(found.text, pipelines.NAME, [[given] for given, _ in cases]))
    if len(outcomes) != len(cases):
        return refused("The sandbox did not answer for every input.")
    right = [
        not outcome.error and strictly_equal(outcome.value, expected)
        for outcome, (_, expected) in zip(outcomes, cases, strict=True)
    ]
    shown = len(data["visible"])
    visible, hidden = sum(right[:shown]) / shown, sum(right[shown:]) / (len(cases) - shown)
    parts = {"visible": visible, "hidden": hidden}
    if all(right):
        return Verdict(1.0, parts, "The program is right on all hidden inputs.")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        return refused(f"The program failed with {str(errors[0])[:80]}.", **parts)
    return refused("The program is wrong on some inputs.", **parts)


def strictly_equal(given: Any, expected: Any) -> bool:
    """Whether two values are equal, where True is not 1, 1.0 is not 1 and a tuple is not a list."""
    if type(given) is not type(expected):
        return False
    if isinstance(expected, list):
        return len(given) == len(expected) and all(map(strictly_equal, given, expected))
    return bool(given == expected)


def in_sandbox(
    source: str, function: str, inputs: Sequence[Sequence[Any]], *, floor: str = sandboxed.FLOOR
) -> Sequence[ProgramOutcome]:
    """Run a program in the sandbox. Raises PunaError if its isolation is below `floor`."""
    result = sandboxed.run(source, function=function, inputs=inputs, floor=floor)
    if result is None:
        return [ProgramOutcome(error="the program broke its sandbox")] * len(inputs)
    outcomes = [ProgramOutcome(answer.value, answer.error) for answer in result.values]
    return [*outcomes, *[ProgramOutcome(error=result.reason or "no answer")] * (len(inputs) - len(outcomes))]


def solve(data: Data) -> str:
    """Return the reference program."""
    return f"```python\n{pipelines.write(data['stages'])}\n```"


_ANSWER = " Write the whole Python function in one fenced block."
_SCORED = "all of 12 hidden inputs right 1; the program runs in the sandbox"
_CONSTANTS = tuple(
    f"```python\ndef f(x):\n    return {result}\n```"
    for result in ("x", "0", "1", "[]", "-x", "x + 1", "x * 2", "sum(x)", "len(x)", "sorted(x)", "x[::-1]")
)

TASKS = (
    Task(
        "code.synthesis",
        _SCORED,
        "Write a Python function that does the steps in their order; the examples show some results." + _ANSWER,
        (
            "one step on a number",
            "two steps on a number",
            "one step on each of a list",
            "keep and reduce",
            "keep, map and reduce",
            "two branches",
            "five steps on a list",
        ),
        synthesis,
        grade,
        solve,
        _CONSTANTS,
        code=True,
    ),
    Task(
        "code.repair",
        _SCORED,
        "The program should do the steps in their order, as the examples show, but it has a mistake. Correct it."
        + _ANSWER,
        (
            "one step on a number",
            "two steps on a number",
            "keep and reduce",
            "map, keep and reduce",
            "two branches",
            "five steps on a list",
        ),
        repair,
        grade,
        solve,
        _CONSTANTS,
        code=True,
    ),
)
