"""Closed forms for failures, checkpoint intervals and the time that is left for training.

Failures are random, at a rate proportional to the nodes (Poisson); a failure costs the work since the last
checkpoint and a restart, a checkpoint costs a stall. The best interval balances the two: Young 1974 to first order,
Daly 2006 to higher order, and exactly, as the minimum of the expected time for a segment. `simulate` agrees by
Monte Carlo; `goodput` combines the closed forms for one job.
"""

import math
from dataclasses import dataclass

from pydantic import Field

from puna.core.recipe import Config

DAY = 86400.0
# Llama 3 405B on 16,384: assumed for checkpoints where the model is not given.
PARAMETERS_PER_ACCELERATOR = 25e6


class Reliability(Config):
    """Failure rates and their costs. Every default has its source and can be overridden."""

    failures_per_node_day: float = Field(
        3.8e-3,
        gt=0,
        description="failures a day of a node of 8 accelerators: Llama 3 405B's 419 in 54 days on 2,048 nodes (arXiv "
        "2407.21783, table 5) are 3.8e-3; Meta's research clusters had 6.5e-3 and 2.34e-3 (arXiv 2410.21680)",
    )
    rate_factor: float = Field(
        1.7,
        ge=1,
        description="80 % interval of the rate, as a factor: spans RSC-2 to RSC-1 around Llama 3",
    )
    planned_per_node_day: float = Field(
        4.25e-4,
        ge=0,
        description="planned interruptions: Llama 3's 47 in 54 days on 2,048 nodes; a job has at most one a day",
    )
    hardware_share: float = Field(
        0.78,
        ge=0,
        le=1,
        description="failures that take the node away for repair: about 78 % (arXiv 2407.21783, 3.3.4)",
    )
    repair_days: float = Field(
        3.5,
        gt=0,
        description="days until a node is back: OPT-175B kept 12-18 spare hosts at 2 lost a day (logbook, 2022), which "
        "is what 1 % without a spare asks for at 3.5 days",
    )
    restart_seconds: float = Field(
        600.0,
        gt=0,
        description="from a failure to training again, loading apart: Llama 3's > 90 % at 2.8 h between interruptions "
        "allows 17 min with half an interval; MegaScale detects in < 10, has caught up in < 15 min (NSDI 2024)",
    )
    bytes_per_parameter: float = Field(
        14.0,
        gt=0,
        description="of a checkpoint: fp32 weights and two Adam moments 12, bf16 weights 2; 16 with fp32 gradients",
    )
    storage_gb_per_s_per_node: float = Field(
        1.0,
        gt=0,
        description="Llama 3: 2 TB/s sustained for 2,048 nodes (arXiv 2407.21783); BLOOM: 2.3 TB in 40 s on 48",
    )
    storage_gb_per_s: float | None = Field(None, gt=0, description="limit of the whole storage")
    asynchronous: bool = Field(True, description="training continues while a checkpoint is written")
    stall_seconds: float = Field(
        5.0,
        gt=0,
        description="pause of training for an asynchronous checkpoint: several seconds (MegaScale, NSDI 2024)",
    )
    no_spare_probability: float = Field(0.01, gt=0, lt=1, description="accepted probability that no spare is left")

    @property
    def assumption(self) -> str:
        """The failure rate as a line among a plan's assumptions."""
        rate = self.failures_per_node_day * 1e3
        return f"{rate:g} failures of 1,000 nodes a day (reliability.failures_per_node_day); Llama 3's run had 3.8"


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint: its bytes, how long training stops, and how long writing continues after that."""

    bytes: float
    stall_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class TimeShares:
    """Shares of a job's time, which sum to 1.

    Useful work, stalls for checkpoints, repeated work, restarts with loading, planned maintenance.
    """

    useful: float
    checkpoint: float
    recompute: float
    restart: float
    planned: float


def failures_per_day(accelerators: float, reliability: Reliability | None = None) -> float:
    """Expected unplanned failures per day: rate x accelerators / 8."""
    return (reliability or Reliability()).failures_per_node_day * accelerators / 8


def planned_per_day(accelerators: float, reliability: Reliability | None = None) -> float:
    """Expected planned interruptions per day of one job, at most one."""
    return min(1.0, (reliability or Reliability()).planned_per_node_day * accelerators / 8)


def mean_time_to_interruption(accelerators: float, reliability: Reliability | None = None) -> float:
    """Mean seconds between failures of a job."""
    return DAY / failures_per_day(accelerators, reliability)


def checkpoint_cost(parameters: float, nodes: int, reliability: Reliability | None = None) -> Checkpoint:
    """A checkpoint of a model of `parameters`, written at the lower rate of `nodes` and the storage."""
    rules = reliability or Reliability()
    rate = nodes * rules.storage_gb_per_s_per_node
    rate = min(rate, rules.storage_gb_per_s or rate)
    size = parameters * rules.bytes_per_parameter
    write = size / (rate * 1e9)
    stall = rules.stall_seconds if rules.asynchronous else max(write, rules.stall_seconds)
    return Checkpoint(size, stall, write if rules.asynchronous else 0.0)


def young_interval(stall_seconds: float, mtti_seconds: float) -> float:
    """Best seconds of work between checkpoints, first order: sqrt(2·w·M). Young, CACM 17(9), 1974."""
    return math.sqrt(2 * stall_seconds * mtti_seconds)


def daly_interval(stall_seconds: float, mtti_seconds: float) -> float:
    """To higher order: sqrt(2wM)·(1 + sqrt(w/2M)/3 + (w/2M)/9) - w, and M where w >= 2M. Daly, FGCS 22(3), 2006."""
    if stall_seconds >= 2 * mtti_seconds:
        return mtti_seconds
    ratio = stall_seconds / (2 * mtti_seconds)
    return young_interval(stall_seconds, mtti_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_seconds


def exact_interval(stall_seconds: float, mtti_seconds: float) -> float:
    """The interval that minimises the expected time of a segment over its work, exactly.

    With x = interval/M and a = w/M the derivative of (e^(x+a) - 1)/x is zero where (1 - x)·e^x = e^-a. The left side
    falls from 1 to 0 as x goes from 0 to 1, so bisection finds it; the restart's cost does not matter.
    """
    target = math.exp(-stall_seconds / mtti_seconds)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) * math.exp(middle) > target else (low, middle)
    return (low + high) / 2 * mtti_seconds


def time_shares(
    interval_seconds: float,
    stall_seconds: float,
    mtti_seconds: float,
    restart_seconds: float,
    *,
    write_seconds: float = 0.0,
    planned_share: float = 0.0,
) -> TimeShares:
    """Shares of the time, from the expected time of one segment (work of `interval_seconds`, then a stall).

    Failures strike at rate 1/M at any time, in restarts too. A segment of length s = interval + w is tried until one
    try passes: e^(s/M) - 1 tries fail on average, and all tries together take M·(e^(s/M) - 1). A restart of R succeeds
    after M·(e^(R/M) - 1). A checkpoint that is still being written (`write_seconds` of the next segment) does not count
    yet: a failure costs that much more work (to first order, as if it lengthened the restart).
    planned_share: of the whole time, for maintenance. Shares sum to 1.
    """
    segment = interval_seconds + stall_seconds
    failed_tries = _expm1(segment / mtti_seconds)
    tries = mtti_seconds * failed_tries
    restarts = failed_tries * mtti_seconds * _expm1(restart_seconds / mtti_seconds)
    unsafe = failed_tries * mtti_seconds * _expm1((restart_seconds + write_seconds) / mtti_seconds) - restarts
    total = tries + restarts + unsafe
    kept = 1 - planned_share
    return TimeShares(
        useful=kept * interval_seconds / total,
        checkpoint=kept * stall_seconds / total,
        recompute=kept * (tries - segment + unsafe) / total,
        restart=kept * restarts / total,
        planned=planned_share,
    )


def meta_effective_time(
    interval_seconds: float, stall_seconds: float, mtti_seconds: float, restart_seconds: float
) -> float:
    """Meta's linear form: (1 - (R + interval/2)/M) / (1 + w/interval), for long M. arXiv 2410.21680."""
    lost = (restart_seconds + interval_seconds / 2) / mtti_seconds
    return max(0.0, 1 - lost) / (1 + stall_seconds / interval_seconds)


