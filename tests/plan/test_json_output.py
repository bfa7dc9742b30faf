"""Answers as plain values that JSON can represent."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.plan.equations.hardware import find_accelerator, parse_fleet
from puna.plan.output.json_output import plain
from puna.plan.run.estimate import Estimate
from puna.plan.run.fleet import fleet_brief
from puna.plan.run.goodput import goodput
from puna.plan.run.pricing import Range


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Estimate(1.0, 2.0, 3.0), {"low": 1.0, "value": 2.0, "high": 3.0}),
        (Range(1.0, 2.0, 3.0), {"low": 1.0, "value": 2.0, "high": 3.0}),
        (np.float64(2.5), 2.5),
        (np.int64(7), 7),
        (math.inf, None),
        (math.nan, None),
        (find_accelerator("h100"), "h100-sxm"),
        ((1, None, True), [1, None, True]),
    ],
)
def test_values_become_plain(value: Any, expected: Any) -> None:
    assert plain(value) == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_can_be_written(value: Any) -> None:
    json.dumps(plain(value), allow_nan=False)


def test_a_fleet_and_a_job_keep_their_units() -> None:
    fleet = json.loads(json.dumps(plain(fleet_brief(parse_fleet("8xh100"))), allow_nan=False))
    assert fleet["groups"][0]["accelerator"] == "h100-sxm"
    assert fleet["year"]["rent"]["low"] > 0
    job = plain(goodput(350_000, 365))
    assert job["mtti_seconds"] == pytest.approx(520, rel=0.01)
    assert job["checkpoint"]["bytes"] > 0
