"""Finds numbers in a model's text and compares them as exact fractions. Nothing is evaluated."""

import re
from fractions import Fraction

MAX_DIGITS = 400
"""The longest number that is compared, in digits."""

# Digits are ASCII: \d would match every Unicode digit. Groups are bounded, so that no text makes the search slow.
_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?(?:[0-9]{1,3}(?:,[0-9]{3}){1,100}|[0-9]{1,400})(?:\.[0-9]{1,400})?(?![0-9])")
_SAID = re.compile(r"(?:answer is|answer:|####)[\s:*$]{0,8}", re.IGNORECASE)


def last_number(text: str) -> str | None:
    """Return the number after the last "the answer is", "answer:" or "####"; without these, the last number.

    Separators and currency signs are removed: "−1,234.50" gives "-1234.50". None if there is no number.
    """
    said = None
    for match in _SAID.finditer(text):
        number = _NUMBER.match(text, match.end())
        said = number.group() if number else said
    if said is None:
        for number in _NUMBER.finditer(text):
            said = number.group()
    return None if said is None else said.replace(",", "").replace("$", "").replace("−", "-")


def same_number(one: str, other: str) -> bool:
    """Whether two decimal texts are exactly the same number: 7 is 7.00, and 0.1 is not rounded."""
    first, second = value(one), value(other)
    return first is not None and first == second


def value(text: str) -> Fraction | None:
    """Return the number that a decimal text states; None if it is not one or is too long."""
    if len(text) > MAX_DIGITS or not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", text):
        return None
    return Fraction(text)
