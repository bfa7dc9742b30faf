"""The complete answer: intervals by closed form, consistent figures, a recipe's layout compared with the best."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.model.layout import Layout
from puna.plan.equations.hardware import find_accelerator
from puna.plan.layouts.predict import Question
from puna.plan.run.estimate import Estimate, RunEstimate, estimate_run, product
from puna.plan.run.pricing import Prices
from puna.plan.run.reliability import DAY, Reliability

Ask = Callable[..., Question]
positive = st.floats(1e-6, 1e6)


def solve(question: Question, **more: Any) -> RunEstimate:
    return estimate_run(question, **{"tokens": 1e12, **more})


def estimates(found: RunEstimate) -> dict[str, Estimate]:
    named = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value for name, value in named.items() if isinstance(value, Estimate)}


@given(positive, positive, st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_independent_errors_add_in_quadrature(a: float, b: float, wide: float, wider: float) -> None:
    both = product(Estimate(a / wide, a, a * wide), Estimate(b / wider, b, b * wider))
    assert both.value == pytest.approx(a * b)
    width = math.hypot(math.log(wide), math.log(wider))
    assert math.log(both.high / both.value) == pytest.approx(width, abs=1e-9)
    assert math.log(both.value / both.low) == pytest.approx(width, abs=1e-9)


@given(positive, st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_one_over_one_over_a_figure_is_the_figure(value: float, down: float, up: float) -> None:
    figure = Estimate(value / down, value, value * up)
    again = figure.inverse().inverse()
    assert (again.low, again.value, again.high) == pytest.approx((figure.low, figure.value, figure.high))
    assert figure.inverse().low <= figure.inverse().value <= figure.inverse().high


def test_figures_of_a_run_hang_together(ask: Ask) -> None:
    found = solve(ask("llama3-70b", 512))
    question, best = found.question, found.best
    assert found.step_seconds.value == pytest.approx(sum(best.seconds.values()))
    assert found.tokens_per_second.value == pytest.approx(question.batch * question.seq_len / best.step_seconds)
    assert found.days.value * found.effective_time.value == pytest.approx(found.training_days.value)
    assert found.training_days.value * DAY * found.tokens_per_second.value == pytest.approx(found.tokens)
    assert found.accelerator_hours.value == pytest.approx(found.days.value * 24 * 512)
    assert found.steps == math.ceil(1e12 / (512 * 8192))
    assert found.rent_usd is not None
    assert found.rent_usd.value == pytest.approx(found.accelerator_hours.value * 2.95)
    assert found.interruptions.value == pytest.approx(found.days.value * DAY / found.goodput.mtti_all_seconds)
    # 6 FLOPs a parameter and half of attention's square, over the peak of 512 x 989 TFLOP/s.
    flops = float(question.shape.flops_per_token(8192, causal=True)) * found.tokens_per_second.value
    assert found.mfu_causal.value == pytest.approx(flops / (512 * 989e12))
    assert found.mfu_full.value > found.mfu_causal.value
    assert found.suggestions == ()


@pytest.mark.parametrize(
    ("model", "count", "stack"),
    [("llama3-8b", 8, "megatron-core"), ("llama3.1-405b", 16384, "megatron-core"), ("llama3-8b", 8, "puna")],
)
def test_every_interval_holds_its_figure(ask: Ask, model: str, count: int, stack: str) -> None:
    for name, figure in estimates(solve(ask(model, count, batch=2048, stack=stack))).items():
        assert 0 < figure.low <= figure.value <= figure.high < math.inf, name


def test_a_wider_price_and_a_worse_rate_are_told(ask: Ask) -> None:
    usual = solve(ask("llama3.1-405b", 16384, batch=2048))
    dear = solve(ask("llama3.1-405b", 16384, batch=2048), prices=Prices(rent_usd_per_hour=5.0))
    frail = solve(ask("llama3.1-405b", 16384, batch=2048), reliability=Reliability(failures_per_node_day=6.5e-3))
    assert usual.rent_usd is not None
    assert dear.rent_usd is not None
    assert dear.rent_usd.value == pytest.approx(usual.rent_usd.value * 5.0 / 2.95)
    assert dear.rent_usd.high / dear.rent_usd.low < usual.rent_usd.high / usual.rent_usd.low
    assert frail.days.value > usual.days.value
    assert frail.interruptions.value > 1.5 * usual.interruptions.value
    assert any(one.figure == "days" and one.by > 0 for one in usual.what_ifs)


def test_assumptions_come_by_their_effect(ask: Ask) -> None:
    effects = [abs(one.by) for one in solve(ask()).what_ifs]
    assert effects == sorted(effects, reverse=True)
    assert min(effects) >= 0.005


def test_the_layout_of_a_recipe_stands_beside_the_best_where_it_differs(ask: Ask) -> None:
    question = ask(stack="puna")
    found = solve(question)
    other = found.best.layout.model_copy(update={"recompute": "full"})
    beside = solve(question, recipe_layout=other).given
    assert beside is not None
    assert beside.step_seconds > found.best.step_seconds
    assert solve(question, recipe_layout=found.best.layout).given is None


def test_a_corrected_cost_model_predicts_what_the_search_found(ask: Ask) -> None:
    def twice(_layout: Layout, seconds: Mapping[str, float]) -> dict[str, float]:
        return {name: 2 * part for name, part in seconds.items()}

    question = ask()
    usual, slower = solve(question), solve(replace(question, costs=replace(question.costs, correct=twice)))
    assert slower.best.layout == usual.best.layout
    assert slower.best.step_seconds == pytest.approx(2 * usual.best.step_seconds)
    assert slower.choice.runners_up[0].step_seconds == pytest.approx(2 * usual.choice.runners_up[0].step_seconds)


def test_one_rank_shards_nothing(ask: Ask) -> None:
    question = ask("nano", 1, batch=64, seq_len=256, stack="puna")
    found = solve(question)
    other = next(name for name in ("zero2", "zero3") if name != found.best.layout.sharding)
    layout = found.best.layout.model_copy(update={"sharding": other})
    assert solve(question, recipe_layout=layout).given is None


def test_what_does_not_fit_comes_with_suggest(ask: Ask) -> None:
    found = solve(ask("llama3-70b", 8, stack="puna"))
    assert not found.best.fits
    assert found.suggestions
    assert all(one.prediction.fits for one in found.suggestions)


@pytest.mark.parametrize("tokens", [0.0, -1.0, math.inf, math.nan])
def test_a_run_of_no_tokens_is_refused(ask: Ask, tokens: float) -> None:
    with pytest.raises(PunaError, match="trains nothing"):
        solve(ask(), tokens=tokens)


def test_unknown_rent_is_none(ask: Ask) -> None:
    kind = find_accelerator("h100").model_copy(
        update={"rent_usd_per_hour": None, "price_usd": None, "all_in_usd": None}
    )
    found = solve(replace(ask(), accelerator=kind))
    assert (found.rent_usd, found.own_usd, found.rent_usd_per_hour) == (None, None, None)
    assert any("no rent is known" in note for note in found.bill.notes)
