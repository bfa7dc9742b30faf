"""Monte Carlo simulation of a fleet: jobs fail, wait for a spare, restart and continue.

A seeded discrete-event simulation. Between two events nothing random happens, so a job's progress over any stretch is
arithmetic and a year of 350,000 GPUs is some hundred thousand events. It adds what the closed forms of `reliability`
leave out: restarts that fail, checkpoints that were not written yet, spares that run out. Where the closed form holds
(one job, enough spares) both agree within the sampling error.
"""

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from puna.core.errors import PunaError
from puna.plan.run.reliability import (
    DAY,
    PARAMETERS_PER_ACCELERATOR,
    Checkpoint,
    Reliability,
    best_interval,
    checkpoint_cost,
    failures_per_day,
    load_seconds,
    planned_per_day,
    spares_needed,
)

# Activities of accelerators, in the order of stacked charts. Every day's shares sum to 1.
ACTIVITIES = ("useful", "checkpoint", "recompute", "restart", "idle", "repair")
# Kinds of events, in the order in which simultaneous ones are handled.
_RESTARTED, _REPAIRED, _STOPPED = range(3)


@dataclass(frozen=True)
class JobKind:
    """Equal jobs of `accelerators` each. parameters: of the model; None means 25 million per accelerator."""

    name: str
    jobs: int
    accelerators: int
    parameters: float | None = None


@dataclass(frozen=True)
class KindResult:
    """Averages over the jobs of one kind.

    effective_time: share of the time that became progress; expected_effective_time: the closed form's, with enough
    spares. shares: of their accelerators' time, by activity ("idle" is waiting for a spare). interruptions: of one job.
    """

    kind: JobKind
    interruptions: float
    mtti_seconds: float
    interval_seconds: float
    effective_time: float
    expected_effective_time: float
    shares: dict[str, float]


@dataclass(frozen=True)
class FleetYear:
    """A simulated stretch of a fleet: per kind of job, per day, and as a whole.

    daily: for each of ACTIVITIES one share of all accelerators a day. failures, planned: of all jobs. waits: how often
    a job found no spare, and wait_seconds how long it then waited on average. accelerator_days: of useful work.
    """

    accelerators: int
    days: int
    seed: int
    spare_nodes: int
    spare_nodes_needed: int
    kinds: tuple[KindResult, ...]
    daily: dict[str, tuple[float, ...]]
    shares: dict[str, float]
    failures: int
    planned: int
    waits: int
    wait_seconds: float
    accelerator_days: float


# Jobs of several sizes as a large laboratory might run them: two at the frontier, and more of the smaller ones.
# Their sum leaves 4 % of 350,000 accelerators as spares. An example, not a record of any fleet.
EXAMPLE_JOBS = (
    JobKind("frontier", 2, 65_536),
    JobKind("large", 4, 24_576),
    JobKind("medium", 16, 4_096),
    JobKind("small", 64, 512),
    JobKind("experiments", 128, 64),
)


def simulate_fleet(
    accelerators: int = 350_000,
    kinds: Sequence[JobKind] = EXAMPLE_JOBS,
    *,
    days: int = 365,
    seed: int = 0,
    node_size: int = 8,
    reliability: Reliability | None = None,
) -> FleetYear:
    """Simulate `days` of a fleet that always runs `kinds` of jobs; other nodes are spares.

    Failures hit a job's nodes at random while it runs or restarts; the share that is the hardware's fault takes the
    node away for repair (exponential times) and a spare steps in, or the job waits, first come, first served. Jobs
    checkpoint at their best interval and restart from the last one that was written. Seconds for a year of 350,000.
    Raises PunaError where the jobs do not fit the fleet, or a count is below one.
    """
    rules = reliability or Reliability()
    if accelerators < 1 or days < 1:
        raise PunaError(f"{accelerators} GPUs for {days} days are nothing to simulate.", "Give at least one of each.")
    for kind in kinds:
        if kind.jobs < 1 or kind.accelerators < 1:
            raise PunaError(
                f"{kind.jobs} jobs '{kind.name}' on {kind.accelerators} GPUs cannot run.", "Give at least 1."
            )
    jobs = [_job(index, kind, node_size, rules) for index, kind in enumerate(kinds) for _ in range(kind.jobs)]
    nodes, used = accelerators // node_size, sum(job.nodes for job in jobs)
    if not jobs or used > nodes:
        raise PunaError(
            f"The jobs need {used} nodes of {node_size} GPUs and the fleet has {nodes}.",
            "Give at least one job, and fewer or smaller ones than fit.",
        )
    play = _Play(jobs, nodes - used, days * DAY, rules, random.Random(seed))
    play.run()
    return _told(play, kinds, accelerators, nodes, days, seed, node_size)


