"""Plan from a budget and a date: what it rents, how many tokens that trains, what a goal costs.

Three questions share one search. How far: the accelerators that the budget rents for the days, in their best layout,
and the tokens they reach. For which model: the preset for which these tokens are nearest to 20 per parameter
(compute-optimal, Hoffmann 2022, arXiv 2203.15556). What it takes: the smallest fleet that reaches the tokens by the
date, its cost, and the difference to the budget.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from puna.core.errors import PunaError
from puna.plan.equations.hardware import Accelerator
from puna.plan.equations.shape import Shape
from puna.plan.layouts.constraints import choose_constrained
from puna.plan.layouts.defaults import TOKENS_PER_PARAMETER
from puna.plan.layouts.predict import Prediction, Question, predict_step
from puna.plan.layouts.suggestions import fitting
from puna.plan.run.estimate import RunEstimate, estimate_choice
from puna.plan.run.goodput import goodput
from puna.plan.run.pricing import accelerators_for, rent_per_hour
from puna.plan.run.reliability import DAY
from puna.plan.run.terms import Terms

# The largest fleet that is tried, and the number of fleets below a limit that are tried.
_MOST_ACCELERATORS = 2**20
_TRIED = 12
# Fleets between two powers of two that are tried for the smallest one; a search takes about 20 ms.
_SCANNED = 400
# How much less accelerator time a fleet between two powers of two may need than either of them.
_SLACK = 0.03
# A model is limited by its batch where one sequence for each accelerator would reach so many times the tokens.
_LIMITED = 1.25

# The question as a function of the number of accelerators, which the batch may depend on.
Sized = Callable[[int], Question]


@dataclass(frozen=True)
class FleetSize:
    """A fleet for a run of given tokens: its best layout, days and rent (None where unknown)."""

    accelerators: int
    best: Prediction
    days: float
    rent_usd: float | None


@dataclass(frozen=True)
class Reach:
    """Tokens that a model reaches, in total and per parameter, with steps of `tokens_per_step`.

    tokens_with_larger_batch: what it would reach with one sequence for each accelerator in a step, where that is much
    more: its batch is then too small for the fleet, and most accelerators wait. Else None.
    """

    model: str
    parameters: float
    tokens: float
    tokens_per_parameter: float
    tokens_per_step: int
    tokens_with_larger_batch: float | None = None


@dataclass(frozen=True)
class Goal:
    """The smallest fleet that reaches the tokens by the date, or the fastest if none does."""

    tokens: float
    days: float
    in_time: bool
    size: FleetSize
    over_usd: float | None  # rent above the budget, negative below it; None without budget or rent


@dataclass(frozen=True)
class BudgetEstimate:
    """What a budget and a time allow.

    rentable: accelerators that the budget rents for the days. run: on those of them that reach most tokens. presets:
    other models on the same fleet in the same time. optimal: the model nearest to compute-optimal.
    """

    budget_usd: float | None
    days: float
    rent_usd_per_hour: float | None
    rentable: int | None
    run: RunEstimate
    reach: Reach
    presets: tuple[Reach, ...]
    optimal: str
    goal: Goal | None


def plan_budget(
    sized: Sized,
    accelerator: Accelerator,
    *,
    budget_usd: float | None,
    days: float | None,
    accelerators: int | None,
    tokens: float | None,
    presets: Sequence[str],
    preset_question: Callable[[str, int], Question],
    terms: Terms,
    assumptions: tuple[str, ...] = (),
) -> BudgetEstimate:
    """Plan for a budget, a time, or both.

    accelerators: a given fleet, else the budget decides. Without days the fleet runs until the money is spent or the
    `tokens` are reached. Raises PunaError where too little is given, where the money rents nothing, and where the model
    does not fit what it rents.
    """
    rent = rent_per_hour(accelerator, terms.prices)
    hourly = rent.middle if rent else None
    days = _days(budget_usd, days, accelerators, hourly, accelerator)
    rentable, reaching = None, None
    if budget_usd is not None:
        rentable = accelerators_for(budget_usd, days, accelerator, terms.prices)
        if accelerators is None and rentable >= accelerator.node_size:
            rentable -= rentable % accelerator.node_size
    if accelerators is not None:
        counts = [accelerators]
        if rentable is not None and rentable < accelerators:  # the money ends before the time does
            days *= rentable / accelerators
    elif rentable is not None:
        counts = fleets_below(rentable, accelerator.node_size)
    else:
        if tokens is None:
            raise PunaError(
                "Days alone do not say how many accelerators there are.", "Give --fleet, --budget-usd or --tokens."
            )
        reaching = smallest(sized, tokens, days, terms)
        counts = [reaching[0].accelerators]
    best = _furthest(sized, counts, terms, fewer=accelerators is None)
    if best is None:
        raise _does_not_fit(sized(max(counts)))
    reached = _reached(best, days, terms)
    choice = choose_constrained(best.question, {})
    run = estimate_choice(
        choice, tokens=reached, prices=terms.prices, reliability=terms.reliability, assumptions=assumptions
    )
    own = _reach(best, days, terms)
    others = tuple(_presets(presets, preset_question, best.question.accelerators, days, terms))
    optimal = min((own, *others), key=lambda one: abs(math.log(one.tokens_per_parameter / TOKENS_PER_PARAMETER)))
    goal = None
    if tokens is not None:
        size, in_time = reaching or smallest(sized, tokens, days, terms)
        over = None if budget_usd is None or size.rent_usd is None else size.rent_usd - budget_usd
        goal = Goal(tokens, days, in_time, size, over)
    return BudgetEstimate(budget_usd, days, hourly, rentable, run, own, others, optimal.model, goal)


def sizes(sized: Sized, counts: Iterable[int], tokens: float, terms: Terms) -> list[FleetSize]:
    """The same run on fleets of several sizes, each with its own best layout, where it fits."""
    found = []
    for count in counts:
        best = fitting(sized(count), {})
        if best is not None:
            found.append(_size(best, tokens, terms))
    return found


def smallest(sized: Sized, tokens: float, days: float, terms: Terms) -> tuple[FleetSize, bool]:
    """(the smallest fleet that reaches the tokens in time, True), else (the fastest, False).

    Fleets double until one is fast enough; then every number of nodes that could be is tried, from below, because a few
    nodes more or less decide which layouts divide the fleet. Raises PunaError where the model fits no fleet.
    """
    node = sized(1).accelerator.node_size
    slower, fastest = None, None
    count = node
    while count <= _MOST_ACCELERATORS:
        best = fitting(sized(count), {})
        if best is not None:
            size = _size(best, tokens, terms)
            if size.days <= days:
                return _between(sized, tokens, days, slower, size, terms), True
            if fastest is None or size.days < fastest.days:
                fastest = size
            elif size.days > 2 * fastest.days:  # failures outweigh further accelerators
                break
            slower = size
        count *= 2
    if fastest is None:
        raise PunaError(
            f"{sized(node).model} fits no fleet of {sized(node).accelerator.name} on stack {sized(node).stack}.",
            "Try another --stack or accelerator.",
        )
    return fastest, False


def fleets_below(limit: int, node_size: int) -> list[int]:
    """Fleets of at most `limit` to try: whole nodes within a tenth of it, with many divisors first."""
    limit = min(limit, _MOST_ACCELERATORS)
    if limit <= node_size:
        return list(range(limit, 0, -1))
    nodes = limit // node_size
    near = range(max(1, math.ceil(0.9 * nodes)), nodes + 1)
    if len(near) > 50 * _TRIED:  # of very many only multiples of a large power of two
        step = 2 ** int(math.log2(len(near) / _TRIED))
        near = range(-(-near.start // step) * step, nodes + 1, step)
    ranked = sorted(near, key=lambda count: (-_divisors(count), -count))
    return [count * node_size for count in dict.fromkeys([*ranked[:_TRIED], nodes])]


# -- pieces ----------------------------------------------------------------------------------------------------------


def _days(
    budget_usd: float | None, days: float | None, accelerators: int | None, hourly: float | None, kind: Accelerator
) -> float:
    for name, value in (("--days", days), ("--budget-usd", budget_usd)):
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise PunaError(f"{name} {value:g} buys nothing.", "Give more than 0.")
    if days is not None:
        return days
    if budget_usd is None or accelerators is None:
        raise PunaError("A budget alone does not say how many accelerators there are.", "Add --days or --fleet.")
    if hourly is None:
        raise PunaError(f"No rent is known for {kind.name}.", "Give one with --price, USD per accelerator and hour.")
    return budget_usd / (accelerators * hourly * 24)


def _furthest(sized: Sized, counts: Sequence[int], terms: Terms, *, fewer: bool) -> Prediction | None:
    """The fleet among `counts` that makes most progress; fewer: or a smaller power of two that makes more.

    None where the model fits none.
    """

    def progress(best: Prediction | None) -> float:
        return best.tokens_per_second * _effective(best, terms) if best else 0.0

    def tried(count: int) -> Prediction | None:
        return fitting(sized(count), {}, predicted=predict_step)

    found = max((tried(count) for count in counts), key=progress)
    less = 2 ** int(math.log2(max(counts))) if fewer else 0
    while less >= 1:
        other = tried(less)
        if found is not None and progress(other) <= progress(found):
            break
        found, less = other, less // 2
    return found


def _does_not_fit(largest: Question) -> PunaError:
    return PunaError(
        f"{largest.model} does not fit {largest.accelerators:,} x {largest.accelerator.name} on stack {largest.stack}.",
        f"`puna plan {largest.model} --fleet {largest.accelerators}x{largest.accelerator.name}` shows what would fit; "
        "or raise the budget, or take fewer days.",
    )


def _effective(best: Prediction, terms: Terms) -> float:
    question = best.question
    return goodput(
        question.accelerators,
        1.0,
        parameters=float(question.shape.num_parameters()),
        node_size=question.accelerator.node_size,
        reliability=terms.reliability,
    ).effective_time


def _reached(best: Prediction, days: float, terms: Terms) -> float:
    return best.tokens_per_second * _effective(best, terms) * days * DAY


def _size(best: Prediction, tokens: float, terms: Terms) -> FleetSize:
    question = best.question
    days = tokens / (best.tokens_per_second * _effective(best, terms) * DAY)
    rent = rent_per_hour(question.accelerator, terms.prices)
    cost = rent.middle * question.accelerators * days * 24 if rent else None
    return FleetSize(question.accelerators, best, days, cost)


def _between(
    sized: Sized, tokens: float, days: float, slower: FleetSize | None, size: FleetSize, terms: Terms
) -> FleetSize:
    """The smallest fleet that is fast enough, `size` at most. slower: the fleet half as large, where the model fits."""
    node = size.best.question.accelerator.node_size
    least = min(one.accelerators * one.days for one in (slower, size) if one)  # accelerator-days

    def enough(nodes: int) -> bool:
        best = fitting(sized(nodes * node), {}, predicted=predict_step)
        return best is not None and _size(best, tokens, terms).days <= days

    first = max(1, math.ceil((1 - _SLACK) * least / days / node))
    low, high = first, size.accelerators // node
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    step = max(1, -(-(high - first) // _SCANNED))
    found = next((nodes for nodes in range(first, high, step) if enough(nodes)), high)
    if step > 1:  # and those that the steps left out
        found = next((nodes for nodes in range(max(first, found - step + 1), found) if enough(nodes)), found)
    best = fitting(sized(found * node), {})
    return _size(best, tokens, terms) if best is not None else size


def _reach(best: Prediction, days: float, terms: Terms) -> Reach:
    """What the model of a prediction reaches, and whether its batch holds it back."""
    question = best.question
    tokens, parameters = _reached(best, days, terms), float(question.shape.num_parameters())
    larger = None
    if question.batch < question.accelerators:
        wide = fitting(replace(question, batch=question.accelerators), {}, predicted=predict_step)
        more = _reached(wide, days, terms) if wide else 0.0
        larger = more if more > _LIMITED * tokens else None
    return Reach(question.model, parameters, tokens, tokens / parameters, best.tokens_per_step, larger)


def _presets(
    presets: Sequence[str], question: Callable[[str, int], Question], count: int, days: float, terms: Terms
) -> Iterable[Reach]:
    """Presets that fit the fleet, or nearly all of it, one of each shape, by size."""
    asked = sorted((question(name, count) for name in presets), key=lambda one: float(one.shape.num_parameters()))
    seen: list[Shape] = []
    for one in asked:
        if one.shape not in seen:
            seen.append(one.shape)
            fits = fitting(one, {}, predicted=predict_step) is not None
            counts = [count] if fits else fleets_below(count, one.accelerator.node_size)
            best = _furthest(partial(question, one.model), counts, terms, fewer=False)
            if best is not None:
                yield _reach(best, days, terms)


def _divisors(count: int) -> int:
    return sum(1 for size in range(1, math.isqrt(count) + 1) if count % size == 0)
