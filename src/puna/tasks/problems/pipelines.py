"""Small functions over numbers and lists: what they compute, in English and as Python source.

A function is a list of stages, each a list whose first word is its kind. `apply` computes it with its own interpreter,
`phrase` describes it in English, `write` returns Python source. Program synthesis asks for the source of what `phrase`
describes; program repair shows the source of a mutated list of stages.
"""

from collections.abc import Callable
from typing import Any

from puna.tasks.contract import Draw

Stage = list[Any]

NAME = "f"
"""The name of every function."""

# Of one number: phrase, expression of x, meaning. {k} is the stage's number.
_NUMBER: dict[str, tuple[str, str, Callable[[int, int], int]]] = {
    "add": ("add {k}", "x + {k}", lambda x, k: x + k),
    "subtract": ("subtract {k}", "x - {k}", lambda x, k: x - k),
    "multiply": ("multiply by {k}", "x * {k}", lambda x, k: x * k),
    "square": ("square", "x * x", lambda x, _: x * x),
    "negate": ("negate", "-x", lambda x, _: -x),
    "absolute": ("take the absolute value", "abs(x)", lambda x, _: abs(x)),
    "modulo": ("take the remainder of division by {k}", "x % {k}", lambda x, k: x % k),
    "halve": ("halve and round down", "x // 2", lambda x, _: x // 2),
}
_CONSTANT = ("add", "subtract", "multiply", "modulo")
# Of one number, true or false: phrase, condition, meaning.
_TESTS: dict[str, tuple[str, str, Callable[[int, int], bool]]] = {
    "even": ("even", "x % 2 == 0", lambda x, _: x % 2 == 0),
    "odd": ("odd", "x % 2 == 1", lambda x, _: x % 2 == 1),
    "greater": ("greater than {k}", "x > {k}", lambda x, k: x > k),
    "less": ("less than {k}", "x < {k}", lambda x, k: x < k),
    "at least": ("at least {k}", "x >= {k}", lambda x, k: x >= k),
    "multiple": ("divisible by {k}", "x % {k} == 0", lambda x, k: x % k == 0),
}
# Of a list, to a list: phrase, expression of xs, meaning.
_LISTS: dict[str, tuple[str, str, Callable[[list[int], int], list[int]]]] = {
    "reverse": ("reverse the list", "xs[::-1]", lambda xs, _: xs[::-1]),
    "sort": ("sort ascending", "sorted(xs)", lambda xs, _: sorted(xs)),
    "down": ("sort descending", "sorted(xs, reverse=True)", lambda xs, _: sorted(xs, reverse=True)),
    "take": ("keep the first {k}", "xs[:{k}]", lambda xs, k: xs[:k]),
    "drop": ("drop the first {k}", "xs[{k}:]", lambda xs, k: xs[k:]),
    "stride": ("keep every second, beginning with the first", "xs[::2]", lambda xs, _: xs[::2]),
    "unique": (
        "drop repetitions",
        "list(dict.fromkeys(xs))",
        lambda xs, _: list(dict.fromkeys(xs)),
    ),
}
# Of a list, to a number.
_ENDS: dict[str, tuple[str, str, Callable[[list[int]], int]]] = {
    "sum": ("return the sum", "sum(xs)", sum),
    "count": ("return how many there are", "len(xs)", len),
    "max": ("return the largest, or 0 if there is none", "max(xs, default=0)", lambda xs: max(xs, default=0)),
    "min": ("return the smallest, or 0 if there is none", "min(xs, default=0)", lambda xs: min(xs, default=0)),
    "spread": (
        "return the largest less the smallest, or 0 if there is none",
        "max(xs, default=0) - min(xs, default=0)",
        lambda xs: max(xs, default=0) - min(xs, default=0),
    ),
}


def apply(stages: list[Stage], value: Any) -> Any:
    """Return what the function returns for an input. Inputs come from `draw_input`, never from a model."""
    for kind, *rest in stages:
        if kind == "number":
            value = _NUMBER[rest[0]][2](value, rest[1])
        elif kind == "choose":
            test, k, then, otherwise = rest
            name, number = then if _TESTS[test][2](value, k) else otherwise
            value = _NUMBER[name][2](value, number)
        elif kind == "map":
            value = [_NUMBER[rest[0]][2](item, rest[1]) for item in value]
        elif kind == "keep":
            value = [item for item in value if _TESTS[rest[0]][2](item, rest[1])]
        elif kind == "list":
            value = _LISTS[rest[0]][2](value, rest[1])
        else:
            value = _ENDS[rest[0]][2](value)
    return value


def phrase(stages: list[Stage]) -> str:
    """Describe the function: "f(xs): keep the even numbers; add 3 to each; return the sum"."""
    return f"{NAME}({argument(stages)}): {'; '.join(map(_phrase, stages))}"


def argument(stages: list[Stage]) -> str:
    """Return the name of the parameter: x for a number, xs for a list."""
    return "x" if stages[0][0] in ("number", "choose") else "xs"


def _phrase(stage: Stage) -> str:
    kind, *rest = stage
    if kind == "number":
        return _NUMBER[rest[0]][0].format(k=rest[1])
    if kind == "choose":
        test, k, then, otherwise = rest
        parts = [_NUMBER[name][0].format(k=number) for name, number in (then, otherwise)]
        return f"if it is {_TESTS[test][0].format(k=k)}, {parts[0]}, else {parts[1]}"
    if kind == "map":
        return f"of each, {_NUMBER[rest[0]][0].format(k=rest[1])}"
    if kind == "keep":
        return f"keep numbers that are {_TESTS[rest[0]][0].format(k=rest[1])}"
    return (_LISTS[rest[0]][0] if kind == "list" else _ENDS[rest[0]][0]).format(k=rest[-1])


def write(stages: list[Stage]) -> str:
    """Return the function as Python source."""
    name = argument(stages)
    lines = [f"def {NAME}({name}):"]
    ended = False
    for kind, *rest in stages:
        if kind == "number":
            lines.append(f"    x = {_NUMBER[rest[0]][1].format(k=rest[1])}")
        elif kind == "choose":
            test, k, then, otherwise = rest
            lines.append(f"    if {_TESTS[test][1].format(k=k)}:")
            lines.append(f"        x = {_NUMBER[then[0]][1].format(k=then[1])}")
            lines.append("    else:")
            lines.append(f"        x = {_NUMBER[otherwise[0]][1].format(k=otherwise[1])}")
        elif kind == "map":
            lines.append(f"    xs = [{_NUMBER[rest[0]][1].format(k=rest[1])} for x in xs]")
        elif kind == "keep":
            lines.append(f"    xs = [x for x in xs if {_TESTS[rest[0]][1].format(k=rest[1])}]")
        elif kind == "list":
            lines.append(f"    xs = {_LISTS[rest[0]][1].format(k=rest[1])}")
        else:
            lines.append(f"    return {_ENDS[rest[0]][1]}")
            ended = True
    if not ended:
        lines.append(f"    return {name}")
    return "\n".join(lines)


def draw_stage(draw: Draw, kind: str) -> Stage:
    """Draw a stage of a kind: number, choose, map, keep, list or end."""
    if kind in ("number", "map"):
        return [kind, *_draw_number(draw)]
    if kind == "choose":
        then, otherwise = _draw_number(draw), _draw_number(draw)
        while otherwise[0] == then[0]:
            otherwise = _draw_number(draw)
        return [kind, *_draw_test(draw), then, otherwise]
    if kind == "keep":
        return [kind, *_draw_test(draw)]
    if kind == "list":
        name = draw.choice(list(_LISTS))
        return [kind, name, draw.randint(1, 4) if name in ("take", "drop") else 0]
    return ["end", draw.choice(list(_ENDS)), 0]


def _draw_number(draw: Draw) -> list[Any]:
    # Stages with a constant are twice as frequent; otherwise a guess without one would be right too often.
    name = draw.choice((*_NUMBER, *_CONSTANT))
    return [name, draw.randint(2, 9) if name in _CONSTANT else 0]


def _draw_test(draw: Draw) -> list[Any]:
    name = draw.choice(list(_TESTS))
    if name == "multiple":
        return [name, draw.randint(3, 5)]
    return [name, draw.randint(-3, 9) if name in ("greater", "less", "at least") else 0]


def mutate(draw: Draw, stages: list[Stage]) -> list[Stage]:
    """Introduce one mistake: another constant, another operation of the same kind, or two stages exchanged."""
    changed = [list(stage) for stage in stages]
    place = draw.randrange(len(changed))
    stage = changed[place]
    movable = [index for index in range(len(changed) - 1) if changed[index + 1][0] != "end"]
    if movable and draw.random() < 0.2:
        index = draw.choice(movable)
        changed[index], changed[index + 1] = changed[index + 1], changed[index]
    elif stage[0] in ("number", "map", "list", "keep") and stage[2] and draw.random() < 0.5:
        stage[2] += draw.choice((-1, 1))
        stage[2] = max(1, stage[2]) if stage[0] != "keep" else stage[2]
    else:
        changed[place] = draw_stage(draw, stage[0])
    return changed


def draw_input(draw: Draw, stages: list[Stage]) -> Any:
    """Draw an input: a number, or a list that is sometimes empty or repeats itself."""
    if argument(stages) == "x":
        return draw.randint(-20, 20)
    length = draw.choice((0, 1, 2, 4, 5, 6, 7, 8))
    return [draw.randint(-9, 12) for _ in range(length)]