@dataclass
class _Job:
    """One job: its constants and its state. Times in seconds since the start."""

    kind: int
    nodes: int
    mtti: float
    planned_mean: float
    interval: float
    checkpoint: Checkpoint
    restart: float
    expected: float
    state: str = "restart"
    since: float = 0.0
    missing: int = 0  # nodes it waits for
    turn: int = 0  # counts its events, so that outdated ones are ignored
    stops: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))


def _job(index: int, kind: JobKind, node_size: int, rules: Reliability) -> _Job:
    nodes = -(-kind.accelerators // node_size)
    parameters = kind.parameters or PARAMETERS_PER_ACCELERATOR * kind.accelerators
    checkpoint = checkpoint_cost(parameters, nodes, rules)
    interval, shares = best_interval(kind.accelerators, checkpoint, rules)
    planned = planned_per_day(kind.accelerators, rules)
    return _Job(
        kind=index,
        nodes=nodes,
        mtti=DAY / failures_per_day(kind.accelerators, rules),
        planned_mean=DAY / planned if planned else math.inf,
        interval=interval,
        checkpoint=checkpoint,
        restart=rules.restart_seconds + load_seconds(checkpoint),
        expected=shares.useful,
    )


class _Play:
    """The simulation's state: events, jobs, spares, the queue for spares, and the time spent."""

    def __init__(self, jobs: list[_Job], spares: int, end: float, rules: Reliability, dice: random.Random) -> None:
        self.jobs, self.spares, self.end, self.rules, self.dice = jobs, spares, end, rules, dice
        self.events: list[tuple[float, int, int, int]] = []  # (time, kind of event, job, its turn)
        self.waiting: deque[int] = deque()
        # Stretches of time, to be cut into days at the end: activity, node weight, start, end.
        self.stretches: list[tuple[int, float, float, float]] = []
        self.failures = self.planned = self.waits = 0
        self.waited = self.spares_since = 0.0

    def run(self) -> None:
        for index, job in enumerate(self.jobs):
            job.state = "running"  # a fleet that is at work already
            self.expect_stop(index, 0.0)
        while self.events and self.events[0][0] < self.end:
            now, what, index, turn = heapq.heappop(self.events)
            if what == _REPAIRED:
                self.node_is_back(now)
            elif turn == self.jobs[index].turn:
                if what == _STOPPED:
                    self.stop(index, now)
                else:
                    self.close(self.jobs[index], now, "restart")
                    self.begin(index, now, "running")
        for job in self.jobs:
            if job.state == "running":
                self.close_running(job, self.end, lost=False)
            else:
                self.close(job, self.end, "restart" if job.state == "restart" else "idle")
        self.change_spares(0, self.end)

    def begin(self, index: int, now: float, state: str, longer: float = 0.0) -> None:
        """Move the job to `state` (a restart takes `longer` more seconds) and drop its earlier events."""
        job = self.jobs[index]
        job.state, job.since, job.turn = state, now, job.turn + 1
        if state == "waiting":
            return
        if state == "restart":
            heapq.heappush(self.events, (now + longer + job.restart, _RESTARTED, index, job.turn))
        self.expect_stop(index, now)

    def expect_stop(self, index: int, now: float) -> None:
        """Time of the job's next stop; memoryless, so it is drawn again whenever the state changes."""
        job = self.jobs[index]
        rate = 1 / job.mtti + (1 / job.planned_mean if job.state == "running" else 0.0)
        heapq.heappush(self.events, (now + self.dice.expovariate(rate), _STOPPED, index, job.turn))

    def stop(self, index: int, now: float) -> None:
        """Handle a stop: a failure or, while the job runs and by its share of the rate, planned maintenance."""
        job = self.jobs[index]
        running = job.state == "running"
        planned = running and self.dice.random() * (job.mtti + job.planned_mean) < job.mtti
        job.stops += 1
        if running:
            self.close_running(job, now, lost=not planned)
        else:
            self.close(job, now, "restart")
        if planned:
            self.planned += 1
            saving = job.checkpoint.stall_seconds + job.checkpoint.write_seconds
            self.begin(index, now, "restart", saving)  # everything is saved first, so nothing is done twice
            return
        self.failures += 1
        if self.dice.random() < self.rules.hardware_share:
            back = now + self.dice.expovariate(1 / (self.rules.repair_days * DAY))
            heapq.heappush(self.events, (back, _REPAIRED, index, 0))
            self.stretch("repair", 1, now, back)
            if not self.spares:
                self.waits += 1
                job.missing = 1
                self.waiting.append(index)
                self.begin(index, now, "waiting")
                return
            self.change_spares(-1, now)
        self.begin(index, now, "restart")

    def node_is_back(self, now: float) -> None:
        if not self.waiting:
            self.change_spares(1, now)
            return
        index = self.waiting.popleft()
        job = self.jobs[index]
        self.waited += now - job.since
        self.close(job, now, "idle")
        job.missing = 0
        self.begin(index, now, "restart")

    def change_spares(self, by: int, now: float) -> None:
        self.stretch("idle", self.spares, self.spares_since, now)
        self.spares, self.spares_since = self.spares + by, now

    # -- where the time went -----------------------------------------------------------------------------------------

    def close(self, job: _Job, now: float, activity: str) -> None:
        """Record a stretch with one activity. A waiting job lacks the node in repair."""
        job.spent[activity] += now - job.since
        self.stretch(activity, job.nodes - job.missing, job.since, now)

    def close_running(self, job: _Job, now: float, lost: bool) -> None:
        """Record a stretch of training, work and stalls in turn; with `lost`, unsaved work counts as lost."""
        cycle = job.interval + job.checkpoint.stall_seconds
        elapsed = now - job.since
        if lost:
            cycles = max(0, math.floor((elapsed - job.checkpoint.write_seconds) / cycle))
            kept = cycles * cycle
            useful = cycles * job.interval
        else:
            whole, rest = divmod(elapsed, cycle)
            kept = elapsed
            useful = whole * job.interval + min(rest, job.interval)
        middle = job.since + kept
        job.spent["useful"] += useful
        job.spent["checkpoint"] += kept - useful
        job.spent["recompute"] += elapsed - kept
        if kept:
            self.stretch("useful", job.nodes * useful / kept, job.since, middle)
            self.stretch("checkpoint", job.nodes * (1 - useful / kept), job.since, middle)
        self.stretch("recompute", job.nodes, middle, now)

    def stretch(self, activity: str, weight: float, start: float, end: float) -> None:
        self.stretches.append((ACTIVITIES.index(activity), weight, start, min(end, self.end)))


def _told(
    play: _Play, kinds: Sequence[JobKind], accelerators: int, nodes: int, days: int, seed: int, node_size: int
) -> FleetYear:
    daily = _by_day(play.stretches, days) / (nodes * DAY)
    results = []
    for index, kind in enumerate(kinds):
        own = [job for job in play.jobs if job.kind == index]
        total = len(own) * play.end
        shares = {name: sum(job.spent[name] for job in own) / total for name in ACTIVITIES if name != "repair"}
        results.append(
            KindResult(
                kind=kind,
                interruptions=sum(job.stops for job in own) / len(own),
                mtti_seconds=own[0].mtti,
                interval_seconds=own[0].interval,
                effective_time=shares["useful"],
                expected_effective_time=own[0].expected,
                shares=shares,
            )
        )
    used = sum(job.nodes for job in play.jobs)
    shares = {name: float(row.mean()) for name, row in zip(ACTIVITIES, daily, strict=True)}
    return FleetYear(
        accelerators=accelerators,
        days=days,
        seed=seed,
        spare_nodes=nodes - used,
        spare_nodes_needed=spares_needed(used * node_size, play.rules),
        kinds=tuple(results),
        daily={name: tuple(map(float, row)) for name, row in zip(ACTIVITIES, daily, strict=True)},
        shares=shares,
        failures=play.failures,
        planned=play.planned,
        waits=play.waits,
        wait_seconds=play.waited / play.waits if play.waits else 0.0,
        accelerator_days=shares["useful"] * accelerators * days,
    )


def _by_day(stretches: list[tuple[int, float, float, float]], days: int) -> np.ndarray:
    """Node-seconds of each activity on each day, (activities, days), cut exactly where a stretch crosses midnight.

    The sum of weight·max(0, t - start) over stretches, less the same for their ends, is what was spent until t; its
    differences over midnights are the days. Sorted sums give it at all midnights at once.
    """
    table = np.array(stretches, dtype=float)
    midnights = np.arange(days + 1) * DAY
    result = np.zeros((len(ACTIVITIES), days))
    for activity in range(len(ACTIVITIES)):
        rows = table[table[:, 0] == activity]
        until = _ramps(rows[:, 2], rows[:, 1], midnights) - _ramps(rows[:, 3], rows[:, 1], midnights)
        result[activity] = np.diff(until)
    return result


def _ramps(starts: np.ndarray, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Sum of weights·max(0, t - starts) at each t of `times`."""
    order = np.argsort(starts)
    starts, weights = starts[order], weights[order]
    before = np.searchsorted(starts, times)
    slope = np.concatenate(([0.0], np.cumsum(weights)))[before]
    moment = np.concatenate(([0.0], np.cumsum(weights * starts)))[before]
    return slope * times - moment
