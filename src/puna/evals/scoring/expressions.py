r"""Parses a mathematical expression, LaTeX or plain text, into a tree by recursive descent.

It knows numbers as exact fractions, variables, + - * /, powers, roots, functions, and around these tuples, intervals,
sets, matrices and equations. Nothing is evaluated, and length and nesting are bounded. `latex` strips an answer of its
formatting before, and `math_equivalence` compares the trees.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 2_000
"""The longest answer that is parsed, in characters."""
MAX_TOKENS = 600
MAX_DEPTH = 60

FUNCTIONS = ("sin", "cos", "tan", "ln", "log", "exp", "sec", "csc", "cot", "arcsin", "arccos", "arctan")
"""Names before their argument, as in sin x; `math_equivalence` computes them."""
_TOKEN = re.compile(
    r"\s+|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<command>\\[A-Za-z]+|\\.)|(?P<power>\*\*)"
    r"|(?P<letter>[A-Za-z])|(?P<sign>[-+*/^_(){}\[\],=<>|!:;&%°π√∞≤≥±·×÷])"
)
# Formatting that does not change a value.
_DROPPED = ("left", "right", "bigl", "bigr", "Bigl", "Bigr", "big", "Big", "displaystyle", "limits", "!", ",", ";", ":",
            "quad", "qquad", " ", "$", "%", "circ", "degree")  # fmt: skip
_RENAMED = {"dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "times": "*", "cdot": "*", "div": "/", "le": "leq",
            "ge": "geq", "lbrace": "{", "rbrace": "}", "infinity": "infty"}  # fmt: skip


class Unknown(Exception):
    """The parser does not know this text."""


@dataclass(frozen=True)
class Node:
    """kind: number, name, add, multiply, divide, power, root, call, or a container. parts: its children."""

    kind: str
    parts: tuple["Node", ...] = ()
    value: Fraction | str = ""


def parse(text: str) -> Node:
    """Return the tree of an answer without formatting. Raises Unknown for one that is unknown, too long or too deep."""
    tokens, place = [], 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unknown
        place = match.end()
        if match.lastgroup:
            tokens.append(match.group().strip())
    tokens = [_simple(token) for token in tokens]
    tokens = [token for token in tokens if token]
    if not tokens or len(tokens) > MAX_TOKENS:
        raise Unknown
    parser = _Parser(tokens)
    node = parser.listed(None)
    if parser.place != len(tokens):
        raise Unknown
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
            raise Unknown
        self.place += 1
        return token

    def listed(self, closing: str | None) -> Node:
        """Relations separated by commas, or "and", up to a closing token or the end."""
        parts = [self.relation()]
        while self.peek() in (",", ";") and self.peek() != closing:
            self.take()
            parts.append(self.relation())
        return parts[0] if len(parts) == 1 else Node("list", tuple(parts))

    def relation(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unknown
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
                    raise Unknown  # two adjacent numbers are not a product
                node = Node("multiply", (node, self.power()))
            else:
                break
        return Node("multiply", (Node("number", (), Fraction(-1)), node)) if negative else node

    def _mixed(self, node: Node) -> bool:
        r"""Whether an integer precedes a \frac: 6 \frac34 is six and three quarters."""
        whole = node.kind == "number" and isinstance(node.value, Fraction) and node.value.denominator == 1
        return whole and self.peek() == "\\frac"

    @staticmethod
    def _begins(token: str) -> bool:
        return token.startswith("\\") and (token[1:] in ("frac", "sqrt", "pi", "infty", "binom", *FUNCTIONS, *_GREEK))

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
                raise Unknown  # a tower of powers is not an answer
        return node

    def argument(self) -> Node:
        """The argument of ^, \\frac or \\sqrt: a group in braces, or one token."""
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
            raise Unknown
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
        if name in FUNCTIONS:
            return Node("call", (self.power() if self.peek() not in ("{",) else self.argument(),), name)
        if name == "begin":
            return self._matrix()
        raise Unknown

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
            raise Unknown
        node = self.listed(None)
        closing = self.take()
        self.depth -= 1
        if closing not in (")", "]"):
            raise Unknown
        if node.kind == "list":
            return Node("tuple", node.parts, opening + closing)
        if opening + closing != "()" and opening + closing != "[]":
            raise Unknown
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
                raise Unknown
            return Node("matrix", tuple(rows))

    def _environment(self) -> str:
        self.take("{")
        name = ""
        while self.peek() != "}":
            name += self.take()
        self.take()
        return name


_GREEK = ("alpha", "beta", "gamma", "delta", "theta", "lambda", "mu", "phi", "omega", "sigma", "epsilon", "rho", "tau")
