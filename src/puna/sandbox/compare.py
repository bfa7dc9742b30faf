"""Comparison of values from the sandbox with expected ones.

The values were decoded by `typed_json`: they have exactly the builtin types, so no untrusted code runs here.
"""

from collections.abc import Sequence
from typing import Any

from puna.sandbox.child import typed_json
from puna.sandbox.result import CallResult


def same(got: Any, expected: Any, *, tolerance: float | None = None) -> bool:
    """Whether two plain values are equal in type and value, recursively.

    True is not 1, 1 is not 1.0, a tuple is not a list; the order of a dict or a set does not matter. Floats are equal
    to the bit: NaN equals NaN, and -0.0 is not 0.0. With `tolerance` they may differ by that much, absolutely, and the
    sign of zero no longer matters; keys of dicts and members of sets stay exact. A value that is not plain data equals
    nothing.
    """
    kind = type(got)
    if kind is not type(expected):
        return False
    if kind is float and tolerance is not None:
        return got == expected or got.hex() == expected.hex() or abs(got - expected) <= tolerance
    if kind in (list, tuple):
        return len(got) == len(expected) and all(
            same(one, other, tolerance=tolerance) for one, other in zip(got, expected, strict=True)
        )
    try:
        if kind is dict:
            ours, theirs = ({typed_json.encode(key): item for key, item in value.items()} for value in (got, expected))
            return ours.keys() == theirs.keys() and all(
                same(item, theirs[key], tolerance=tolerance) for key, item in ours.items()
            )
        if kind in (set, frozenset):
            return {typed_json.encode(item) for item in got} == {typed_json.encode(item) for item in expected}
        return typed_json.encode(got) == typed_json.encode(expected)
    except (TypeError, ValueError):
        return False


def count_right(results: Sequence[CallResult], expected: Sequence[Any], *, tolerance: float | None = None) -> int:
    """How many results equal the expected values. A missing result or an exception is wrong."""
    return sum(
        not result.error and same(result.value, value, tolerance=tolerance)
        for result, value in zip(results, expected, strict=False)
    )
