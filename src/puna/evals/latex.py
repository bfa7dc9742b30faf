r"""Whether two answers to a mathematics problem are the same, as LaTeX or plain text. Python evaluates nothing of them.

An answer is taken apart by a small parser of our own into a tree: numbers as exact fractions, variables, + - * /,
powers, roots, functions, and around these tuples, intervals, sets, matrices and equations. Two expressions are the same
when they agree at several fixed points, to a relative 1e-9: x(x+1) is x^2+x, \frac12 is 0.5, 2\sqrt{2} is \sqrt 8. An
answer the parser does not know is compared as text without its dressing. Exponents and sizes are bounded, so
9**9**9**9 is only another answer that is wrong.
"""

import cmath
import hashlib
import math
import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 2_000
"""Characters of an answer that is compared."""
MAX_TOKENS = 600
MAX_DEPTH = 60
POINTS = 3
TOLERANCE = 1e-9

_TOKEN = re.compile(
    r"\s+|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<command>\\[A-Za-z]+|\\.)|(?P<power>\*\*)"
    r"|(?P<letter>[A-Za-z])|(?P<sign>[-+*/^_(){}\[\],=<>|!:;&%°π√∞≤≥±·×÷])"
)
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
# Dressing that does not change a value.
_DROPPED = ("left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "displaystyle", "limits", "!", ",", ";", ":",
            "quad", "qquad", " ", "$", "%", "circ", "degree")  # fmt: skip
_RENAMED = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "times": "*", "cdot": "*", "div": "/", "le": "leq",
            "ge": "geq", "lbrace": "{", "rbrace": "}", "infinity": "infty"}  # fmt: skip
_UNITS = re.compile(
    r"\s*\\(?:text|mbox|mathrm|textrm)\s*\{\s*(?:square |cubic )?"
    r"(?:[a-z]+s?\.?|[A-Za-z]{1,4}\^?[23]?)(?: [a-z ]{1,40})?\s*\}"
    r"(?:\s*\^\s*\{?[23]\}?)?\s*$"
)


class _Unknown(Exception):
    """The parser does not know this text."""


@dataclass(frozen=True)
class Node:
    """kind: number, name, add, multiply, divide, power, root, call, or a container. parts: what it is made of."""

    kind: str
    parts: tuple["Node", ...] = ()
    value: Fraction | str = ""


