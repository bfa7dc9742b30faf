"""Format numbers for the report; a dash means not measured."""

from collections.abc import Callable
from typing import Any


def number(value: float | None, form: str) -> str:
    """The value in a format such as ".3f"; a dash for None."""
    return "–" if value is None else format(value, form)


def or_dash(value: float | None, form: Callable[[float], str]) -> str:
    """form(value); a dash for None."""
    return "–" if value is None else form(value)


def count_or_share(value: Any) -> str:
    """A count as it is, a share (float) in percent."""
    if value is None:
        return "–"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def format_flops(value: float) -> str:
    """3.81e11 -> \'381 GFLOP/s\'."""
    return f"{value / 1e12:.3g} TFLOP/s" if value >= 1e12 else f"{value / 1e9:.3g} GFLOP/s"
