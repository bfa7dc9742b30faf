"""Arithmetic with working: addition, subtraction, multiplication and chains of integers.

The working is checked too: every equation in the text before the answer (`7+8=15`) is computed again. A right answer
without a false equation scores 1, a right answer with one 0.5, a wrong answer 0. The breakdown has the share of the
reference's own steps that were written, so that a recipe may reward working without rewarding noise.
"""

import re

from puna.tasks import answer_parser, calculator
from puna.tasks.contract import Data, Draw, Task, Verdict, refused

MAX_EQUATIONS = 200
MAX_SIDE = 120
"""The longest left side of an equation, in characters."""
_LEFT = re.compile(r"[0-9+\-*() ]*\Z")
_RESULT = re.compile(r" {0,3}(-?[0-9]{1,40})(?![0-9])")
_DIGITS = (1, 2, 3, 4, 6, 10)
_CHAINS = ((2, 9), (3, 9), (3, 99), (4, 99), (5, 99), (6, 999))


def addition(draw: Draw, level: int) -> tuple[str, Data]:
    """Two numbers with as many digits as the level says."""
    first, second = (_number(draw, _DIGITS[level - 1]) for _ in range(2))
    return _problem([first, second], ["+"])


def subtraction(draw: Draw, level: int) -> tuple[str, Data]:
    """Two numbers with as many digits as the level says, the larger first up to level 3."""
    first, second = (_number(draw, _DIGITS[level - 1]) for _ in range(2))
    if level <= 3 and first < second:
        first, second = second, first
    return _problem([first, second], ["-"])


def multiplication(draw: Draw, level: int) -> tuple[str, Data]:
    """One digit times one, up to four digits times four."""
    left, right = ((1, 1), (2, 1), (3, 1), (2, 2), (3, 3), (4, 4))[level - 1]
    return _problem([_number(draw, left), _number(draw, right)], ["*"])


def chain(draw: Draw, level: int) -> tuple[str, Data]:
    """Several numbers under + and -, with one product among them from level 4."""
    count, largest = _CHAINS[level - 1]
    numbers = [draw.randint(1, largest) for _ in range(count)]
    signs = [draw.choice("+-") for _ in range(count - 1)]
    if level >= 4:
        place = draw.randrange(count - 1)
        signs[place] = "*"
        numbers[place + 1] = draw.randint(2, 9)
    return _problem(numbers, signs)


def _number(draw: Draw, digits: int) -> int:
    """A number of exactly `digits` digits; a single digit is at least 1."""
    return draw.randint(10 ** (digits - 1), 10**digits - 1)


def _problem(numbers: list[int], signs: list[str]) -> tuple[str, Data]:
    text = str(numbers[0]) + "".join(f"{sign}{number}" for sign, number in zip(signs, numbers[1:], strict=True))
    data: Data = {"expression": text, "answer": calculator.calculate(text), "steps": _steps(numbers, signs)}
    return f"{text}=", data


def _steps(numbers: list[int], signs: list[str]) -> list[str]:
    """The working that a pupil writes: columns with their carry, or one operation a line."""
    numbers, signs, steps = list(numbers), list(signs), []
    if len(numbers) == 2:
        return {"+": _columns_sum, "-": _columns_difference, "*": _partial_products}[signs[0]](*numbers)
    while "*" in signs:
        place = signs.index("*")
        product = numbers[place] * numbers[place + 1]
        steps.append(f"{numbers[place]}*{numbers[place + 1]}={product}")
        numbers[place : place + 2] = [product]
        del signs[place]
    total = numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        after = total + number if sign == "+" else total - number
        steps.append(f"{total}{sign}{number}={after}")
        total = after
    return steps


def _columns_sum(first: int, second: int) -> list[str]:
    """Columns from the right, each with the carry into it: 7+8=15, 5+2+1=8."""
    steps, carry = [], 0
    if first < 10 and second < 10:
        return []
    while first or second:
        column = first % 10 + second % 10 + carry
        steps.append(f"{first % 10}+{second % 10}{'+1' if carry else ''}={column}")
        first, second, carry = first // 10, second // 10, column // 10
    return steps


