"""Function calling: the single-turn parts of the Berkeley leaderboard (BFCL v4), judged call by call.

A call is right if it names the right function, every argument has one of the allowed values, no required argument is
missing and none is invented. Calls are read in two forms: <tool_call> objects, as in Puna's chat format, and a Python
list of calls, which text models are asked for. The Python form is parsed by `ast` as literals; nothing runs. Comparison
follows the leaderboard: numbers by value (an integer may stand for a float), strings without case, spaces and
, . / - _ * ^ ' quotes, lists in order, parallel calls in any order.
"""

import ast
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from puna.evals.contract import Benchmark, Item, Score, Text
from puna.evals.datasets import EvalData
from puna.tasks.fences import fenced_blocks
from puna.tasks.tools import calls_in

Call = tuple[str, dict[str, Any]]

PARTS = ("simple_python", "multiple", "parallel", "parallel_multiple", "live_simple", "live_parallel",
         "live_parallel_multiple", "simple_javascript")  # fmt: skip
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": "string", "String": "string",
          "Boolean": "boolean", "": "string"}  # fmt: skip
_INSTRUCTION = (
    "You can call these functions, each described by a JSON object:\n{functions}\n\n"
    "Answer with a Python list of calls and nothing else, such as [name(parameter=1)]. "
    "When no function fits, answer with [].\n\nQuestion: {question}\nCalls:"
)


def _item(row: dict[str, Any], part: str, truth: list[dict[str, Any]] | None) -> Item:
    functions = [_schema(function) for function in row["function"]]
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in row["question"][0]]
    question = "\n".join(turn["content"] for turn in messages)
    listed = "\n".join(json.dumps(one["function"], ensure_ascii=False) for one in functions)
    ask = Text(
        _INSTRUCTION.format(functions=listed, question=question),
        ("\nQuestion:", "\n\n"),
        max_tokens=256,
        messages=tuple(messages),
        tools=tuple(functions),
    )
    required = {one["function"]["name"]: one["function"]["parameters"].get("required") or [] for one in functions}
    reference = "[]" if truth is None else _written(truth)
    return Item(row["id"], ask, {"truth": truth, "required": required}, part, question, reference)


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    """Convert BFCL's description of a function to OpenAI's form, with the type names of JSON schema."""
    return {
        "type": "function",
        "function": {
            "name": function["name"],
            "description": function.get("description", ""),
            "parameters": _typed(function.get("parameters", {})),
        },
    }


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _TYPES.get(item, item) if key == "type" and isinstance(item, str) else _typed(item)
            for key, item in value.items()
        }
    return [_typed(item) for item in value] if isinstance(value, list) else value


def _written(truth: Sequence[dict[str, Any]]) -> str:
    """Write the first of the allowed answers as Python calls."""
    calls = []
    for call in truth:
        [(name, allowed)] = call.items()
        given = {key: _first(values[0]) for key, values in allowed.items() if values and values[0] != ""}
        calls.append(f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})")
    return f"[{', '.join(calls)}]"


def _first(value: Any) -> Any:
    """Pick one value of an allowed one: nested fields list their own choices."""
    if isinstance(value, dict):
        return {key: _first(found[0]) if isinstance(found, list) else found for key, found in value.items()
                if found != [""] and not (isinstance(found, list) and found and found[0] == "")}  # fmt: skip
    return [_first(item) if isinstance(item, dict) else item for item in value] if isinstance(value, list) else value


def read_calls(text: str) -> list[Call] | None:
    """Return the calls in an answer; [] for none; None if they cannot be parsed."""
    if "<tool_call>" in text:
        found = calls_in(text[:50_000])
        calls = [call for call in found if not isinstance(call, str) and isinstance(call[1], dict)]
        return calls if len(calls) == len(found) else None
    blocks = fenced_blocks(text[:20_000])
    text = (blocks[-1].content if blocks else text[:20_000]).strip()
    if not text.startswith("["):
        return [] if not re.match(r"[\w.]{1,100}\(", text) else _python_calls(f"[{text}]")
    return _python_calls(text)


def _python_calls(text: str) -> list[Call] | None:
    try:
        tree = ast.parse(text, mode="eval").body
        assert isinstance(tree, ast.List)
        calls = []
        for node in tree.elts:
            assert isinstance(node, ast.Call)
            assert not node.args
            named = {key.arg: ast.literal_eval(key.value) for key in node.keywords if key.arg is not None}
            calls.append((ast.unparse(node.func), named))
    except (SyntaxError, ValueError, TypeError, AssertionError, RecursionError, MemoryError):
        return None
    return calls


