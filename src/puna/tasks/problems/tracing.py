"""Program tracing: what does this program print?

Programs come from a small grammar and are executed by a small interpreter over the tree that their source is written
from. Values are integers and lists of integers, and mean the same as in Python; a test makes sure by running some
programs in the sandbox. Nothing here uses `exec`.
"""

from collections.abc import Callable
from typing import Any

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused

Tree = list[Any]
Names = dict[str, Any]

MAX_STEPS = 2_000
LARGEST = 10**6
"""Programs with larger numbers are drawn again: the task is to follow a program, not to multiply."""

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "%": lambda left, right: left % right,
    "<": lambda left, right: left < right,
    ">": lambda left, right: left > right,
    "==": lambda left, right: left == right,
}
_FUNCTIONS: dict[str, Callable[[list[int]], int]] = {"len": len, "sum": sum, "max": max, "min": min}


class Abandoned(Exception):
    """The program runs too long, grows too large or fails."""


class Interpreter:
    """Runs one program tree. Statements: let, append, for, each, while, if, print; `source` shows their meaning."""

    def __init__(self) -> None:
        self.names: Names = {}
        self.printed: list[Any] = []
        self.steps = 0

    def run(self, body: list[Tree]) -> Any:
        """Return the one value that the program prints. Raises Abandoned."""
        self.block(body)
        return self.printed[-1]

    def block(self, body: list[Tree]) -> None:
        for statement in body:
            self.statement(statement)

    def statement(self, tree: Tree) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise Abandoned
        kind, *rest = tree
        if kind == "let":
            self.names[rest[0]] = self.value(rest[1])
        elif kind == "append":
            self.names[rest[0]].append(self.value(rest[1]))
        elif kind == "for":
            for number in range(self.value(rest[1]), self.value(rest[2])):
                self.names[rest[0]] = number
                self.block(rest[3])
        elif kind == "each":
            for item in list(self.value(rest[1])):
                self.names[rest[0]] = item
                self.block(rest[2])
        elif kind == "while":
            while self.value(rest[0]):
                self.block(rest[1])
        elif kind == "if":
            self.block(rest[1] if self.value(rest[0]) else rest[2])
        elif kind == "print":
            self.printed.append(self.value(rest[0]))

    def value(self, tree: Any) -> Any:
        self.steps += 1
        if isinstance(tree, int):
            return tree
        if isinstance(tree, str):
            return self.names[tree]
        kind, *rest = tree
        if kind == "list":
            return [self.value(item) for item in rest]
        if kind == "call":
            items = self.value(rest[1])
            if not items:
                raise Abandoned
            return _FUNCTIONS[rest[0]](items)
        if kind == "item":
            items, place = self.value(rest[0]), self.value(rest[1])
            if not 0 <= place < len(items):
                raise Abandoned
            return items[place]
        result = _OPERATORS[kind](self.value(rest[0]), self.value(rest[1]))
        if abs(result) > LARGEST:
            raise Abandoned
        return result


def source(body: list[Tree], indent: str = "") -> str:
    """Return the Python source of a program tree."""
    lines = []
    deeper = indent + "  "
    for kind, *rest in body:
        if kind == "let":
            lines.append(f"{indent}{rest[0]} = {expression(rest[1])}")
        elif kind == "append":
            lines.append(f"{indent}{rest[0]}.append({expression(rest[1])})")
        elif kind == "for":
            lines.append(f"{indent}for {rest[0]} in range({expression(rest[1])}, {expression(rest[2])}):")
            lines.append(source(rest[3], deeper))
        elif kind == "each":
            lines.append(f"{indent}for {rest[0]} in {expression(rest[1])}:")
            lines.append(source(rest[2], deeper))
        elif kind == "while":
            lines.append(f"{indent}while {expression(rest[0])}:")
            lines.append(source(rest[1], deeper))
        elif kind == "if":
            lines.append(f"{indent}if {expression(rest[0])}:")
            lines.append(source(rest[1], deeper))
            if rest[2]:
                lines.append(f"{indent}else:")
                lines.append(source(rest[2], deeper))
        elif kind == "print":
            lines.append(f"{indent}print({expression(rest[0])})")
    return "\n".join(lines)


def expression(tree: Any, inner: bool = False) -> str:
    """Return the Python source of an expression; `inner` puts brackets around an operation."""
    if isinstance(tree, int | str):
        return str(tree)
    kind, *rest = tree
    if kind == "list":
        return "[" + ", ".join(expression(item) for item in rest) + "]"
    if kind == "call":
        return f"{rest[0]}({expression(rest[1])})"
    if kind == "item":
        return f"{rest[0]}[{expression(rest[1])}]"
    text = f"{expression(rest[0], True)} {kind} {expression(rest[1], True)}"
    return f"({text})" if inner else text


def tracing(draw: Draw, level: int) -> tuple[str, Data]:
    """A program of the level's shape that runs briefly and keeps its numbers small."""
    while True:
        body = _SHAPES[level - 1](draw)
        try:
            result = Interpreter().run(body)
        except Abandoned:
            continue
        if isinstance(result, list) and not 0 < len(result) <= 12:
            continue
        return source(body), {"program": body, "answer": result}


