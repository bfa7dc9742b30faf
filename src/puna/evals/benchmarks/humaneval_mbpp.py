"""HumanEval and MBPP: the model writes a function, and its values are checked in another process.

The tests are Python code that calls a function and asserts things about its values. In the same process as the model's
code, as usual, they are at its mercy: it can exit with 0, redefine equality, walk the frames. Here three sandboxed
processes share the work, and only the second one runs model code:

1. the tests run with the reference solution, and the arguments of every call are recorded;
2. the model's function is called with these arguments, and its values come back as plain data;
3. the tests run again, with a stand-in that answers each call with the value that came back.

So model code sees neither the tests nor the expected values, it decides nothing, and a value that is equal to
everything cannot be sent. It can still have memorized the tests: both sets are on the public web, and MBPP shows its
tests. If arguments or values are not plain data (a tree of the test's own class), the tests run in the process of the
model's code after all and report through a name that it cannot know; such items are marked `asserted`.
"""

import ast
import secrets
from functools import lru_cache
from typing import Any

from puna.core.errors import PunaError
from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData, OnHub, Row
from puna.evals.scoring.programs import find_program
from puna.sandbox.result import Limits
from puna.sandbox.run import run_python
from puna.tasks.sandboxed import FLOOR

LIMITS = Limits(cpu_seconds=6, seconds=20, memory_bytes=512 << 20)
"""The limit is CPU time, because a score must not depend on how busy the machine is."""
MAX_PROGRAM = 50_000

# The tests may use the reference's other functions and classes, but not the one that is tested.
_TRUSTED = """
import copy, random
SOURCE, TESTS, NAME = {source!r}, {tests!r}, {name!r}

def _run(function, given):
    random.seed(0)
    place = {{"__name__": "tests"}}
    place.update({{key: value for key, value in given.items() if not key.startswith("__")}})
    place[NAME] = place["candidate"] = function
    exec(compile(TESTS, "tests.py", "exec"), place)

def record():
    given = {{"__name__": "reference"}}
    exec(compile(SOURCE, "reference.py", "exec"), given)
    calls = []
    def noted(*arguments, **named):
        if named:
            raise TypeError("named arguments")
        calls.append(copy.deepcopy(list(arguments)))
        return given[NAME](*arguments)
    _run(noted, given)
    return calls

def replay(calls, answers):
    given = {{"__name__": "reference"}}
    exec(compile(SOURCE, "reference.py", "exec"), given)
    left = [(list(call), answer) for call, answer in zip(calls, answers)]
    def answered(*arguments):
        call, (fine, value) = left.pop(0)
        if call != list(arguments) and repr(call) != repr(list(arguments)):
            raise LookupError("another call")
        if not fine:
            raise RuntimeError("the function raised")
        return value
    try:
        _run(answered, given)
    except Exception as error:
        return f"{{type(error).__name__}}: {{error}}"[:200]
    return "" if not left else "calls were left"
"""


def score_program(item: Item, response: str) -> Score:
    """Run the tests of an item on the program in a response. Raises PunaError if there is no sandbox."""
    test = item.target
    program = find_program(response, test["prompt"], test["name"])
    if program is None:
        return Score(0.0, response[:2000], "no program")
    if len(program) > MAX_PROGRAM:
        return Score(0.0, "", f"a program of more than {MAX_PROGRAM:,} characters")
    calls = _calls(test["reference"], test["tests"], test["name"])
    if calls is None:
        return _asserted(program, test)
    try:
        done = run_python(program, function=test["name"], inputs=calls, limits=LIMITS, floor=FLOOR)
    except PunaError:
        run_python("", floor=FLOOR)  # raises again unless the program caused it
        return Score(0.0, program, "the program broke its sandbox", {"asserted": 0.0})
    if not done.values:
        return Score(0.0, program, done.reason or "no value came back", {"asserted": 0.0})
    answers = [[not answer.error, answer.value] for answer in done.values]
    answers += [[False, None]] * (len(calls) - len(answers))
    if not any(fine for fine, _ in answers):
        return Score(0.0, program, done.values[0].error[:200], {"asserted": 0.0})
    verdict = _trusted(test["reference"], test["tests"], test["name"], "replay", [calls, answers])
    reason = verdict if isinstance(verdict, str) else "the tests did not end"
    if reason and done.reason:
        reason = done.reason
    first = next((answer.error for answer in done.values if answer.error), "")
    return Score(float(reason == ""), program, (reason + (f" ({first})" if first and reason else ""))[:300],
                 {"asserted": 0.0})  # fmt: skip