def calls_are_right(item: Item, response: str) -> Score:
    """Score 1 for exactly the calls of item.target, in any order; if its truth is None, for no call at all."""
    calls, truth = read_calls(response), item.target["truth"]
    shown = response.strip()[:2000]
    if calls is None:
        return Score(0.0, shown, "unreadable")
    if truth is None:
        return Score(float(not calls), shown, "a call where no function fits" if calls else "")
    if len(calls) != len(truth):
        return Score(0.0, shown, f"{len(calls)} calls where {len(truth)} are right")
    left = list(truth)
    for call in calls:
        reasons = [_wrong(call, one, item.target["required"]) for one in left]
        if "" not in reasons:
            return Score(0.0, shown, reasons[0])
        left.pop(reasons.index(""))
    return Score(1.0, shown)


def _wrong(call: Call, truth: dict[str, Any], required: dict[str, list[str]]) -> str:
    """Say what is wrong with a call; "" if nothing is."""
    [(name, allowed)] = truth.items()
    if call[0] != name:
        return f"{call[0][:50]} instead of {name}"
    for parameter in required.get(name, ()):
        if parameter not in call[1] and allowed.get(parameter) != []:
            return f"'{parameter}' is missing"
    for parameter, value in call[1].items():
        if parameter not in allowed:
            return f"'{parameter[:50]}' is made up"
        if not any(_same(value, one) for one in allowed[parameter] if one != "" or value == ""):
            return f"'{parameter}' has another value"
    # A few entries allow no value, which can only mean that the parameter must be left out.
    missing = next((key for key, values in allowed.items() if key not in call[1] and values and "" not in values), None)
    return f"'{missing}' is missing" if missing else ""


def _same(value: Any, allowed: Any) -> bool:
    if isinstance(value, bool) or isinstance(allowed, bool):
        return isinstance(value, bool) and value == allowed
    if isinstance(value, int | float) and isinstance(allowed, int | float):
        return value == allowed
    if isinstance(value, str) and isinstance(allowed, str):
        return _plain(value) == _plain(allowed)
    if isinstance(value, list | tuple) and isinstance(allowed, list | tuple):
        return len(value) == len(allowed) and all(_same(a, b) for a, b in zip(value, allowed, strict=True))
    if isinstance(value, dict) and isinstance(allowed, dict):
        return all(
            key in allowed and any(_same(one, other) for other in _choices(allowed[key])) for key, one in value.items()
        ) and all(key in value or "" in _choices(choices) for key, choices in allowed.items())
    return value is None and allowed is None


def _choices(allowed: Any) -> list[Any]:
    return allowed if isinstance(allowed, list) else [allowed]


def _plain(text: str) -> str:
    return re.sub(r"[ ,./\-_*^'\"]", "", text).lower()


def _load(data: EvalData) -> list[Item]:
    items = []
    for part in PARTS:
        rows = data.rows(f"bfcl/BFCL_v4_{part}.json", "id", "question", "function")
        truth = {
            row["id"]: row["ground_truth"]
            for row in data.rows(f"bfcl/possible_answer/BFCL_v4_{part}.json", "id", "ground_truth")
        }
        items += [_item(row, part, truth[row["id"]]) for row in rows if row["id"] in truth]
    return items


def _irrelevant(data: EvalData) -> list[Item]:
    rows = data.rows("bfcl/BFCL_v4_irrelevance.json", "id", "question", "function")
    return [_item(row, "", None) for row in rows]


Load = Callable[[EvalData], list[Item]]
_SOURCE = "Berkeley Function-Calling Leaderboard v4, Patil et al., Apache-2.0"
_PROMPT = "zero-shot; functions as JSON; text models: a Python list of calls; chat: <tool_call> objects"
BENCHMARKS = (
    Benchmark("bfcl", "Function calling", ("tools", "instruction"), _load, calls_are_right, _PROMPT,
              "exactly the right calls, arguments among the allowed ones", _SOURCE),
    Benchmark("bfcl_irrelevance", "Function calling, none fits", ("tools",), _irrelevant, calls_are_right, _PROMPT,
              "no call is made", _SOURCE),
)  # fmt: skip
