"""Formatted figures: readable units, the same for both ends of an interval."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.plan.layouts.predict import Question
from puna.plan.output.format import (
    change,
    count,
    decimal_bytes,
    energy_like,
    figures,
    percent,
    power,
    span,
    span_like,
    usd,
)
from puna.plan.run.estimate import estimate_run
from puna.plan.run.pricing import Prices

Ask = Callable[..., Question]
DAY = 86400.0


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (span(0.0123), "12.3 ms"),
        (span(4.928), "4.93 s"),
        (span(245), "4.08 min"),
        (span(3.1 * 3600), "3.1 h"),
        (span(54 * DAY), "54 days"),
        (span(1.5 * DAY), "36 h"),
        (span(2000 * DAY), "5.48 years"),
        (usd(72.5e6), "$72.5M"),
        (usd(0.5), "$0.50"),
        (percent(0.4123), "41.2 %"),
        (change(-0.01), "-1.0 %"),
        (decimal_bytes(5.68e12), "5.68 TB"),
        (energy_like(26.8e3)(26.8e3), "26.8 GWh"),
        (energy_like(0.0005)(0.0005), "500 Wh"),
        (power(0.0187), "18.7 kW"),
        (power(818.0), "818 MW"),
        (count(0.0934), "0.0934"),
        (count(8204.3), "8,204"),
        (count(22.8e6), "22.8M"),
        (count(math.inf), "inf"),
    ],
)
def test_units_suit_their_figures(said: str, expected: str) -> None:
    assert said == expected


@given(st.floats(1e-4, 1e10), st.floats(1.0, 3.0))
def test_ends_of_an_interval_have_one_unit(seconds: float, factor: float) -> None:
    form = span_like(seconds)
    assert form(seconds / factor).split()[1] == form(seconds * factor).split()[1] == span(seconds).split()[1]


def test_rows_have_intervals_and_name_their_convention(ask: Ask) -> None:
    found = estimate_run(ask("llama3.1-405b", 16384, batch=2048), tokens=15.6e12)
    rows = {row.name: row for row in figures(found)}
    for name in ("MFU", "tokens/s", "time", "interruptions", "effective time", "energy", "rent", "or owning"):
        assert " – " in rows[name].interval, name
    assert "989 TFLOP/s dense bf16" in rows["MFU"].note
    assert "causal" in rows["MFU"].note
    assert rows["time"].interval.endswith("days")
    assert "carbon" not in rows
    told = estimate_run(ask(), tokens=1e12, prices=Prices(carbon_kg_per_kwh=0.4, rent_usd_per_hour=2.0))
    rows = {row.name: row for row in figures(told)}
    assert "of CO2" in rows["carbon"].note
    assert rows["rent"].note.endswith("at $2.00")
