"""Numbers as people write and read them: 15.6T tokens, 1.2 GiB, 4 min 5 s."""

import re

from puna.core.errors import PunaError

_COUNT = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(text: str | int | float) -> int:
    """Read a count such as 500, "1_000", "2.5M" or "15.6T" (K, M, B or G, T; powers of 1000).

    Raises PunaError for anything else.
    """
    if isinstance(text, int | float):
        return int(text)
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmbgt]?)", text.strip().lower().replace("_", ""))
    if not match:
        raise PunaError(f"'{text}' is not a count.", "Write it like 500, 2.5M or 15.6T.")
    return round(float(match[1]) * _COUNT[match[2]])


def format_count(value: float) -> str:
    """1234567 -> '1.23M'."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def format_bytes(value: float) -> str:
    """1234567 -> '1.18 MiB' (powers of 1024)."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}" if abs(value) < 1000 * size else f"{value / size:.0f} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """245 -> '4 min 5 s'."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s"
