r"""Decides whether two mathematical answers are equivalent, as LaTeX or plain text. Python evaluates none of them.

Both are stripped (`latex`), parsed (`expressions`) and compared exactly if they are fractions: \frac12 is 0.5. Other
expressions are equivalent if they agree at several fixed points, to a relative 1e-9: x(x+1) is x^2+x, 2\sqrt{2} is
\sqrt 8. Containers are compared part by part, sets in any order; an answer that the parser does not know is compared as
stripped text. Exponents and sizes are bounded, so 9**9**9**9 is just another wrong answer.
"""

import cmath
import hashlib
import math
import re
from fractions import Fraction

from puna.evals.scoring.expressions import MAX_LENGTH, Node, Unknown, parse
from puna.evals.scoring.latex import undressed, unit_letter

POINTS = 3
TOLERANCE = 1e-9
_CONTAINERS = {"tuple", "set", "list", "union", "matrix", "relation", "plusminus"}
# By the names of expressions.FUNCTIONS.
_FUNCTIONS = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "ln": cmath.log,
    "log": lambda x: cmath.log(x) / math.log(10),
    "exp": cmath.exp,
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "cot": lambda x: 1 / cmath.tan(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
}


def equivalent(one: str, other: str) -> bool:
    """Whether two answers are equivalent. Never raises; its time is bounded by their length."""
    if len(one) > MAX_LENGTH or len(other) > MAX_LENGTH:
        return False
    rounded = re.compile(r"\\approx(?![A-Za-z])|≈")
    if rounded.search(one) or rounded.search(other):
        return any(equivalent(a, b) for a in rounded.split(one)[:2] for b in rounded.split(other)[:2])
    first, second = _with_letter(undressed(one), other), _with_letter(undressed(other), one)
    if (letter := _option(first, second) or _option(second, first)) is not None:
        return letter in (first.strip("()"), second.strip("()"))
    return _alike(first, second) or (
        _alike(undressed(one, whole=True), undressed(other, whole=True))
        if "=" in one and "=" in other
        else _alike(_result(first), _result(second))
    )


def _with_letter(text: str, other: str) -> str:
    r"""Strip from 5 m what is a unit by the other answer, 5\text{ m}; without that it is five times m."""
    letter = unit_letter(other)
    return re.sub(rf"(?<=[0-9)}}])\s?{letter}(?:\^\{{?[23]\}}?)?$", "", text) if letter else text


def _option(text: str, other: str) -> str | None:
    """The letter of (C) 12, if the other is a letter alone: then the choice is asked for, not its value."""
    match = re.match(r"\(([A-Z])\)[\s:.]{1,3}\S", text)
    return match[1] if match and re.fullmatch(r"[A-Z]|\([A-Z]\)", other) else None


def _result(text: str) -> str:
    """What a computation comes to: 15 of 5*3 = 15. A list or an inequality is none."""
    return text if re.search(r"[,;<>]|\\[lg]e", text) else text.rpartition("=")[2].strip()


def _alike(one: str, other: str) -> bool:
    if one == other and one:
        return True
    if len(one) > 1 and one.replace(" ", "").isalpha() and one.casefold() == other.casefold():
        return True
    try:
        return _equal(parse(one), parse(other))
    except (Unknown, RecursionError):
        return False


def _equal(one: Node, other: Node) -> bool:
    kinds = {one.kind, other.kind}
    if kinds & _CONTAINERS:
        if one.kind != other.kind or one.value != other.value or len(one.parts) != len(other.parts):
            return False
        if one.kind in ("set", "list", "union"):
            return _same_members(list(one.parts), list(other.parts))
        if one.kind == "relation" and one.value == "=":
            return _same_equation(one, other)
        return all(_equal(a, b) for a, b in zip(one.parts, other.parts, strict=True))
    exact = _exact(one), _exact(other)
    if exact[0] is not None and exact[1] is not None:
        return exact[0] == exact[1]
    for point in range(POINTS):
        first, second = _value(one, point), _value(other, point)
        if first is None or second is None:
            return False
        if abs(first - second) > TOLERANCE * max(1.0, abs(first), abs(second)):
            return False
    return True


