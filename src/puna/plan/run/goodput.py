"""Goodput of one job: interruptions, best checkpoint interval, effective time, spares, and advice.

Combines the closed forms of `reliability`. One synchronous job stops when any of its nodes fails, so the time between
interruptions shrinks with its size while a restart does not; past some size several jobs achieve more than one, and
`advice` says so.
"""

import math
from dataclasses import dataclass

from puna.core.errors import PunaError
from puna.core.units import format_count
from puna.plan.run.reliability import (
    DAY,
    PARAMETERS_PER_ACCELERATOR,
    Checkpoint,
    Reliability,
    TimeShares,
    best_interval,
    checkpoint_cost,
    daly_interval,
    exact_interval,
    failures_per_day,
    load_seconds,
    mean_time_to_interruption,
    meta_effective_time,
    planned_per_day,
    spares_needed,
    young_interval,
)

# With less time between interruptions one synchronous job is the wrong plan: a restart takes about as long.
_TOO_OFTEN_SECONDS = 1800.0
# A job has a good size while it keeps this share of its time; Llama 3 and MegaScale both report more than 0.90.
_GOOD_SHARE = 0.90
# Spares that already run the job's processes, and checkpoints in the memory of other hosts: restarts of a minute or
# two, a snapshot every few steps (Gemini, SOSP 2023; ByteRobust's warm standbys, arXiv 2509.16293), sent at 20 GB/s a
# host, less than half of what its network cards do.
_HOT = {"restart_seconds": 90.0, "stall_seconds": 0.5, "storage_gb_per_s_per_node": 20.0, "storage_gb_per_s": None}


@dataclass(frozen=True)
class Alternative:
    """Another way to use the same accelerators: several jobs of `accelerators` each."""

    what: str
    jobs: int
    accelerators: int
    mtti_seconds: float
    interval_seconds: float
    effective_time: float


@dataclass(frozen=True)
class Goodput:
    """What to expect of one synchronous job, times in seconds.

    `_low` and `_high` are the ends of the 80 % interval that follows from the failure rate's uncertainty.
    """

    accelerators: int
    nodes: int
    days: float
    failures: float
    planned: float
    interruptions: float
    interruptions_low: float
    interruptions_high: float
    failures_per_day: float
    mtti_seconds: float  # unexpected failures alone
    mtti_all_seconds: float  # with planned interruptions
    parameters: float
    checkpoint: Checkpoint
    young_seconds: float
    daly_seconds: float
    exact_seconds: float
    interval_seconds: float  # the exact optimum, but not shorter than a checkpoint takes to write
    shares: TimeShares
    effective_time: float
    effective_low: float
    effective_high: float
    meta_effective_time: float  # Meta's linear form at the same interval
    spares: int
    alternatives: tuple[Alternative, ...]
    advice: str


