"""Counts, bytes and seconds as people read and write them."""

import contextlib
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.core.units import format_bytes, format_count, format_seconds, parse_count

SIZES = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500", 500),
        ("1_000", 1000),
        ("2.5M", 2_500_000),
        ("15.6T", 15_600_000_000_000),
        (".5k", 500),
        ("1e3", 1000),
        (" 8 b ", 8 * 10**9),
        (7, 7),
        (2.0e6, 2_000_000),
        ("12345678901234567", 12345678901234567),
    ],
)
def test_counts_are_read_exactly(text: str | int | float, value: int) -> None:
    assert parse_count(text) == value


@given(st.integers(0, 10**30))
def test_every_whole_number_is_read_back(value: int) -> None:
    assert parse_count(str(value)) == parse_count(f"{value:_}") == value


@given(st.decimals(0, 10**6, places=6), st.sampled_from(sorted(SIZES)))
def test_a_unit_multiplies_without_rounding_first(value: Decimal, unit: str) -> None:
    assert parse_count(f"{value:f}{unit}") == round(value * SIZES[unit])


@given(st.text(max_size=12))
def test_any_text_is_a_count_or_a_sentence(text: str) -> None:
    with contextlib.suppress(PunaError):
        assert parse_count(text) >= 0


@pytest.mark.parametrize("wrong", ["", "M", "-5", "5x", "1e999", "1e", "1.2.3", float("inf"), float("nan")])
def test_what_is_no_count_is_refused_with_an_example(wrong: str | float) -> None:
    with pytest.raises(PunaError, match="Write it like 500"):
        parse_count(wrong)


@given(st.floats(0, 9e14))
def test_a_formatted_count_is_close_to_its_value_and_has_no_exponent_when_large(value: float) -> None:
    text = format_count(value)
    if value >= 1:
        assert re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,2})?[kMBT]?", text)
        assert parse_count(text) == pytest.approx(value, rel=5.1e-3, abs=0.51)


@given(st.floats(0, 2**60))
def test_formatted_bytes_are_close_to_their_value(value: float) -> None:
    number, unit = format_bytes(value).split(" ")
    size = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}[unit]
    assert "e" not in number
    assert float(number) * size == pytest.approx(value, rel=5.1e-3, abs=0.51)
    assert float(number) < 1024 or unit == "TiB"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1_234_567, "1.23M"), (999_999, "1M"), (999.9, "1k"), (0, "0"), (-2500, "-2.5k"), (8_030_261_248, "8.03B")],
)
def test_counts_as_shown(value: float, text: str) -> None:
    assert format_count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1000, "1000 B"), (1_234_567, "1.18 MiB"), (2**50, "1024 TiB")]
)
def test_bytes_as_shown(value: float, text: str) -> None:
    assert format_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min 0 s"),
        (245, "4 min 5 s"),
        (3599.7, "1 h 0 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_seconds_as_shown(value: float, text: str) -> None:
    assert format_seconds(value) == text


@given(st.floats(0, 1e9))
def test_formatted_seconds_are_close_to_their_value(value: float) -> None:
    sizes = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    parts = format_seconds(value).split(" ")
    shown = sum(float(number) * sizes[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True))
    assert shown == pytest.approx(value, abs=0.51 if value < 3600 else 60.5 if value < 86400 else 3600.5)
    assert all(float(n) < 60 for n, unit in zip(parts[::2], parts[1::2], strict=True) if unit in ("s", "min"))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_unknown_time_left_is_shown_and_does_not_fail(value: float) -> None:
    assert format_seconds(value).endswith(" s")