def _small(draw: Draw) -> int:
    return draw.randint(1, 9)


def _term(draw: Draw, names: list[str], signs: str = "+-") -> Tree:
    """A known name, an operator, another name or a small number."""
    first = draw.choice(names)
    others = [name for name in names if name != first]
    return [draw.choice(signs), first, draw.choice([*others, _small(draw), _small(draw)])]


def _two_lines(draw: Draw) -> list[Tree]:
    return [["let", "a", _small(draw)], ["print", [draw.choice("+-"), "a", _small(draw)]]]


def _assignments(draw: Draw) -> list[Tree]:
    body: list[Tree] = [["let", "a", _small(draw)], ["let", "b", _small(draw)]]
    body.append(["let", "c", _term(draw, ["a", "b"])])
    body.append(["let", draw.choice("ab"), _term(draw, ["a", "b", "c"], "+-*")])
    return [*body, ["print", _term(draw, ["a", "b", "c"])]]


def _branch(draw: Draw) -> list[Tree]:
    return [
        ["let", "a", _small(draw)],
        ["let", "b", _small(draw)],
        [
            "if",
            [draw.choice("<>"), "a", draw.choice(["b", _small(draw)])],
            [["let", "a", _term(draw, ["a", "b"], "+*")]],
            [["let", "b", _term(draw, ["a", "b"])]],
        ],
        ["print", _term(draw, ["a", "b"])],
    ]


def _loop(draw: Draw) -> list[Tree]:
    step = draw.choice([["+", "s", "i"], ["+", "s", ["*", "i", _small(draw)]], ["-", "s", "i"]])
    start = draw.randint(0, 3)
    return [
        ["let", "s", _small(draw)],
        ["for", "i", start, start + draw.randint(2, 5), [["let", "s", step]]],
        ["print", "s"],
    ]


def _loop_branch(draw: Draw) -> list[Tree]:
    test = ["==", ["%", draw.choice(["x", "s"]), draw.randint(2, 3)], draw.randint(0, 1)]
    return [
        ["let", "s", _small(draw)],
        [
            "each",
            "x",
            ["list", *(_small(draw) for _ in range(draw.randint(3, 5)))],
            [["if", test, [["let", "s", _term(draw, ["s", "x"], "+*")]], [["let", "s", ["-", "s", "x"]]]]],
        ],
        ["print", "s"],
    ]


def _builds(draw: Draw) -> list[Tree]:
    test = [draw.choice("<>"), draw.choice(["x", ["%", "x", draw.randint(2, 4)]]), draw.randint(0, 6)]
    return [
        ["let", "r", ["list"]],
        ["let", "k", _small(draw)],
        [
            "each",
            "x",
            ["list", *(draw.randint(0, 12) for _ in range(draw.randint(4, 6)))],
            [
                ["if", test, [["append", "r", _term(draw, ["x", "k"], "+*")]], [["let", "k", _term(draw, ["k", "x"])]]],
            ],
        ],
        ["print", draw.choice(["r", "r", ["+", ["call", "len", "r"], ["call", "sum", "r"]]])],
    ]


def _nested(draw: Draw) -> list[Tree]:
    inner = [
        "if",
        ["==", ["%", ["+", "i", "j"], draw.randint(2, 3)], 0],
        [["append", "r", _term(draw, ["i", "j"], "+*")]],
        [],
    ]
    return [
        ["let", "r", ["list"]],
        ["let", "n", draw.randint(20, 90)],
        ["for", "i", 1, draw.randint(3, 5), [["for", "j", "i", draw.randint(4, 6), [inner]]]],
        ["while", [">", "n", ["call", "len", "r"]], [["let", "n", ["-", "n", ["+", ["call", "max", "r"], 1]]]]],
        ["append", "r", "n"],
        ["print", draw.choice(["r", ["+", ["call", "sum", "r"], ["*", "n", _small(draw)]]])],
    ]


_SHAPES = (_two_lines, _assignments, _branch, _loop, _loop_branch, _builds, _nested)


def grade(data: Data, text: str) -> Verdict:
    """Score 1 for exactly what is printed, else 0."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    right = data["answer"]
    if isinstance(right, list):
        # Brackets are part of what is printed; without them [7] and 7 would be the same answer.
        given: Any = answer_parser.integers(found.text) if found.text.startswith("[") else None
    else:
        given = answer_parser.integer(found.text)
    if given is None:
        return refused("The answer is not what a program prints.", correct=0.0)
    if given != right:
        return refused("The program prints something else.", correct=0.0)
    return Verdict(1.0, {"correct": 1.0}, "The answer is right.")


def solve(data: Data) -> str:
    """Return the printed value."""
    return f"answer: {data['answer']}"


TASKS = (
    Task(
        "code.tracing",
        "exactly what is printed 1",
        "What does this Python program print? Write it on a line that begins with the word answer and a colon.",
        (
            "two lines",
            "assignments",
            "a branch",
            "a loop",
            "a loop with a branch",
            "a list built in a loop",
            "nested loops and a while",
        ),
        tracing,
        grade,
        solve,
        ("answer: 0", "answer: 1", "answer: 5", "answer: 8", "answer: 10", "answer: []", "answer: [1]"),
    ),
)
