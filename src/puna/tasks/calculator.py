"""Computes expressions of integers with its own parser: + - * // % ** and brackets.

Checks written working, and is the calculator tool. Python's `eval` is never used, and every size is bounded before
anything is computed: `9**9**9**9` is refused, not tried.
"""

from typing import NamedTuple

MAX_EXPRESSION = 500
"""The longest expression, in characters."""
MAX_DEPTH = 40
MAX_BITS = 4_000
"""The largest number in a computation."""


class Refused(Exception):
    """The expression cannot be computed; the message says why."""


class _Token(NamedTuple):
    kind: str
    value: int = 0


def calculate(text: str) -> int:
    """Return the value of an expression of integers. Raises Refused with one sentence for anything else."""
    if len(text) > MAX_EXPRESSION:
        raise Refused(f"The expression is longer than {MAX_EXPRESSION} characters.")
    parser = _Parser(_tokens(text))
    result = parser.sum(0)
    if parser.here.kind != "end":
        raise Refused("The expression does not end where it should.")
    return result


def _tokens(text: str) -> list[_Token]:
    tokens, place = [], 0
    while place < len(text):
        sign = text[place]
        if sign in " \t":
            place += 1
        elif sign in "0123456789":
            end = place
            while end < len(text) and text[end] in "0123456789":
                end += 1
            tokens.append(_Token("number", int(text[place:end])))
            place = end
        elif text[place : place + 2] in ("**", "//"):
            tokens.append(_Token(text[place : place + 2]))
            place += 2
        elif sign in "+-*%()":
            tokens.append(_Token(sign))
            place += 1
        else:
            raise Refused(f"{sign!r} is not understood; use + - * // % ** and brackets on whole numbers.")
    return [*tokens, _Token("end")]


class _Parser:
    """Recursive descent with Python's precedence; the depth is bounded, so that no text exhausts the stack."""

    def __init__(self, tokens: list[_Token]) -> None:
        self.tokens, self.place = tokens, 0

    @property
    def here(self) -> _Token:
        return self.tokens[self.place]

    def take(self, *kinds: str) -> str | None:
        if self.here.kind in kinds:
            self.place += 1
            return self.tokens[self.place - 1].kind
        return None

    def sum(self, depth: int) -> int:
        total = self.product(depth)
        while sign := self.take("+", "-"):
            right = self.product(depth)
            total = _bounded(total + right if sign == "+" else total - right)
        return total

    def product(self, depth: int) -> int:
        total = self.signed(depth)
        while sign := self.take("*", "//", "%"):
            right = self.signed(depth)
            if sign == "*":
                total = _bounded(total * right)
            elif right == 0:
                raise Refused("Division by zero.")
            else:
                total = total // right if sign == "//" else total % right
        return total

    def signed(self, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise Refused("The expression is nested too deeply.")
        if sign := self.take("-", "+"):
            inner = self.signed(depth + 1)
            return -inner if sign == "-" else inner
        return self.power(depth)

    def power(self, depth: int) -> int:
        base = self.atom(depth)
        if not self.take("**"):
            return base
        exponent = self.signed(depth + 1)
        if exponent < 0:
            raise Refused("Negative powers are not whole numbers.")
        if abs(base) > 1 and exponent * abs(base).bit_length() > MAX_BITS:
            raise Refused("The number is too large.")
        return 1 if exponent == 0 else base**exponent if abs(base) > 1 else base if exponent % 2 else base * base

    def atom(self, depth: int) -> int:
        token = self.here
        if self.take("number"):
            return token.value
        if self.take("("):
            inner = self.sum(depth + 1)
            if not self.take(")"):
                raise Refused("A bracket is not closed.")
            return inner
        raise Refused("A number is missing.")


def _bounded(number: int) -> int:
    if number.bit_length() > MAX_BITS:
        raise Refused("The number is too large.")
    return number
