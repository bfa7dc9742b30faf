"""Drawings stay within their frame for any numbers."""

import re

from hypothesis import given
from hypothesis import strategies as st

from puna.plan.output.charts import Axis, Spot, chart, parts_bar

amount = st.floats(1e-6, 1e12, allow_nan=False)
points = st.lists(st.tuples(amount, amount), min_size=1, max_size=30)


@given(points, st.booleans(), st.booleans())
def test_dots_and_lines_lie_within_the_frame(where: list[tuple[float, float]], x_log: bool, y_log: bool) -> None:
    drawn = chart(
        "a <title>",
        "told",
        Axis("x", str, log=x_log),
        Axis("y", str, log=y_log),
        spots=[Spot(point, "tip", label="label") for point in where],
        cloud=where,
        front=sorted(where),
        ideal=where,
        joined=True,
        width=400,
        height=300,
    )
    assert "a &lt;title&gt;" in drawn
    assert not re.search(r"nan|inf", drawn)
    for x, y in re.findall(r'<circle [^>]*cx="([-\d.]+)" cy="([-\d.]+)"', drawn):
        assert 0 <= float(x) <= 400
        assert 0 <= float(y) <= 300
    for x, y in re.findall(r"M(-?\d+) (-?\d+)h", drawn):
        assert 0 <= int(x) <= 400
        assert 0 <= int(y) <= 300


@given(st.lists(amount, min_size=1, max_size=9), st.floats(1, 4))
def test_parts_are_as_wide_as_their_share(amounts: list[float], room: float) -> None:
    scale = sum(amounts) * room
    drawn = parts_bar(
        [(f"p{at}", value, "words") for at, value in enumerate(amounts)], scale=scale, mark=(scale, "all")
    )
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", drawn)]
    assert len(widths) == len(amounts)
    assert abs(sum(widths) - 100 / room) < 0.01 * len(widths)
    assert "left:100.000%" in drawn
    assert drawn.count("<li>") == len(amounts)
