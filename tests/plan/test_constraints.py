"""Constraints on a layout: kept if they are legal, and named if they are not."""

import re
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.layout import RECOMPUTE, SHARDING
from puna.plan.equations.columns import LayoutColumns
from puna.plan.layouts.constraints import CONSTRAINABLE, choose_constrained, constraint_text
from puna.plan.layouts.convert import to_columns
from puna.plan.layouts.predict import Question, choose

Ask = Callable[..., Question]


def row_of(columns: LayoutColumns, row: int) -> dict[str, int]:
    """One row of a table of layouts as plain numbers."""
    return {field.name: np.asarray(getattr(columns, field.name))[row].item() for field in fields(LayoutColumns)}


def test_without_pins_it_is_the_whole_search(ask: Ask) -> None:
    question = ask("llama3-70b", 64)
    free, whole = choose_constrained(question, {}), choose(question)
    assert free.best == whole.best
    assert len(free.found) == len(whole.found)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_parts_of_any_legal_layout_can_be_pinned(ask: Ask, data: st.DataObject) -> None:
    question = ask("llama3-70b", 64)
    found = choose(question).found
    layout = row_of(found.jobs.layout, data.draw(st.integers(0, len(found) - 1)))
    names = data.draw(st.sets(st.sampled_from(sorted(CONSTRAINABLE)), min_size=1))
    pinned = {name: layout[name] for name in names}
    choice = choose_constrained(question, pinned)
    for one in (choice.best, *choice.runners_up):
        columns = to_columns(one.layout)
        assert {name: getattr(columns, name) for name in names} == pinned
    assert all(np.all(np.asarray(getattr(choice.found.jobs.layout, name)) == value) for name, value in pinned.items())
    fitting = choice.found.step_seconds[choice.found.fits]
    if fitting.size:
        assert choice.best.step_seconds == pytest.approx(fitting.min())


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ({"tp": 3}, "tp 3 does not divide 8 accelerators. Change the layout or the fleet."),
        ({"tp": 2, "pp": 8}, "tp 2 x pp 8 does not divide 8 accelerators. Change the layout or the fleet."),
        (
            {"tp": 1, "cp": 1, "pp": 1, "dp": 8, "micro_batch": 5},
            "A batch of 512 sequences is not divisible by dp 8 x micro-batch 5. Make it 480 or 520, or change the "
            "layout.",
        ),
        (
            {"tp": 8, "ep": 2},
            "No legal layout of stack megatron-core has ep 2 with tp 8. ep could be 1.",
        ),
        (
            {"sharding": SHARDING.index("zero3")},
            "No legal layout of stack megatron-core has sharding zero3. sharding could be zero1.",
        ),
    ],
)
def test_what_stands_in_the_way_is_named(ask: Ask, pinned: dict[str, int], message: str) -> None:
    with pytest.raises(PunaError) as caught:
        choose_constrained(ask(), pinned)
    assert str(caught.value) == message


def test_a_batch_that_no_layout_can_share_comes_with_ones_that_can(ask: Ask) -> None:
    question = ask(batch=513, stack="puna")
    with pytest.raises(PunaError, match=r"share a batch of 513 .* A --batch of 512 or 520 can be shared\.") as caught:
        choose_constrained(question, {})
    assert "8 accelerators on stack puna" in str(caught.value)
    choose_constrained(replace(question, batch=520), {})


def test_too_many_accelerators_for_a_batch(ask: Ask) -> None:
    with pytest.raises(PunaError, match=r"--fleet ([0-9]+)xh100-sxm can; more .* need a larger --batch\.") as caught:
        choose_constrained(ask(count=350_000), {})
    fleet = re.search(r"--fleet ([0-9]+)x", str(caught.value))
    assert fleet is not None
    choose_constrained(ask(count=int(fleet[1])), {})


def test_codes_are_spoken() -> None:
    assert constraint_text("recompute", RECOMPUTE.index("full")) == "recompute full"
    assert constraint_text("micro_batch", 4) == "micro-batch 4"
