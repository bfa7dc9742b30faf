"""Rewriting of strings and of lists by one or several named operations.

The prompt names the operations in order, then the string or list: `reverse, drop b: abcb`. An exact answer scores 1,
any other 0; the breakdown has the share of positions that agree.
"""

from collections.abc import Callable

from puna.tasks import answer_parser
from puna.tasks.contract import Data, Draw, Task, Verdict, refused

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# (length, letters of the alphabet, operations) of each level
_STRINGS = ((3, 6, 1), (5, 8, 1), (6, 8, 2), (8, 12, 2), (10, 16, 3), (16, 26, 4))
# (length, largest number, operations)
_LISTS = ((3, 9, 1), (5, 9, 1), (5, 20, 2), (7, 50, 2), (8, 99, 3), (12, 999, 4))
_SIMPLE_STRINGS = ("reverse", "double", "sort", "first", "left")
_SIMPLE_LISTS = ("reverse", "sort", "left", "even")  # nothing to compute


def _rotate(things: list, count: int) -> list:
    count %= len(things) or 1
    return things[count:] + things[:count]


def _unique(things: list) -> list:
    return list(dict.fromkeys(things))


# What each operation does with its argument, "" if it takes none.
_ON_STRINGS: dict[str, Callable[[str, str], str]] = {
    "reverse": lambda text, _: text[::-1],
    "sort": lambda text, _: "".join(sorted(text)),
    "double": lambda text, _: "".join(letter * 2 for letter in text),
    "first": lambda text, count: text[: int(count)],
    "left": lambda text, count: "".join(_rotate(list(text), int(count))),
    "right": lambda text, count: "".join(_rotate(list(text), -int(count))),
    "drop": lambda text, letter: text.replace(letter, ""),
    "swap": lambda text, pair: text.translate(str.maketrans(pair, pair[::-1])),
    "unique": lambda text, _: "".join(_unique(list(text))),
    "next": lambda text, _: "".join(_LETTERS[(_LETTERS.index(letter) + 1) % 26] for letter in text),
}
_ON_LISTS: dict[str, Callable[[list[int], int], list[int]]] = {
    "reverse": lambda items, _: items[::-1],
    "sort": lambda items, _: sorted(items),
    "down": lambda items, _: sorted(items, reverse=True),
    "left": _rotate,
    "right": lambda items, count: _rotate(items, -count),
    "even": lambda items, _: [item for item in items if item % 2 == 0],
    "odd": lambda items, _: [item for item in items if item % 2],
    "above": lambda items, bound: [item for item in items if item > bound],
    "below": lambda items, bound: [item for item in items if item < bound],
    "plus": lambda items, number: [item + number for item in items],
    "times": lambda items, number: [item * number for item in items],
    "unique": lambda items, _: _unique(items),
    "sums": lambda items, _: [sum(items[: place + 1]) for place in range(len(items))],
}


def string(draw: Draw, level: int) -> tuple[str, Data]:
    """A word of the level's length and as many operations as the level has, which change the word."""
    length, alphabet, count = _STRINGS[level - 1]
    names = _SIMPLE_STRINGS if level <= 2 else tuple(_ON_STRINGS)
    while True:
        text = "".join(draw.choice(_LETTERS[:alphabet]) for _ in range(length))
        steps, result = [], text
        for name in _names(draw, names, count):
            argument = _string_argument(draw, name, result, _LETTERS[:alphabet])
            steps.append(f"{name} {argument}".strip())
            result = _ON_STRINGS[name](result, argument)
        if 1 < len(result) <= 40 and result != text:
            return f"{', '.join(steps)}: {text}", {"kind": "string", "answer": result}