def final_answer(text: str) -> str | None:
    r"""The content of the last \boxed{…}, or else what follows the last "answer is" on its line; None for neither."""
    text = text[-50_000:]
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start >= 0:
        place = text.find("{", start)
        if place == -1 or text[start:place].strip() not in ("\\boxed", "\\fbox"):
            return text[start + len("\\boxed") :].split("$")[0].strip() or None
        depth = 0
        for end in range(place, min(len(text), place + MAX_LENGTH)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if not depth:
                return text[place + 1 : end].strip()
        return None
    said = text.lower().rfind("answer is")
    if said < 0:
        return None
    line = text[said + len("answer is") :].split("\n")[0].strip(" :*")
    return line.removesuffix(".").strip("$ ").removesuffix(".") or None


def same(one: str, other: str) -> bool:
    """Whether two answers are the same. Never raises, and takes no longer than their length allows."""
    if len(one) > MAX_LENGTH or len(other) > MAX_LENGTH:
        return False
    return _alike(undressed(one), undressed(other)) or (
        "=" in one and "=" in other and _alike(undressed(one, whole=True), undressed(other, whole=True))
    )


def _alike(one: str, other: str) -> bool:
    if one == other and one:
        return True
    try:
        return _equal(_parsed(one), _parsed(other))
    except (_Unknown, RecursionError):
        return False


def undressed(text: str, *, whole: bool = False) -> str:
    """The text without dollars, spacing commands, units behind it and, unless `whole`, `x =` before it."""
    text = text.strip().strip("$").strip().rstrip(".").strip()
    text = re.sub(r"(?<!\\)\\ ", " ", text.replace("\\$", "").replace("−", "-").replace("{,}", ","))
    text = _UNITS.sub("", text) if _UNITS.sub("", text).strip() else text
    text = re.sub(r"\\(?:text|mbox|mathrm|textrm|textbf|mathbf)\s{0,3}\{([^{}]{0,500})\}", r"\1", text)
    text = re.sub(r"\\(?:d|t|c)frac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right|bigl|bigr|Bigl|Bigr|displaystyle|!|,|;|:|quad|qquad)(?![A-Za-z])", "", text)
    text = re.sub(r"\^\s{0,3}(?:\\circ|\{\s{0,3}\\circ\s{0,3}\})|\\degree|°|\\?%", "", text)
    if not whole:
        text = re.sub(r"^\s{0,9}[A-Za-z](?:\([a-z]\))?\s{0,3}=(?=[^=]*$)\s{0,9}", "", text)
    while (joined := re.sub(r"(?<![0-9,.])([0-9]{1,3}(?:,[0-9]{3}){0,20}),([0-9]{3})(?![0-9])", r"\1\2", text)) != text:
        text = joined
    return " ".join(text.split())


# -- comparing ---------------------------------------------------------------------------------------------------------


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


_CONTAINERS = {"tuple", "set", "list", "union", "matrix", "relation", "plusminus"}


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
    """The value as a fraction where it is one without roots, names or large powers."""
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
    """The value at a point where every variable has a number of its own; None where there is none, or a huge one."""
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


# -- parsing -----------------------------------------------------------------------------------------------------------


def _parsed(text: str) -> Node:
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise _Unknown
        place = match.end()
        if match.lastgroup:
            tokens.append(match.group().strip())
    tokens = [_simple(token) for token in tokens]
    tokens = [token for token in tokens if token]
    if not tokens or len(tokens) > MAX_TOKENS:
        raise _Unknown
    parser = _Parser(tokens)
    node = parser.listed(None)
    if parser.place != len(tokens):
        raise _Unknown
    return node


def _simple(token: str) -> str:
    if token == "**":
        return "^"
    if not token.startswith("\\"):
        return {"×": "*", "·": "*", "÷": "/", "≤": "\\leq", "≥": "\\geq", "π": "\\pi", "∞": "\\infty", "√": "\\sqrt",
                "±": "\\pm", "<": "\\lt", ">": "\\gt"}.get(token, token)  # fmt: skip
    name = token[1:]
    if name in _DROPPED:
        return ""
    name = _RENAMED.get(name, name)
    return name if name in "*/" else "\\" + name


class _Parser:
    """Recursive descent over tokens; `depth` bounds the nesting."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise _Unknown
        self.place += 1
        return token

    def listed(self, closing: str | None) -> Node:
        """Relations parted by commas, or "and", up to a closing token or the end."""
        parts = [self.relation()]
        while self.peek() in (",", ";") and self.peek() != closing:
            self.take()
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else Node("list", tuple(parts))

    def relation(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unknown
        left = self.sum()
        if self.peek() == "\\cup":
            members = [left]
            while self.peek() == "\\cup":
                self.take()
                members.append(self.sum())
            left = Node("union", tuple(members))
        if self.peek() in (":", "=", "\\leq", "\\geq", "\\lt", "\\gt", "\\neq", "\\in"):
            sign = self.take()
            right = self.relation()
            if sign in ("\\geq", "\\gt"):
                sign, left, right = {"\\geq": "\\leq", "\\gt": "\\lt"}[sign], right, left
            left = Node("relation", (left, right), sign)
        self.depth -= 1
        return left

    def sum(self) -> Node:
        parts = []
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        parts.append(self.product(negative))
        while self.peek() in ("+", "-", "\\pm"):
            if self.peek() == "\\pm":
                self.take()
                return Node("plusminus", (Node("add", tuple(parts)), self.product(False)))
            parts.append(self.product(self.take() == "-"))
        return parts[0] if len(parts) == 1 else Node("add", tuple(parts))

    def product(self, negative: bool) -> Node:
        node = self.power()
        if self._mixed(node):
            node = Node("add", (node, self.power()))
        while True:
            token = self.peek()
            if token == "*":
                self.take()
                node = Node("multiply", (node, self.signed()))
            elif token == "/":
                self.take()
                node = Node("divide", (node, self.signed()))
            elif token and (token[0].isalnum() or token in ("(", "{", "[") or self._begins(token)):
                if token == "[" or (token[0].isdigit() and node.kind == "number"):
                    raise _Unknown  # two numbers side by side are no product
                node = Node("multiply", (node, self.power()))
            else:
                break
        return Node("multiply", (Node("number", (), Fraction(-1)), node)) if negative else node

    def _mixed(self, node: Node) -> bool:
        r"""Whether a whole number stands before a \frac: 6 \frac34 is six and three quarters."""
        whole = node.kind == "number" and isinstance(node.value, Fraction) and node.value.denominator == 1
        return whole and self.peek() == "\\frac"

    @staticmethod
    def _begins(token: str) -> bool:
        return token.startswith("\\") and (token[1:] in ("frac", "sqrt", "pi", "infty", "binom", *_FUNCTIONS, *_GREEK))

    def signed(self) -> Node:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        node = self.power()
        return Node("multiply", (Node("number", (), Fraction(-1)), node)) if negative else node

    def power(self) -> Node:
        node = self.atom()
        while self.peek() == "!":
            self.take()
            node = Node("factorial", (node,))
        if self.peek() == "^":
            self.take()
            node = Node("power", (node, self.argument()))
            if self.peek() == "^":
                raise _Unknown  # a tower of powers is no answer
        return node

    def argument(self) -> Node:
        """What stands behind ^, \\frac or \\sqrt: a group in braces, or one token."""
        token = self.peek()
        if token == "{":
            return self.group("{", "}")
        if token == "-":
            return self.signed()
        if re.fullmatch(r"[0-9]{2,}", token):  # \frac12 has two arguments of one digit each
            self.tokens[self.place : self.place + 1] = [token[0], token[1:]]
        return self.atom()

    def group(self, opening: str, closing: str) -> Node:
        self.take(opening)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unknown
        node = self.listed(closing)
        self.take(closing)
        self.depth -= 1
        return node

    def atom(self) -> Node:
        token = self.take()
        if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+", token):
            return (
                Node("name", (), token + base) if (base := self._subscript()) else Node("number", (), Fraction(token))
            )
        if token == "{":
            self.place -= 1
            return self.group("{", "}")
        if token in ("(", "["):
            return self._bracketed(token)
        if token == "\\{":
            if self.peek() == "\\}":
                self.take()
                return Node("set")
            node = self.listed("\\}")
            self.take("\\}")
            return Node("set", node.parts if node.kind == "list" else (node,))
        if token == "|":
            node = self.sum()
            self.take("|")
            return Node("absolute", (node,))
        if len(token) == 1 and token.isalpha():
            return Node("name", (), token + self._subscript())
        name = token.removeprefix("\\")
        if name in _GREEK or name in ("pi", "infty"):
            return Node("name", (), name + self._subscript())
        if name == "pm":
            return Node("plusminus", (Node("number", (), Fraction(0)), self.product(False)))
        if name in ("emptyset", "varnothing"):
            return Node("set")
        if name == "frac":
            return Node("divide", (self.argument(), self.argument()))
        if name == "binom":
            return Node("binomial", (self.argument(), self.argument()))
        if name == "sqrt":
            degree = Node("number", (), Fraction(2))
            if self.peek() == "[":
                self.take()
                degree = self.sum()
                self.take("]")
            return Node("root", (self.argument(), degree))
        if name in _FUNCTIONS:
            return Node("call", (self.power() if self.peek() not in ("{",) else self.argument(),), name)
        if name == "begin":
            return self._matrix()
        raise _Unknown

    def _subscript(self) -> str:
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return f"_{self.take()}"
        self.take()
        inside = ""
        while self.peek() != "}":
            inside += self.take()
        self.take()
        return f"_{inside}"

    def _bracketed(self, opening: str) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unknown
        node = self.listed(None)
        closing = self.take()
        self.depth -= 1
        if closing not in (")", "]"):
            raise _Unknown
        if node.kind == "list":
            return Node("tuple", node.parts, opening + closing)
        if opening + closing != "()" and opening + closing != "[]":
            raise _Unknown
        return node

    def _matrix(self) -> Node:
        name = self._environment()
        rows: list[Node] = []
        row: list[Node] = []
        while True:
            row.append(self.relation())
            token = self.take()
            if token == "&":
                continue
            rows.append(Node("tuple", tuple(row), "row"))
            row = []
            if token == "\\\\":
                if self.peek() != "\\end":
                    continue
                token = self.take()
            if token != "\\end" or self._environment() != name:
                raise _Unknown
            return Node("matrix", tuple(rows))

    def _environment(self) -> str:
        self.take("{")
        name = ""
        while self.peek() != "}":
            name += self.take()
        self.take()
        return name


_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma", "epsilon", "rho", "tau")
