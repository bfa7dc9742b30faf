"""Multi-turn tool use: problems that need a calculator or Python, as an environment with `step`.

An `Episode` holds the dialogue. `step` takes what the model wrote: text with <tool_call> objects is answered by one
tool message for each call, text without any is the final answer and ends the episode with a verdict. Messages are
those of the chat renderer; ids that the model wrote are kept as `token_ids`, so nothing is tokenised twice, and tool
messages are marked by their role, so nobody trains on them.

A model may call wrongly: what it gets back is a sentence that begins with "error:", never an exception of ours.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from puna.core.errors import PunaError
from puna.tasks import answers, calculator, isolation
from puna.tasks.task import MAX_ANSWER, Data, Draw, Problem, Task, Verdict, refused

MAX_CALLS = 8
"""Calls in one message."""
MAX_RESULT = 2_000
"""Characters of a result that the model gets to see."""

RunCode = Callable[[str], str]
"""Runs a Python program in a sandbox and gives what it printed. Raises PunaError where there is no sandbox."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "calculator": {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Compute an expression of whole numbers with + - * // % ** and brackets.",
            "parameters": {
                "type": "object",
                "properties": {"expression": {"type": "string"}},
                "required": ["expression"],
            },
        },
    },
    "python": {
        "type": "function",
        "function": {
            "name": "python",
            "description": "Run a Python program and return what it prints.",
            "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
        },
    },
}
_PARAMETERS = {"calculator": "expression", "python": "code"}


