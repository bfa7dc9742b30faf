"""Problems that need a tool: large expressions for the calculator, short computations for Python."""

from puna.tasks import answer_parser, calculator
from puna.tasks.contract import Data, Draw, Task, Verdict, refused

_CALCULATIONS = ((2, 2, "+*"), (3, 3, "+*"), (3, 4, "+-*"), (4, 6, "+-*"), (6, 8, "+-*%"))
"""(numbers, digits of each, operators) of each level."""


def calculation(draw: Draw, level: int) -> tuple[str, Data]:
    """An expression too large for mental arithmetic."""
    count, digits, signs = _CALCULATIONS[level - 1]
    numbers = [draw.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(count)]
    text = str(numbers[0])
    for number in numbers[1:]:
        text = f"({text})" if draw.random() < 0.3 else text
        text += f"{draw.choice(signs)}{number}"
    return f"{text}=", {"expression": text, "answer": calculator.calculate(text)}


def _digit_sum(base: int, exponent: int) -> int:
    return sum(map(int, str(base**exponent)))


def _multiples(below: int, one: int, other: int) -> int:
    return sum(number for number in range(below) if number % one == 0 or number % other == 0)


def _primes(below: int, remainder: int) -> int:
    sieve = bytearray([1]) * below
    sieve[:2] = b"\0\0"
    for number in range(2, int(below**0.5) + 1):
        sieve[number * number :: number] = bytes(len(range(number * number, below, number)))
    return sum(1 for number in range(below) if sieve[number] and number % 4 == remainder)


def _collatz(start: int) -> int:
    steps = 0
    while start != 1:
        start = start // 2 if start % 2 == 0 else 3 * start + 1
        steps += 1
    return steps


def _paths(width: int, height: int, modulus: int) -> int:
    ways = [1] * (width + 1)
    for _ in range(height):
        for column in range(1, width + 1):
            ways[column] += ways[column - 1]
    return ways[width] % modulus


def computation(draw: Draw, level: int) -> tuple[str, Data]:
    """A question that a few lines of Python can answer."""
    if level == 1:
        below, one, other = draw.randint(50, 400), *draw.sample((3, 4, 5, 6, 7, 9), 2)
        return (
            f"Sum of all whole numbers from 0 that are less than {below} and divisible by {one} or {other}?",
            {
                "answer": _multiples(below, one, other),
                "code": f"print(sum(n for n in range({below}) if n % {one} == 0 or n % {other} == 0))",
            },
        )
    if level == 2:
        base, exponent = draw.randint(2, 9), draw.randint(20, 90)
        return (
            f"Sum of the decimal digits of {base} to the power {exponent}?",
            {
                "answer": _digit_sum(base, exponent),
                "code": f"print(sum(int(d) for d in str({base} ** {exponent})))",
            },
        )
    if level == 3:
        start = draw.randint(100, 9999)
        return (
            f"From n = {start}, halve n if it is even, else take 3n + 1. How many steps until n is 1?",
            {
                "answer": _collatz(start),
                "code": f"n, s = {start}, 0\nwhile n != 1:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n    s += 1\n"
                "print(s)",
            },
        )
    if level == 4:
        below, remainder = draw.randint(500, 5000), draw.choice((1, 3))
        return (
            f"How many primes less than {below} leave the remainder {remainder} when divided by 4?",
            {
                "answer": _primes(below, remainder),
                "code": f"print(sum(1 for n in range(2, {below}) if n % 4 == {remainder} "
                "and all(n % d for d in range(2, int(n ** 0.5) + 1))))",
            },
        )
    width, height, modulus = draw.randint(8, 30), draw.randint(8, 30), draw.randint(101, 997)
    return (
        f"How many shortest ways lead over a grid {width} wide and {height} high from corner to corner along its "
        f"lines? "
        f"Give the remainder of division by {modulus}.",
        {
            "answer": _paths(width, height, modulus),
            "code": f"from math import comb\nprint(comb({width + height}, {width}) % {modulus})",
        },
    )


def grade(data: Data, text: str) -> Verdict:
    """Score 1 for the right number, else 0."""
    found = answer_parser.value(text)
    if found.text is None:
        return refused(found.reason)
    number = answer_parser.integer(found.text, digits=100)
    if number is None:
        return refused("The answer is not one whole number.")
    if number != data["answer"]:
        return refused("The answer is wrong.", correct=0.0)
    return Verdict(1.0, {"correct": 1.0}, "The answer is right.")


def solve(data: Data) -> str:
    """Write the final answer; `tools.first_call` writes the turn before it."""
    return f"answer: {data['answer']}"


_ANSWER = " Then write the result on a line that begins with the word answer and a colon."
_NUMBERS = tuple(f"answer: {number}" for number in (0, 1, 2, 10, 42, 100, 1000))
TASKS = (
    Task(
        "tools.calculator",
        "right result after any number of calls 1",
        "Compute the expression with the calculator." + _ANSWER,
        tuple(f"{count} numbers of {digits} digits" for count, digits, _ in _CALCULATIONS),
        calculation,
        grade,
        solve,
        _NUMBERS,
        tools=("calculator",),
    ),
    Task(
        "tools.python",
        "right result after any number of calls 1",
        "Answer the question by running Python." + _ANSWER,
        ("sums", "digits of powers", "3n + 1", "primes", "ways over a grid"),
        computation,
        grade,
        solve,
        _NUMBERS,
        tools=("python",),
    ),
)