def lists(draw: Draw, level: int) -> tuple[str, Data]:
    """A list of the level's length and as many operations as the level has, which change the list."""
    length, largest, count = _LISTS[level - 1]
    names = tuple(_ON_LISTS) if level > 2 else (*_SIMPLE_LISTS, "plus") if level == 2 else _SIMPLE_LISTS
    while True:
        items = [draw.randint(0, largest) for _ in range(length)]
        steps, result = [], items
        for name in _names(draw, names, count):
            argument = _list_argument(draw, name, result)
            steps.append(name if argument is None else f"{name} {argument}")
            result = _ON_LISTS[name](result, argument or 0)
        if len(result) > 1 and result != items:
            return f"{', '.join(steps)}: {_spell(items)}", {"kind": "list", "answer": result}


def _string_argument(draw: Draw, name: str, text: str, letters: str) -> str:
    if name == "first":
        return str(draw.randint(1, max(1, len(text) - 1)))
    if name in ("left", "right"):
        return str(draw.randint(1, 3))
    if name == "drop":
        return draw.choice(text or "a")
    return "".join(draw.sample(letters, 2)) if name == "swap" else ""


def _list_argument(draw: Draw, name: str, items: list[int]) -> int | None:
    if name in ("above", "below"):
        return draw.choice(items or [0])
    bounds = {"left": (1, 3), "right": (1, 3), "plus": (1, 9), "times": (2, 5)}.get(name)
    return draw.randint(*bounds) if bounds else None


def _names(draw: Draw, names: tuple[str, ...], count: int) -> list[str]:
    """As many operations as asked for, none twice in a row."""
    chosen: list[str] = []
    while len(chosen) < count:
        name = draw.choice(names)
        if not chosen or name != chosen[-1]:
            chosen.append(name)
    return chosen


def _spell(items: list[int]) -> str:
    return " ".join(map(str, items))


def grade(data: Data, text: str) -> Verdict:
    """Score 1 for exactly the right string or list, else 0."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    numbers = answer_parser.integers(found.text) if data["kind"] == "list" else []
    if numbers is None:
        return refused("The answer is not a list of whole numbers.")
    given = numbers if data["kind"] == "list" else found.text
    right = data["answer"]
    agree = sum(one == other for one, other in zip(given, right, strict=False)) / max(len(given), len(right))
    if given == right:
        return Verdict(1.0, {"correct": 1.0, "places": 1.0}, "The answer is right.")
    return refused("The answer is wrong.", correct=0.0, places=agree)


def solve(data: Data) -> str:
    """Write the answer alone: there is no working."""
    return f"answer: {_spell(data['answer']) if data['kind'] == 'list' else data['answer']}"


_RULES = (
    " Operations are done from left to right. Write the result on a line that begins with the word answer and a colon."
)
TASKS = (
    Task(
        "rewriting.string",
        "exactly the right string 1",
        "Change the string after the colon. reverse; sort: letters from a to z; double: each letter twice; first n: "
        "keep n "
        "letters; left n, right n: rotate by n; drop x: remove every x; swap xy: exchange x and y; unique: keep each "
        "letter's first place; next: each letter's successor, z becomes a." + _RULES,
        tuple(f"{length} letters, {count} step{'s' if count > 1 else ''}" for length, _, count in _STRINGS),
        string,
        grade,
        solve,
        ("answer: a", "answer: b", "answer: ab", "answer: aa", "answer: abc", "answer: aabb"),
        suite="reasoning",
    ),
    Task(
        "rewriting.list",
        "exactly the right list 1",
        "Change the list after the colon. reverse; sort: ascending; down: descending; left n, right n: rotate by n; "
        "even, "
        "odd: keep such numbers; above n, below n: keep numbers greater or less than n; plus n, times n: on each "
        "number; "
        "unique: keep each number's first place; sums: each number becomes the sum of all up to it." + _RULES,
        tuple(
            f"{length} numbers to {largest}, {count} step{'s' if count > 1 else ''}"
            for length, largest, count in _LISTS
        ),
        lists,
        grade,
        solve,
        ("answer: 0", "answer: 1", "answer: 2", "answer: 4", "answer: 6", "answer: 8", "answer: []"),
        suite="reasoning",
    ),
)
