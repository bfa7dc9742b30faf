"""Plain data goes through the wall and back unchanged; anything else does not go, and does not come."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.sandbox.child import typed_json
from puna.sandbox.compare import count_right, same
from puna.sandbox.result import CallResult

_keys = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
VALUES = st.recursive(
    _keys,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.sets(_keys)
        | st.frozensets(_keys)
        | st.dictionaries(_keys, inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_round_trip_is_exact(value: object) -> None:
    text = typed_json.encode(value)
    assert text.isascii()
    assert "\n" not in text
    assert same(typed_json.decode(text), value)


@given(st.text() | st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_anything_else_is_refused_with_a_value_error(text: str | bytes) -> None:
    try:
        value = typed_json.decode(text)
    except ValueError:
        return
    assert same(typed_json.decode(typed_json.encode(value)), value)


class Sly(int):
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize("value", [Sly(1), object(), 1j, range(3), [Sly(1)], {"a": Sly(1)}, (lambda: 0), type])
def test_subclasses_and_objects_are_no_plain_data(value: object) -> None:
    with pytest.raises(TypeError, match="not plain data"):
        typed_json.encode(value)
    assert not same(value, 1)
    assert not same(1, value)


def test_cycles_and_depth_end() -> None:
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(ValueError, match="100 deep"):
        typed_json.encode(cycle)
    with pytest.raises(ValueError, match="not plain data"):
        typed_json.decode("[" * 100_000)
    with pytest.raises(ValueError, match="100 deep"):
        typed_json.decode('["l",[' * 150 + "]]" * 150)


def test_a_huge_integer_passes_in_linear_time() -> None:
    value = 7**200_000  # 169,000 decimal digits: str() of it is refused by the interpreter
    assert typed_json.decode(typed_json.encode(value)) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (True, 1),
        (1, 1.0),
        (0, False),
        (None, False),
        ("1", 1),
        (b"a", "a"),
        ((1,), [1]),
        ({1}, frozenset({1})),
        ([True], [1]),
        ({1: "a"}, {True: "a"}),
        ({1}, {1.0}),
        ({"a": 1}, {"a": True}),
        (0.0, -0.0),
        (math.nan, 0.0),
        (math.inf, -math.inf),
        (0.1 + 0.2, 0.3),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ("\u00e9", "e\u0301"),
    ],
)
def test_different_values_are_not_the_same(one: object, other: object) -> None:
    assert not same(one, other)
    assert not same(other, one)


def test_what_is_the_same() -> None:
    assert same(math.nan, math.nan)
    assert same({"a": 1, "b": [1, {2}]}, {"b": [1, {2}], "a": 1})
    assert same({(1, 2.5), None}, {None, (1, 2.5)})


def test_tolerance_is_explicit_and_for_floats_alone() -> None:
    assert same([0.1 + 0.2], [0.3], tolerance=1e-9)
    assert same(0.0, -0.0, tolerance=0.0)
    assert same(math.inf, math.inf, tolerance=1e9)
    assert not same(math.inf, 1.0, tolerance=1e9)
    assert not same(math.nan, 1.0, tolerance=1e9)
    assert not same(1, 1.0, tolerance=1.0)
    assert not same(1, 2, tolerance=5.0)


def test_missing_answers_and_exceptions_are_wrong() -> None:
    assert count_right([CallResult(1), CallResult(error="ValueError"), CallResult(None)], [1, None, None]) == 2
    assert count_right([], [1, 2]) == 0
