"""The tools that a model may call, a calculator and Python, and the episode in which it calls them.

An `Episode` holds the dialogue. `step` takes the model's text: text with <tool_call> objects is answered by one tool
message for each call; text without any is the final answer and ends the episode with a verdict. Messages have the form
of the chat renderer. Ids that the model generated are kept as `token_ids`, so nothing is tokenized twice, and tool
messages are marked by their role, so that training skips them.

A wrong call is answered by a sentence that begins with "error:"; it never raises.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from puna.core.errors import PunaError
from puna.tasks import calculator, sandboxed
from puna.tasks.contract import MAX_ANSWER, Data, Problem, Task, Verdict, refused

MAX_CALLS = 8
"""The most calls in one message."""
MAX_RESULT = 2_000
"""The length of a result that the model sees, in characters."""

RunCode = Callable[[str], str]
"""Runs a Python program in a sandbox and returns what it printed. Raises PunaError if there is no sandbox."""

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

    messages: the dialogue so far. tools: the tools to render. The step that ends the episode sets the verdict.
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
        """Take the model's turn and return the tool messages that answer it, none if the episode is finished.

        Raises PunaError after the end, and if Python is called and there is no sandbox.
        """
        if self.done:
            raise PunaError("The episode is finished.", "Start another one.")
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
    """Return the calls in a message: (name, arguments), or an error for the model. Empty without <tool_call>."""
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


def in_sandbox(code: str, *, floor: str = sandboxed.FLOOR) -> str:
    """Run a program in the sandbox; return what it prints, or the last line of its error."""
    result = sandboxed.run(code, floor=floor)
    if result is None:
        return "error: the program broke its sandbox."
    if not result.ok:
        return f"error: {result.reason}."
    if result.exit:
        return f"error: {(result.stderr.strip().splitlines() or ['the program failed'])[-1]}"
    return result.stdout.strip() or "error: the program printed nothing."


def first_call(data: Data) -> str:
    """Return the first turn of the reference: one call whose result is the answer."""
    name = "python" if "code" in data else "calculator"
    arguments = {_PARAMETERS[name]: data["code"] if name == "python" else data["expression"]}
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
