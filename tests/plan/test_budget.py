"""Budgets and dates: the rent stays within the budget, results follow from it, and goals have their cost."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.plan.equations.hardware import find_accelerator
from puna.plan.layouts.defaults import divisible_batch
from puna.plan.layouts.predict import Question
from puna.plan.output.terminal import budget_text
from puna.plan.run.budget import BudgetEstimate, fleets_below, plan_budget, sizes, smallest
from puna.plan.run.pricing import Prices
from puna.plan.run.reliability import DAY
from puna.plan.run.terms import Terms

Ask = Callable[..., Question]
TERMS = Terms(prices=Prices(rent_usd_per_hour=2.95))
PRESETS = ("llama3.2-1b", "llama3-8b", "llama3.1-8b", "llama3-70b")


def spend(
    ask: Ask,
    *,
    budget: float | None = 2e6,
    days: float | None = 30.0,
    count: int | None = None,
    tokens: float | None = None,
    model: str = "llama3-70b",
    presets: Sequence[str] = PRESETS,
) -> BudgetEstimate:
    def asked(name: str, count: int) -> Question:
        return ask(name, count, batch=divisible_batch(512, count, "megatron-core"))

    return plan_budget(
        lambda count: asked(model, count),
        find_accelerator("h100"),
        budget_usd=budget,
        days=days,
        accelerators=count,
        tokens=tokens,
        presets=presets,
        preset_question=asked,
        terms=TERMS,
    )


def test_two_million_for_thirty_days(ask: Ask) -> None:
    """2e6 / (2.95 · 720) = 941.6 accelerators; 936 in whole nodes of 8."""
    found = spend(ask)
    assert found.rentable == 936
    assert 0.9 * 936 <= found.run.question.accelerators <= 936
    assert found.run.days.value == pytest.approx(30)
    assert found.run.rent_usd is not None
    assert found.run.rent_usd.value <= 2e6
    speed, effective = found.run.tokens_per_second.value, found.run.effective_time.value
    assert found.reach.tokens == pytest.approx(speed * effective * 30 * DAY)
    assert found.reach.tokens_per_parameter == pytest.approx(found.reach.tokens / 70.55e9, rel=1e-3)
    assert found.goal is None


def test_the_preset_nearest_to_twenty_tokens_a_parameter_is_named(ask: Ask) -> None:
    assert spend(ask).optimal == "llama3-70b"
    small = spend(ask, budget=2e4, model="llama3-8b")
    assert small.optimal == "llama3-8b"
    assert [one.model for one in small.presets][:2] == ["llama3.2-1b", "llama3-8b"], "one per shape, by size"


def test_more_money_goes_further(ask: Ask) -> None:
    reached = [spend(ask, budget=budget).reach.tokens for budget in (1e6, 2e6, 4e6)]
    assert reached == sorted(reached)


def test_a_goal_within_the_budget_and_one_beyond_it(ask: Ask) -> None:
    within = spend(ask, tokens=1e12).goal
    beyond = spend(ask, tokens=15e12).goal
    assert within is not None
    assert beyond is not None
    assert within.in_time
    assert within.over_usd is not None
    assert within.over_usd < 0
    assert beyond.in_time
    assert beyond.over_usd is not None
    assert beyond.over_usd == pytest.approx((beyond.size.rent_usd or 0) - 2e6)
    assert beyond.over_usd > 0
    assert beyond.size.days <= 30
    assert beyond.size.rent_usd == pytest.approx(beyond.size.accelerators * beyond.size.days * 24 * 2.95)


def test_a_goal_out_of_reach_names_the_fastest_fleet(ask: Ask) -> None:
    goal = spend(ask, tokens=1e18, days=1.0, budget=1e9, presets=()).goal
    assert goal is not None
    assert not goal.in_time
    assert goal.size.days > 1


def test_a_date_and_tokens_alone_say_how_many(ask: Ask) -> None:
    found = spend(ask, budget=None, tokens=1e12)
    assert found.rentable is None
    assert found.reach.tokens >= 1e12 * 0.999
    assert found.goal is not None
    assert found.goal.over_usd is None


def test_a_fleet_and_a_budget_say_how_long(ask: Ask) -> None:
    found = spend(ask, count=256, days=None)
    assert found.days == pytest.approx(2e6 / (256 * 2.95 * 24))
    assert found.run.question.accelerators == 256
    short = spend(ask, count=2048, days=30.0)
    assert short.run.rent_usd is not None
    assert short.run.rent_usd.value == pytest.approx(2e6, rel=2e-3), "the money runs out before the month"
    assert short.days < 30


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"days": None}, "A budget alone does not say how many"),
        ({"budget": None}, "Days alone do not say how many"),
        ({"days": 0.0}, "--days 0 buys nothing"),
        ({"budget": -5.0}, "--budget-usd -5 buys nothing"),
        ({"budget": 10.0}, "rent no h100-sxm"),
        ({"budget": 2e4}, "llama3-70b does not fit"),
    ],
)
def test_too_little_is_said_in_a_sentence(ask: Ask, asked: dict[str, float | None], message: str) -> None:
    with pytest.raises(PunaError, match=message):
        spend(ask, **asked)  # type: ignore[arg-type]


def test_sizes_leave_out_what_does_not_fit(ask: Ask) -> None:
    found = sizes(lambda count: ask("llama3-70b", count), [1, 8, 64, 512], 1e12, TERMS)
    assert [one.accelerators for one in found][-2:] == [64, 512]
    assert 1 not in [one.accelerators for one in found]
    assert [one.days for one in found] == sorted((one.days for one in found), reverse=True)


def test_half_of_the_smallest_fleet_is_too_slow(ask: Ask) -> None:
    def sized(count: int) -> Question:
        return ask("llama3-8b", count, batch=divisible_batch(512, count, "megatron-core"))

    size, in_time = smallest(sized, 1e12, 10.0, TERMS)
    assert in_time
    assert size.days <= 10
    half = sizes(sized, [size.accelerators // 2 // 8 * 8], 1e12, TERMS)
    assert half[0].days > 10


@pytest.mark.parametrize(("model", "tokens", "days"), [("llama3-8b", 2e12, 5.0), ("llama3-70b", 1e12, 20.0)])
def test_the_smallest_fleet_is_so_to_a_node(ask: Ask, model: str, tokens: float, days: float) -> None:
    def sized(count: int) -> Question:
        return ask(model, count, batch=divisible_batch(512, count, "megatron-core"))

    size, in_time = smallest(sized, tokens, days, TERMS)
    assert in_time
    assert size.days <= days
    # A fleet can be fast enough only where accelerators times days are near the least there is.
    smaller = sizes(sized, range(size.accelerators * 9 // 10 // 8 * 8, size.accelerators, 8), tokens, TERMS)
    assert smaller
    assert all(one.days > days for one in smaller)


def test_a_model_that_its_batch_holds_back_says_so(ask: Ask) -> None:
    def asked(name: str, count: int) -> Question:
        return ask(name, count, batch=divisible_batch(128, count, "megatron-core"))

    found = plan_budget(
        lambda count: asked("llama3-8b", count),
        find_accelerator("h100"),
        budget_usd=None,
        days=10.0,
        accelerators=4096,
        tokens=None,
        presets=PRESETS,
        preset_question=asked,
        terms=TERMS,
    )
    assert found.reach.tokens_per_step == 128 * 8192
    assert found.reach.tokens_with_larger_batch is not None
    assert found.reach.tokens_with_larger_batch > 1.25 * found.reach.tokens
    limited = {one.model: one.tokens_with_larger_batch for one in found.presets}
    assert limited["llama3.2-1b"]
    shown = budget_text(found)
    assert "limited by its batch of 1.05M" in shown
    # With a sequence for each accelerator nothing is limited.
    wide = spend(ask, count=512, budget=None, model="llama3-8b", presets=("llama3-8b",))
    assert wide.reach.tokens_with_larger_batch is None
    assert "limited" not in budget_text(wide)


@given(st.integers(1, 2**20), st.sampled_from([4, 8]))
def test_fleets_below_a_limit_are_whole_nodes_below_it(limit: int, node: int) -> None:
    fleets = fleets_below(limit, node)
    assert fleets
    assert len(fleets) == len(set(fleets)) <= 20
    assert all(0 < count <= limit for count in fleets)
    if limit > node:
        assert all(count % node == 0 for count in fleets)
        assert max(fleets) == limit // node * node