@lru_cache(maxsize=4096)
def _calls(reference: str, tests: str, name: str) -> list[list[Any]] | None:
    """Record the arguments of every call of the tests; None if they cannot be recorded or there are none."""
    calls = _trusted(reference, tests, name, "record", [])
    if not isinstance(calls, list) or not calls:
        return None
    done = run_python(reference, function=name, inputs=calls, limits=LIMITS, floor=FLOOR)
    answers = [[not answer.error, answer.value] for answer in done.values]
    whole = len(answers) == len(calls) and _trusted(reference, tests, name, "replay", [calls, answers]) == ""
    return calls if whole else None


def _trusted(reference: str, tests: str, name: str, function: str, arguments: list[Any]) -> Any:
    """Run the benchmark's own code, without the model's. Returns None if it raised or did not end."""
    source = _TRUSTED.format(source=reference, tests=tests, name=name)
    done = run_python(source, function=function, inputs=[arguments], limits=LIMITS, floor=FLOOR)
    return done.values[0].value if done.values and not done.values[0].error else None


def _asserted(program: str, test: dict[str, Any]) -> Score:
    """Run the tests in the program's process: weaker, because the program can reach them."""
    name = "t" + secrets.token_hex(16)
    body = "\n".join(f"    {line}" for line in [f"candidate = {test['name']}", *test["tests"].split("\n")])
    source = f"{program}\n\ndef {name}():\n{body}\n    return {name!r}\n"
    try:
        done = run_python(source, function=name, inputs=[[]], limits=LIMITS, floor=FLOOR)
    except PunaError:
        run_python("", floor=FLOOR)
        return Score(0.0, program, "the program broke its sandbox", {"asserted": 1.0})
    answer = done.values[0] if done.values else None
    right = answer is not None and answer.value == name
    reason = "" if right else (answer.error if answer else done.reason) or "a test fails"
    return Score(float(right), program, reason[:300], {"asserted": 1.0})


# -- the two sets ------------------------------------------------------------------------------------------------------

_HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@")


def _humaneval(data: EvalData) -> list[Item]:
    hub = OnHub("openai/openai_humaneval", "openai_humaneval", "test")
    columns = ("task_id", "prompt", "canonical_solution", "test", "entry_point")
    return [
        Item(
            row["task_id"],
            Text(
                row["prompt"],
                _HUMANEVAL_STOP,
                max_tokens=384,
                messages=_message(f"Complete this Python function:\n\n```python\n{row['prompt'].strip()}\n```"),
            ),
            {
                "prompt": row["prompt"],
                "name": row["entry_point"],
                "reference": row["prompt"] + row["canonical_solution"],
                "tests": f"{row['test']}\ncheck(candidate)",
            },
            body=row["prompt"] + row["canonical_solution"],
            reference=row["canonical_solution"],
        )
        for row in data.rows("humaneval/HumanEval.jsonl", *columns, hub=hub)
    ]


def _message(text: str) -> tuple[dict[str, str]]:
    return ({"role": "user", "content": f"{text}\n\nAnswer with the whole function in one fenced block."},)


