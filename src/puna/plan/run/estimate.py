"""Estimate one training run: fit, speed, days, failures, energy and money, each with an interval.

`predict` gives the time of a step; this adds the number of steps, failures (`goodput`) and costs (`pricing`).
Independent uncertainties (of the step, the failure rate, the power, the price) are combined as log-normal ones:
relative half-widths add in quadrature. The terminal, the HTML page and `--json` show a `RunEstimate` and compute
nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from puna.core.errors import PunaError
from puna.model.layout import Layout
from puna.plan.equations.hardware import AcceleratorGroup, Fleet
from puna.plan.layouts.constraints import choose_constrained
from puna.plan.layouts.predict import Choice, Prediction, Question, predict
from puna.plan.layouts.suggestions import Suggestion, suggest
from puna.plan.run.goodput import Goodput, goodput
from puna.plan.run.pricing import Bill, Prices, Range, bill, rent_per_hour
from puna.plan.run.reliability import DAY, Reliability

# Power of a host in training relative to what `pricing` expects: 6.5 to 8.5 kW are called typical of a DGX H100, for
# which it expects 7.8 (supercluster.blog, read 2026-11).
POWER_LOW, POWER_HIGH = 6.5 / 7.8, 8.5 / 7.8


@dataclass(frozen=True)
class Estimate:
    """A figure and the ends of its 80 % interval."""

    low: float
    value: float
    high: float

    def times(self, factor: float) -> "Estimate":
        """The estimate in another unit."""
        return Estimate(self.low * factor, self.value * factor, self.high * factor)

    def inverse(self) -> "Estimate":
        """The reciprocal: a rate for a time."""
        return Estimate(1 / self.high, 1 / self.value, 1 / self.low)


def product(*factors: Estimate) -> Estimate:
    """The product of figures whose errors are independent and log-normal."""
    value = math.prod(factor.value for factor in factors)
    down = math.hypot(*(math.log(factor.value / factor.low) for factor in factors))
    up = math.hypot(*(math.log(factor.high / factor.value) for factor in factors))
    return Estimate(value * math.exp(-down), value, value * math.exp(up))


@dataclass(frozen=True)
class WhatIf:
    """The relative change of a figure with one assumption changed: +0.05 is five percent more."""

    assumption: str
    change: str
    figure: str
    by: float


@dataclass(frozen=True)
class RunEstimate:
    """What a run takes. bill is for `days.value`.

    given: the prediction for the recipe's own layout, where it differs from the best. suggestions: changes that make it
    fit, empty when it fits. mfu_causal counts half of attention's square, mfu_full all of it, against `peak_tflops`.
    """

    choice: Choice
    given: Prediction | None
    tokens: float
    steps: int
    step_seconds: Estimate
    tokens_per_second: Estimate
    mfu_causal: Estimate
    mfu_full: Estimate
    peak_tflops: float
    training_days: Estimate
    days: Estimate
    accelerator_hours: Estimate
    goodput: Goodput
    interruptions: Estimate
    effective_time: Estimate
    energy_mwh: Estimate
    rent_usd: Estimate | None
    own_usd: Estimate | None
    rent_usd_per_hour: Range | None
    bill: Bill
    what_ifs: tuple[WhatIf, ...]
    suggestions: tuple[Suggestion, ...]
    assumptions: tuple[str, ...]

    @property
    def best(self) -> Prediction:
        """The prediction for the best layout."""
        return self.choice.best

    @property
    def question(self) -> Question:
        """The question."""
        return self.best.question


def estimate_run(
    question: Question,
    *,
    tokens: float,
    constraints: Mapping[str, int] | None = None,
    recipe_layout: Layout | None = None,
    prices: Prices | None = None,
    reliability: Reliability | None = None,
    assumptions: tuple[str, ...] = (),
) -> RunEstimate:
    """Search the layouts of `question` within the `constraints` and estimate the whole run.

    recipe_layout: a layout to predict next to the best one. Raises PunaError where no layout is legal, naming the
    conflicting part and its legal values.
    """
    choice = choose_constrained(question, constraints or {})
    estimate = estimate_choice(choice, tokens=tokens, prices=prices, reliability=reliability, assumptions=assumptions)
    if recipe_layout and not _same(recipe_layout, choice.best.layout):
        estimate = replace(estimate, given=predict(question, recipe_layout))
    if choice.best.fits:
        return estimate
    plain = replace(question, costs=question.costs.uncorrected())
    return replace(estimate, suggestions=suggest(plain, constraints or {}))


def _same(one: Layout, other: Layout) -> bool:
    """Whether two layouts are equal; with one data-parallel rank the sharding does not matter."""
    if one.data_parallel == other.data_parallel == 1:
        one = one.model_copy(update={"sharding": other.sharding})
    return one == other


def estimate_choice(
    choice: Choice,
    *,
    tokens: float,
    prices: Prices | None = None,
    reliability: Reliability | None = None,
    assumptions: tuple[str, ...] = (),
) -> RunEstimate:
    """Estimate the run of a chosen layout. Raises PunaError for a run without tokens."""
    best, question = choice.best, choice.best.question
    if not (tokens > 0 and math.isfinite(tokens)):
        raise PunaError(f"A run of {tokens:g} tokens trains nothing.", "Give more than 0, such as --tokens 15.6T.")
    money, rules = prices or Prices(), reliability or Reliability()
    step = Estimate(best.low, best.step_seconds, best.high)
    speed = step.inverse().times(best.tokens_per_step)
    training = speed.inverse().times(tokens / DAY)
    parameters = float(question.shape.num_parameters())

    def failing(days: float, rules: Reliability) -> Goodput:
        return goodput(
            question.accelerators,
            days,
            parameters=parameters,
            node_size=question.accelerator.node_size,
            reliability=rules,
        )

    # The share of time that is lost does not depend on the run's length, so one call gives it.
    first = failing(training.value, rules)
    effective = Estimate(first.effective_low, first.effective_time, first.effective_high)
    days = product(training, effective.inverse())
    failures = failing(days.value, rules)
    cost = bill(
        Fleet(groups=(AcceleratorGroup(count=question.accelerators, accelerator=question.accelerator),)),
        days.value,
        money,
    )
    spread = days.times(1 / days.value)
    peak = question.accelerator.peak_tflops(question.precision)
    return RunEstimate(
        choice=choice,
        given=None,
        tokens=tokens,
        steps=math.ceil(tokens / best.tokens_per_step),
        step_seconds=step,
        tokens_per_second=speed,
        mfu_causal=speed.times(best.mfu(causal=True) / speed.value),
        mfu_full=speed.times(best.mfu(causal=False) / speed.value),
        peak_tflops=peak,
        training_days=training,
        days=days,
        accelerator_hours=days.times(24 * question.accelerators),
        goodput=failures,
        interruptions=product(
            spread, Estimate(failures.interruptions_low, failures.interruptions, failures.interruptions_high)
        ),
        effective_time=effective,
        energy_mwh=product(spread, Estimate(POWER_LOW, 1.0, POWER_HIGH)).times(cost.energy_mwh),
        rent_usd=_cost(spread, cost.rent),
        own_usd=_cost(spread, cost.own_all_in),
        rent_usd_per_hour=rent_per_hour(question.accelerator, money),
        bill=cost,
        what_ifs=_what_ifs(best, first, rules),
        suggestions=(),
        assumptions=assumptions,
    )


# -- money and what if -----------------------------------------------------------------------------------------------


def _cost(spread: Estimate, amount: Range | None) -> Estimate | None:
    """Cost with the spread of the time (around 1) and the range of the price combined."""
    if amount is None or amount.low <= 0:
        return None
    return product(spread, Estimate(amount.low, amount.middle, amount.high))


def _what_ifs(best: Prediction, failures: Goodput, rules: Reliability) -> tuple[WhatIf, ...]:
    """Assumptions that change the step or the days by at least 0.5 %; largest effect first."""
    base = best.step_seconds
    lines = [WhatIf(one.assumption, one.change, "step", one.step_seconds / base - 1) for one in best.sensitivities]
    often = failures.effective_time / failures.effective_low - 1
    lines.append(WhatIf("failure rate", f"{rules.rate_factor:g} times as high", "days", often))
    return tuple(sorted((line for line in lines if abs(line.by) >= 0.005), key=lambda line: -abs(line.by)))
