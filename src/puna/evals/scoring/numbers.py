"""Numbers in a model's text: found without a guess, compared as exact fractions. Nothing is ever evaluated."""

import re
from fractions import Fraction

MAX_DIGITS = 400
"""Digits of a number that is compared; a longer one is no answer to anything asked here."""

# Digits are ASCII: \d would take every digit of Unicode. Groups are bounded, so no text makes the search slow.
_NUMBER = re.compile(r"(?<![\w.])[-−]?\$?(?:[0-9]{1,3}(?:,[0-9]{3}){1,100}|[0-9]{1,400})(?:\.[0-9]{1,400})?(?![0-9])")
_SAID = re.compile(r"(?:answer is|answer:|####)[\s:*$]{0,8}", re.IGNORECASE)


def last_number(text: str) -> str | None:
    """The number behind the last "the answer is", "answer:" or "####"; without these words the last number at all.

    Given without separators and currency: "−1,234.50" is "-1234.50". None when there is none.
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
    """Whether two decimal texts are the same number, exactly: 7 is 7.00, and 0.1 is no binary float."""
    first, second = value(one), value(other)
    return first is not None and first == second


def value(text: str) -> Fraction | None:
    """The number that a decimal text is; None for what is none, or is absurdly long."""
    if len(text) > MAX_DIGITS or not re.fullmatch(r"-?[0-9]+(?:\.[0-9]+)?", text):
        return None
    return Fraction(text)
