"""Parses and formats numbers as people write them: 15.6T tokens, 1.2 GiB, 4 min 5 s."""

import math
import re
from fractions import Fraction

from puna.core.errors import PunaError

_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: str | int | float) -> int:
    """Read a count such as 500, "1_000", "2.5M" or "15.6T" (K, M, B or G, T; powers of 1000).

    Exact, and rounded to the nearest integer. Raises PunaError for anything else.
    """
    if isinstance(text, int | float):
        if math.isfinite(text):
            return round(text)
    # At most two digits of exponent: 1e999999999 would fill the memory.
    elif match := re.fullmatch(
        r"([0-9]*\.?[0-9]+(?:e[0-9]{1,2})?)\s*([kmbgt]?)", text.strip().lower().replace("_", "")
    ):
        return round(Fraction(match[1]) * _COUNT[match[2]])
    raise PunaError(f"'{text}' is not a count.", "Write it like 500, 2.5M or 15.6T.")


def format_count(value: float) -> str:
    """1234567 -> '1.23M'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:  # values that three digits would round up to the unit
            return f"{_three_digits(value / size)}{unit}"
    return _three_digits(value)


def format_bytes(value: float) -> str:
    """1234567 -> '1.18 MiB' (powers of 1024)."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= 0.9995 * size:
            return f"{_three_digits(value / size)} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """245 -> '4 min 5 s'."""
    if value < 59.5 or not math.isfinite(value):
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s"


def _three_digits(value: float) -> str:
    """Three significant digits, and never an exponent for a large number."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