def _mbpp_item(id: int, task: str, tests: list[str], setup: str, code: str, shots: str) -> Item | None:
    name = tested_name(code, tests)
    if name is None:
        return None
    asked = _mbpp_prompt(task, tests)
    return Item(
        str(id),
        Text(f"{shots}{asked}[BEGIN]\n", ("[DONE]",), max_tokens=384, messages=_message(asked.strip())),
        {"prompt": "", "name": name, "reference": code, "tests": "\n".join([setup, *tests]).strip()},
        body=f"{task} {code}",
        reference=f"{code}\n",
    )


def _mbpp_prompt(task: str, tests: list[str]) -> str:
    asked = f"You are an expert Python programmer, and here is your task: {task} Your code should pass these tests:"
    return "\n".join([asked, "", *tests, ""])


def tested_name(code: str, tests: list[str]) -> str | None:
    """Return the name of the function in `code` that the tests call, or None."""
    try:
        defined = [node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)]
        called = {
            node.func.id
            for node in ast.walk(ast.parse("\n".join(tests)))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
    except (SyntaxError, ValueError):
        return None
    return next((name for name in reversed(defined) if name in called), None)


def _mbpp_rows(data: EvalData, name: str, config: str, text: str) -> list[Row]:
    """Return all rows. On the Hub the tasks that serve as examples are a split of their own."""
    columns = ("task_id", text, "code", "test_list")
    splits = [OnHub("google-research-datasets/mbpp", config, split) for split in ("prompt", "test")]
    if data.path(name) is None and data.hub:
        return [row for split in splits for row in data.rows(name, *columns, hub=split)]
    return data.rows(name, *columns)


def _mbpp(data: EvalData) -> list[Item]:
    rows = _mbpp_rows(data, "mbpp/mbpp.jsonl", "full", "text")
    return _mbpp_items(
        [(r["task_id"], r["text"], r["test_list"], r.get("test_setup_code") or "", r["code"]) for r in rows]
    )


def _mbpp_sanitized(data: EvalData) -> list[Item]:
    rows = _mbpp_rows(data, "mbpp/sanitized-mbpp.json", "sanitized", "prompt")
    return _mbpp_items(
        [(r["task_id"], r["prompt"], r["test_list"], "\n".join(r.get("test_imports") or ()), r["code"]) for r in rows]
    )


def _mbpp_items(rows: list[tuple[int, str, list[str], str, str]]) -> list[Item]:
    """The test part, tasks 11 to 510, after the first three of the tasks that the authors set aside as examples."""
    rows = [(id, text, tests, setup, code.replace("\r\n", "\n")) for id, text, tests, setup, code in rows]
    examples = [row for row in rows if row[0] <= 10][:3]
    shots = "".join(f"{_mbpp_prompt(text, tests)}[BEGIN]\n{code}\n[DONE]\n\n" for _, text, tests, _, code in examples)
    items = [
        _mbpp_item(id, text, tests, setup, code, shots) for id, text, tests, setup, code in rows if 11 <= id <= 510
    ]
    return [item for item in items if item is not None]


BENCHMARKS = (
    Benchmark("humaneval", "HumanEval", ("code",), _humaneval, score_program,
              "zero-shot; the head of a function with its docstring; chat: asked to complete it in a fenced block",
              "all tests pass", "Chen et al. 2021 (arXiv 2107.03374), MIT",
              constants=("    return True\n",), code=True),
    Benchmark("mbpp", "MBPP", ("code",), _mbpp, score_program,
              "3-shot; the task and its three tests, as in the paper; chat: the task and its tests",
              "all tests pass", "Austin et al. 2021 (arXiv 2108.07732), tasks 11 to 510, CC-BY-4.0", code=True),
    Benchmark("mbpp_sanitized", "MBPP, sanitized", ("code",), _mbpp_sanitized, score_program,
              "3-shot; the task and its tests; chat: the task and its tests",
              "all tests pass", "Austin et al. 2021 (arXiv 2108.07732), hand-checked tasks of 11 to 510, CC-BY-4.0",
              code=True),
)  # fmt: skip