def _same_members(one: list[Node], other: list[Node]) -> bool:
    for member in one:
        match = next((index for index, candidate in enumerate(other) if _equal(member, candidate)), None)
        if match is None:
            return False
        other.pop(match)
    return True


def _same_equation(one: Node, other: Node) -> bool:
    """Whether the differences of the sides are multiples of each other: y = 2x is 2x - y = 0 and 4x = 2y."""
    ratios = []
    for point in range(POINTS):
        (a, b), (c, d) = ([_value(side, point) for side in node.parts] for node in (one, other))
        if a is None or b is None or c is None or d is None or abs(c - d) < 1e-12:
            return False
        ratios.append((a - b) / (c - d))
    return abs(ratios[0]) > 1e-12 and all(abs(r - ratios[0]) <= 1e-7 * abs(ratios[0]) for r in ratios)


def _exact(node: Node) -> Fraction | None:
    """The value as a fraction, if there are no roots, names or large powers."""
    if node.kind == "number":
        assert isinstance(node.value, Fraction)
        return node.value
    if node.kind not in ("add", "multiply", "divide", "power"):
        return None
    parts = [_exact(part) for part in node.parts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if node.kind == "add":
        return sum(known, Fraction(0))
    if node.kind == "multiply":
        return math.prod(known, start=Fraction(1))
    if node.kind == "divide":
        return known[0] / known[1] if known[1] else None
    base, exponent = known
    small = exponent.denominator == 1 and abs(exponent) <= 64 and max(abs(base.numerator), base.denominator) < 10**6
    return base**exponent.numerator if small and (base or exponent > 0) else None


def _value(node: Node, point: int) -> complex | None:
    """The value at a point where every variable has its own number; None if undefined or huge."""
    try:
        value = _compute(node, point)
    except (ArithmeticError, ValueError, OverflowError):
        return None
    return value if cmath.isfinite(value) and abs(value) < 1e200 else None


def _compute(node: Node, point: int) -> complex:
    if node.kind == "number":
        assert isinstance(node.value, Fraction)
        return complex(float(node.value))
    if node.kind == "name":
        return _constant(str(node.value), point)
    parts = [_compute(part, point) for part in node.parts]
    if node.kind == "add":
        return sum(parts, 0j)
    if node.kind == "multiply":
        return math.prod(parts, start=1 + 0j)
    if node.kind == "divide":
        return parts[0] / parts[1]
    if node.kind == "root":
        return (
            parts[0] ** (1 / parts[1])
            if parts[0].imag or parts[0].real >= 0 or parts[1] != 3
            else -((-parts[0]) ** (1 / 3))
        )
    if node.kind == "absolute":
        return complex(abs(parts[0]))
    if node.kind == "factorial":
        count = parts[0].real
        if parts[0].imag or count != int(count) or not 0 <= count <= 150:
            raise ValueError
        return complex(math.factorial(int(count)))
    if node.kind == "binomial":
        top, bottom = parts[0].real, parts[1].real
        if not (top == int(top) and bottom == int(bottom) and 0 <= bottom <= top <= 500):
            raise ValueError
        return complex(math.comb(int(top), int(bottom)))
    if node.kind == "call":
        return complex(_FUNCTIONS[str(node.value)](parts[0]))
    base, exponent = parts
    if abs(exponent) > 1000:
        raise OverflowError
    if base == 0:
        return 0j if exponent.real > 0 else 1 + 0j if exponent == 0 else 1 / base
    return complex(base**exponent)


def _constant(name: str, point: int) -> complex:
    known = {"pi": math.pi, "π": math.pi, "e": math.e, "infty": 1e150, "∞": 1e150}
    if name in known:
        return complex(known[name])
    if name == "i":
        return 1j
    digest = hashlib.sha256(f"{name}/{point}".encode()).digest()
    return complex(0.5 + int.from_bytes(digest[:6], "big") / 2**47)  # 0.5 to 2.5
