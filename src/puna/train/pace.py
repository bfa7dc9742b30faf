"""Keep a promised training time by adapting the number of steps to the measured pace.

A plan is based on a few timed steps. Other programs may start later, or may have been running while those steps were
timed. So a run that promised a time projects its end at every log line, and changes the number of remaining steps when
it would miss the promise by more than 5 %. The learning rate is a function of the share of the schedule that is
done, not of the step, so it stays continuous and always completes its decay.
"""

from dataclasses import dataclass

from puna.train.recipe import ScheduleConfig

TOLERANCE = 0.05
"""Share of the promised time: a projection that is off by more changes the number of steps."""


@dataclass(frozen=True)
class Horizon:
    """Where a run ends: its total steps, and the schedule's progress when they were last set."""

    total: int
    since: int = 0
    done: float = 0.0

    def progress(self, step: int) -> float:
        """Share of the schedule, in [0, 1], that is done before `step`."""
        share = (step - self.since) / max(1, self.total - self.since)
        return min(1.0, max(0.0, self.done + (1.0 - self.done) * share))

    def moved(self, step: int, total: int) -> "Horizon":
        """Spread the rest of the same schedule after `step` over the steps up to `total`."""
        return Horizon(total, step, self.progress(step))


def replan(
    horizon: Horizon, step: int, *, elapsed: float, promised: float, step_seconds: float, may_extend: bool
) -> Horizon:
    """Return the horizon that ends a run on time; the same one if the run is on time.

    elapsed, promised: seconds of training so far and in total. step_seconds: what a step takes now. may_extend: whether
    steps may be added to a run that is faster than planned (only before the learning rate's decay begins).
    """
    left = horizon.total - step
    projected = elapsed + left * step_seconds
    fits = max(1, round((promised - elapsed) / step_seconds))
    if left <= 0 or abs(projected / promised - 1) <= TOLERANCE or fits == left:
        return horizon
    if fits > left and not may_extend:
        return horizon
    return horizon.moved(step, step + fits)


def keep_promise(
    horizon: Horizon, step: int, schedule: ScheduleConfig, *, elapsed: float, step_seconds: float
) -> Horizon:
    """Apply `replan` to a schedule that promised `seconds`.

    Steps are added only before its decay begins.
    """
    holds = schedule.kind == "wsd" and horizon.progress(step) < 1 - schedule.decay
    return replan(
        horizon, step, elapsed=elapsed, promised=schedule.seconds, step_seconds=step_seconds, may_extend=holds
    )