def _columns_difference(first: int, second: int) -> list[str]:
    """Columns from the right of the larger minus the smaller, with what was borrowed: 12-7=5, 4-2-1=1."""
    swapped = first < second
    if first < 10 and second < 10:
        return []
    larger, smaller = (second, first) if swapped else (first, second)
    steps, borrow = [], 0
    while larger or smaller:
        column = larger % 10 - smaller % 10 - borrow
        ten = 10 if column < 0 else 0
        steps.append(f"{larger % 10 + ten}-{smaller % 10}{'-1' if borrow else ''}={column + ten}")
        larger, smaller, borrow = larger // 10, smaller // 10, 1 if ten else 0
    return steps


def _partial_products(first: int, second: int) -> list[str]:
    """The first number times each digit of the second with its zeros, then their sum."""
    if first < 10 and second < 10:
        return []
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(second))) if digit != "0"]
    steps = [f"{first}*{part}={first * part}" for part in parts]
    if len(parts) > 1:
        steps.append("+".join(str(first * part) for part in parts) + f"={first * second}")
    return steps


def grade(data: Data, text: str) -> Verdict:
    """Score 1 for the right answer without a false equation, 0.5 with one, else 0."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    number = answer_parser.integer(found.text)
    if number is None:
        return refused("The answer is not one whole number.")
    right = number == data["answer"]
    true, false = _equations(text)
    steps = set(data["steps"])
    working = len(steps & true) / len(steps) if steps else 1.0
    parts = {"correct": float(right), "working": working, "false_steps": float(false)}
    if not right:
        return refused("The answer is wrong.", **parts)
    if false:
        return Verdict(0.5, parts, "The answer is right but the working states something false.")
    return Verdict(1.0, parts, "The answer is right.")


def _equations(text: str) -> tuple[set[str], int]:
    """The true equations of a text, without spaces, and the number of false ones, among the first MAX_EQUATIONS."""
    true, false = set(), 0
    place = text.find("=")
    for _ in range(MAX_EQUATIONS):
        if place < 0:
            break
        result = _RESULT.match(text, place + 1)
        left = _LEFT.search(text[max(0, place - MAX_SIDE) : place])
        expression = left[0].replace(" ", "") if left else ""
        if result and any(sign in expression[1:] for sign in "+-*"):
            try:
                if calculator.calculate(expression) == int(result[1]):
                    true.add(f"{expression}={result[1]}")
                else:
                    false += 1
            except calculator.Refused:
                pass  # not an equation that can be read, so neither true nor false
        place = text.find("=", place + 1)
    return true, false


def solve(data: Data) -> str:
    """Write the steps, one a line, then the answer."""
    return "\n".join([*data["steps"], f"answer: {data['answer']}"])


_INSTRUCTION = (
    "Compute the expression. Write your working as equations, one a line, each of them true. "
    "Write the result alone on a last line that begins with the word answer and a colon."
)
_SCORED = "right result with true working 1, right with a false equation 0.5"
_NUMBERS = ("answer: 0", "answer: 1", "answer: 2", "answer: 5", "answer: 8", "answer: 10", "answer: 12", "answer: 100")

TASKS = (
    Task(
        "arithmetic.addition",
        _SCORED,
        _INSTRUCTION,
        tuple(f"{digits} digit{'s' if digits > 1 else ''}" for digits in _DIGITS),
        addition,
        grade,
        solve,
        _NUMBERS,
        suite="reasoning",
    ),
    Task(
        "arithmetic.subtraction",
        _SCORED,
        _INSTRUCTION,
        tuple(
            f"{digits} digit{'s' if digits > 1 else ''}{', also below zero' if digits > 3 else ''}"
            for digits in _DIGITS
        ),
        subtraction,
        grade,
        solve,
        _NUMBERS,
        suite="reasoning",
    ),
    Task(
        "arithmetic.multiplication",
        _SCORED,
        _INSTRUCTION,
        ("1 digit by 1", "2 by 1", "3 by 1", "2 by 2", "3 by 3", "4 by 4"),
        multiplication,
        grade,
        solve,
        _NUMBERS,
        suite="reasoning",
    ),
    Task(
        "arithmetic.chain",
        _SCORED,
        _INSTRUCTION,
        tuple(
            f"{count} numbers to {largest}{', one product' if level >= 3 else ''}"
            for level, (count, largest) in enumerate(_CHAINS)
        ),
        chain,
        grade,
        solve,
        _NUMBERS,
        suite="reasoning",
    ),
)