def spares_needed(accelerators: float, reliability: Reliability | None = None) -> int:
    """Spare nodes that keep the probability of having none below the accepted one.

    Nodes in repair are Poisson with mean failures a day x share that needs repair x repair time (M/G/infinity); the
    result is the smallest s with P(s or more in repair) <= no_spare_probability.
    """
    rules = reliability or Reliability()
    mean = failures_per_day(accelerators, rules) * rules.hardware_share * rules.repair_days
    below, spares = 0.0, 0
    while mean and 1 - below > rules.no_spare_probability:
        below += math.exp(spares * math.log(mean) - mean - math.lgamma(spares + 1))
        spares += 1
    return spares


def best_interval(
    accelerators: float, checkpoint: Checkpoint, reliability: Reliability | None = None
) -> tuple[float, TimeShares]:
    """The checkpoint interval to use, in seconds, and the shares of time with it.

    The exact optimum, but at least the time to write a checkpoint, as they are written one after the other.
    """
    rules = reliability or Reliability()
    mtti = mean_time_to_interruption(accelerators, rules)
    interval = max(exact_interval(checkpoint.stall_seconds, mtti), checkpoint.write_seconds)
    restart = rules.restart_seconds + load_seconds(checkpoint)
    # A checkpoint is written before maintenance, so no work is repeated.
    down = restart + checkpoint.stall_seconds + checkpoint.write_seconds
    shares = time_shares(
        interval,
        checkpoint.stall_seconds,
        mtti,
        restart,
        write_seconds=checkpoint.write_seconds,
        planned_share=min(1.0, planned_per_day(accelerators, rules) * down / DAY),
    )
    return interval, shares


def load_seconds(checkpoint: Checkpoint) -> float:
    """Seconds to read a checkpoint, assumed equal to writing it."""
    return checkpoint.write_seconds or checkpoint.stall_seconds


def _expm1(x: float) -> float:
    """e^x - 1, or infinity where it overflows."""
    return math.expm1(x) if x < 700 else math.inf