def goodput(
    accelerators: int,
    days: float,
    *,
    parameters: float | None = None,
    node_size: int = 8,
    reliability: Reliability | None = None,
) -> Goodput:
    """Goodput of one synchronous job on `accelerators` for `days`.

    parameters: of the model, for the checkpoint's size; None means 25 million per accelerator, as Llama 3 405B had.
    Raises PunaError for fewer than one accelerator, no days or no parameters.
    """
    rules = reliability or Reliability()
    if accelerators < 1:
        raise PunaError(f"{accelerators} GPUs cannot train.", "Give at least 1.")
    if not (days > 0 and math.isfinite(days)):
        raise PunaError(f"{days} days is no time to train.", "Give more than 0.")
    if parameters is None:
        parameters = PARAMETERS_PER_ACCELERATOR * accelerators
    if not (parameters > 0 and math.isfinite(parameters)):
        raise PunaError(f"A model of {parameters} parameters has no checkpoint.", "Give more than 0.")
    nodes = -(-accelerators // node_size)
    checkpoint = checkpoint_cost(parameters, nodes, rules)
    per_day = failures_per_day(accelerators, rules)
    planned_day = planned_per_day(accelerators, rules)
    mtti = DAY / per_day
    interval, shares = best_interval(accelerators, checkpoint, rules)
    factor = rules.rate_factor
    low, high = (best_interval(accelerators, checkpoint, _at_rate(rules, by))[1].useful for by in (factor, 1 / factor))
    alternatives = _alternatives(accelerators, parameters, node_size, rules)
    failures, planned = per_day * days, planned_day * days
    return Goodput(
        accelerators=accelerators,
        nodes=nodes,
        days=days,
        failures=failures,
        planned=planned,
        interruptions=failures + planned,
        interruptions_low=failures / factor + planned,
        interruptions_high=failures * factor + planned,
        failures_per_day=per_day,
        mtti_seconds=mtti,
        mtti_all_seconds=DAY / (per_day + planned_day),
        parameters=parameters,
        checkpoint=checkpoint,
        young_seconds=young_interval(checkpoint.stall_seconds, mtti),
        daly_seconds=daly_interval(checkpoint.stall_seconds, mtti),
        exact_seconds=exact_interval(checkpoint.stall_seconds, mtti),
        interval_seconds=interval,
        shares=shares,
        effective_time=shares.useful,
        effective_low=low,
        effective_high=high,
        meta_effective_time=meta_effective_time(
            interval, checkpoint.stall_seconds, mtti, rules.restart_seconds + load_seconds(checkpoint)
        ),
        spares=spares_needed(accelerators, rules),
        alternatives=alternatives,
        advice=_advice(accelerators, mtti, shares.useful, alternatives),
    )


def largest_good_job(
    limit: int, parameters_per_accelerator: float, node_size: int = 8, reliability: Reliability | None = None
) -> int:
    """The most accelerators (whole nodes, at most `limit`) on which one job keeps 90 % of its time."""
    rules = reliability or Reliability()

    def share(nodes: int) -> float:
        size = nodes * node_size
        return best_interval(size, checkpoint_cost(parameters_per_accelerator * size, nodes, rules), rules)[1].useful

    low, high = 1, max(1, limit // node_size)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if share(middle) >= _GOOD_SHARE else (low, middle - 1)
    return min(limit, low * node_size)


def _at_rate(rules: Reliability, factor: float) -> Reliability:
    return rules.model_copy(update={"failures_per_node_day": rules.failures_per_node_day * factor})


def _alternatives(accelerators: int, parameters: float, node_size: int, rules: Reliability) -> tuple[Alternative, ...]:
    """Alternatives for the same accelerators: several jobs of a good size, or one that restarts faster."""
    quick = rules.model_copy(update=_HOT)
    size = largest_good_job(accelerators, parameters / accelerators, node_size, rules)
    options = []
    for what, jobs, each, how in (
        ("jobs of a size that keeps 90 % of its time", -(-accelerators // size), 0, rules),
        ("one job with hot spares and checkpoints in memory", 1, accelerators, quick),
        ("jobs with hot spares and checkpoints in memory", -(-accelerators // size), 0, quick),
    ):
        each = each or min(size, accelerators // jobs // node_size * node_size or accelerators)
        nodes = -(-each // node_size)
        interval, shares = best_interval(each, checkpoint_cost(parameters * each / accelerators, nodes, how), how)
        mtti = mean_time_to_interruption(each, how)
        options.append(Alternative(what, jobs, each, mtti, interval, shares.useful))
    return tuple(options)


def _advice(accelerators: int, mtti: float, effective: float, alternatives: tuple[Alternative, ...]) -> str:
    """One paragraph: whether this should be one job, and what to do if not."""
    often = f"One job on {accelerators:,} GPUs is interrupted every {_spoken(mtti)}"
    if mtti >= _TOO_OFTEN_SECONDS and effective >= _GOOD_SHARE:
        return f"{often} and keeps {effective:.0%} of its time."
    several, hot, _ = alternatives
    if mtti >= _TOO_OFTEN_SECONDS:
        return (
            f"{often} and keeps only {effective:.0%} of its time: {several.jobs} jobs on {several.accelerators:,} GPUs "
            f"each would keep {several.effective_time:.0%}, and hot spares with checkpoints in memory "
            f"{hot.effective_time:.0%} in one."
        )
    return (
        f"{often}: do not run it as one synchronous job, it would keep {effective:.0%} of its time. Run several jobs "
        f"({several.jobs} on {several.accelerators:,} GPUs each keep {several.effective_time:.0%}, interrupted every "
        f"{_spoken(several.mtti_seconds)}); if it must be one, keep hot spares and checkpoints in other hosts' memory "
        f"every {_spoken(hot.interval_seconds)} ({hot.effective_time:.0%})."
    )


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} minutes"
    if seconds < 2 * DAY:
        return f"{seconds / 3600:.1f} hours"
    return f"{format_count(seconds / DAY)} days"