class Episode:
    """One problem being worked on.

    messages: the dialogue so far; tools: what `render` is told of. done and verdict are set by the step that ends it.
    """

    def __init__(
        self, task: Task, problem: Problem, *, instruct: bool = True, turns: int = 8, run_code: RunCode | None = None
    ) -> None:
        self.task, self.problem, self.turns = task, problem, turns
        self.run_code = run_code or in_sandbox
        self.messages: list[dict[str, Any]] = [*problem.messages(task.instruction if instruct else "")]
        self.tools = [SCHEMAS[name] for name in task.tools]
        self.calls = self.failed = 0
        self.verdict: Verdict | None = None

    @property
    def done(self) -> bool:
        """Whether there is a verdict."""
        return self.verdict is not None

    def step(self, text: str, token_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Take the model's turn; returns the tool messages that answer it, none when the episode is over.

        Raises PunaError after the end, and where Python is called and no sandbox is there.
        """
        if self.done:
            raise PunaError("The episode is over.", "Begin another one.")
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if token_ids is not None:
            message["token_ids"] = list(token_ids)
        self.messages.append(message)
        written = sum(entry["role"] == "assistant" for entry in self.messages)
        calls = calls_in(text) if len(text) <= MAX_ANSWER else []
        if not calls:
            self._end(self.task.check(self.problem, text))
            return []
        results = [{"role": "tool", "content": self._answer(call)} for call in calls]
        self.messages += results
        if written >= self.turns:
            self._end(refused(f"There was no answer after {self.turns} turns."))
            return []
        return results

    def _end(self, verdict: Verdict) -> None:
        counts = {"calls": float(self.calls), "failed_calls": float(self.failed)}
        self.verdict = Verdict(verdict.score, {**verdict.breakdown, **counts}, verdict.reason)

    def _answer(self, call: tuple[str, Any] | str) -> str:
        self.calls += 1
        result = call if isinstance(call, str) else self._use(*call)
        self.failed += result.startswith("error:")
        return result[:MAX_RESULT]

    def _use(self, name: str, arguments: Any) -> str:
        if name not in self.task.tools:
            return f"error: there is no tool named {name[:40]!r}."
        parameter = _PARAMETERS[name]
        value = arguments.get(parameter) if isinstance(arguments, dict) else None
        if not isinstance(value, str):
            return f"error: {name} needs {parameter!r}, a string."
        if name == "python":
            return self.run_code(value)
        try:
            return str(calculator.calculate(value))
        except calculator.Refused as refusal:
            return f"error: {refusal}"


def calls_in(text: str) -> list[tuple[str, Any] | str]:
    """The calls of a model's message: (name, arguments), or the error the model is told. Empty without <tool_call>."""
    calls: list[tuple[str, Any] | str] = []
    end = text.rfind("</think>")
    place = text.find("<tool_call>", end + 1)
    while place >= 0:
        if len(calls) == MAX_CALLS:
            calls[-1] = f"error: more than {MAX_CALLS} calls at once."
            break
        begin = place + len("<tool_call>")
        close = text.find("</tool_call>", begin)
        calls.append(_call(text[begin:close]) if close >= 0 else "error: the call does not end with </tool_call>.")
        place = text.find("<tool_call>", close) if close >= 0 else -1
    return calls


def _call(body: str) -> tuple[str, Any] | str:
    try:
        call = json.loads(body)
        arguments = call["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        return str(call["name"]), arguments
    except (ValueError, KeyError, TypeError, RecursionError):
        return 'error: a call is {"name": "…", "arguments": {…}} in JSON.'


def in_sandbox(code: str, *, floor: str = isolation.FLOOR) -> str:
    """What a program prints, run in `puna.sandbox`; the last line of its error where it fails."""
    result = isolation.run(code, floor=floor)
    if result is None:
        return "error: the program broke its sandbox."
    if not result.ok:
        return f"error: {result.reason}."
    if result.exit:
        return f"error: {(result.stderr.strip().splitlines() or ['the program failed'])[-1]}"
    return result.stdout.strip() or "error: the program printed nothing."


_CALCULATIONS = ((2, 2, "+*"), (3, 3, "+*"), (3, 4, "+-*"), (4, 6, "+-*"), (6, 8, "+-*%"))
"""(numbers, digits of each, operators) of each level."""


def calculation(draw: Draw, level: int) -> tuple[str, Data]:
    """An expression that is beyond the head."""
    count, digits, signs = _CALCULATIONS[level - 1]
    numbers = [draw.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(count)]
    text = str(numbers[0])
    for number in numbers[1:]:
        text = f"({text})" if draw.random() < 0.3 else text
        text += f"{draw.choice(signs)}{number}"
    return f"{text}=", {"expression": text, "answer": calculator.calculate(text)}


def _digit_sum(base: int, exponent: int) -> int:
    return sum(map(int, str(base**exponent)))


def _multiples(below: int, one: int, other: int) -> int:
    return sum(number for number in range(below) if number % one == 0 or number % other == 0)


def _primes(below: int, remainder: int) -> int:
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for number in range(2, int(below**0.5) + 1):
        sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return sum(1 for number in range(below) if sieve[number] and number % 4 == remainder)


def _collatz(start: int) -> int:
    steps = 0
    while start != 1:
        start = start // 2 if start % 2 == 0 else 3 * start + 1
        steps += 1
    return steps


def _paths(width: int, height: int, modulus: int) -> int:
    ways = [1] * (width + 1)
    for _ in range(height):
        for column in range(1, width + 1):
            ways[column] += ways[column - 1]
    return ways[width] % modulus


def computation(draw: Draw, level: int) -> tuple[str, Data]:
    """A question that a few lines of Python answer."""
    if level == 1:
        below, one, other = draw.randint(50, 400), *draw.sample((3, 4, 5, 6, 7, 9), 2)
        return (
            f"Sum of all whole numbers from 0 that are less than {below} and divisible by {one} or {other}?",
            {
                "answer": _multiples(below, one, other),
                "code": f"print(sum(n for n in range({below}) if n % {one} == 0 or n % {other} == 0))",
            },
        )
    if level == 2:
        base, exponent = draw.randint(2, 9), draw.randint(20, 90)
        return (
            f"Sum of the decimal digits of {base} to the power {exponent}?",
            {
                "answer": _digit_sum(base, exponent),
                "code": f"print(sum(int(d) for d in str({base} ** {exponent})))",
            },
        )
    if level == 3:
        start = draw.randint(100, 9999)
        return (
            f"From n = {start}, halve n if it is even, else take 3n + 1. How many steps until n is 1?",
            {
                "answer": _collatz(start),
                "code": f"n, s = {start}, 0\nwhile n != 1:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    s += 1\n"
                "print(s)",
            },
        )
    if level == 4:
        below, remainder = draw.randint(500, 5000), draw.choice((1, 3))
        return (
            f"How many primes less than {below} leave the remainder {remainder} when divided by 4?",
            {
                "answer": _primes(below, remainder),
                "code": f"print(sum(1 for n in range(2, {below}) if n % 4 == {remainder} "
                "and all(n % d for d in range(2, int(n ** 0.5) + 1))))",
            },
        )
    width, height, modulus = draw.randint(8, 30), draw.randint(8, 30), draw.randint(101, 997)
    return (
        f"How many shortest ways lead over a grid {width} wide and {height} high from corner to corner along its "
        f"lines? "
        f"Give the remainder of division by {modulus}.",
        {
            "answer": _paths(width, height, modulus),
            "code": f"from math import comb\nprint(comb({width + height}, {width}) % {modulus})",
        },
    )


def grade(data: Data, text: str) -> Verdict:
    """1 for the right number, else 0."""
    found = answers.value(text)
    if found.text is None:
        return refused(found.reason)
    number = answers.integer(found.text, digits=100)
    if number is None:
        return refused("The answer is not one whole number.")
    if number != data["answer"]:
        return refused("The answer is wrong.", correct=0.0)
    return Verdict(1.0, {"correct": 1.0}, "The answer is right.")


def solve(data: Data) -> str:
    """The final answer; `first_call` writes the turn before it."""
    return f"answer: {data['answer']}"


def first_call(data: Data) -> str:
    """The reference's first turn: one call whose result is the answer."""
    name = "python" if "code" in data else "calculator"
    arguments = {_PARAMETERS[name]: data["code"] if name == "python" else data["expression"]}
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


_ANSWER = " Then write the result on a line that begins with the word answer and a colon."
_NUMBERS = tuple(f"answer: {number}" for number in (0, 1, 2, 10, 42, 100, 1000))
TASKS = (
    Task(
        "tools.calculator",
        "right result after any number of calls 1",
        "Compute the expression with the calculator." + _ANSWER,
        tuple(f"{count} numbers of {digits} digits" for count, digits, _ in _CALCULATIONS),
        calculation,
        grade,
        solve,
        _NUMBERS,
        tools=("calculator",),
    ),
    Task(
        "tools.python",
        "right result after any number of calls 1",
        "Answer the question by running Python." + _ANSWER,
        ("sums", "digits of powers", "3n + 1", "primes", "ways over a grid"),
        computation,
        grade,
        solve,
        _NUMBERS,
        tools=("python",),
    ),
)
