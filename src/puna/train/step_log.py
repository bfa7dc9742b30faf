"""The values of the steps since the last log line, kept on the device until then.

Losses, norms and measures are read once per log interval: the only place where the host waits for the device.
"""

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from puna.train.measure.clock import Clock


class LoggedStep(NamedTuple):
    """One step of an interval: its number, its data step, its loss and gradient norm."""

    step: int
    data_step: int
    loss: float
    grad_norm: float


@dataclass(frozen=True)
class Interval:
    """The steps between two lines. loss: the mean over steps that were not skipped."""

    steps: list[LoggedStep]
    skipped: list[LoggedStep]
    loss: float
    tokens: list[float | None]
    """Tokens learned from in each step, if the objective counts them."""
    measures: dict[str, float]
    seconds: float
    data_seconds: float
    """Part of `seconds` spent waiting for data."""


class StepLog:
    """Collects steps on the device; `take` reads them at once."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.clear()

    def clear(self) -> None:
        """Discard what was not taken; the next interval starts now."""
        self._steps: list[tuple[int, int]] = []
        self._values: list[Tensor] = []
        self._measures: list[dict[str, Tensor]] = []
        self._begin, self._data_begin = self.clock.training_here, self.clock.seconds["data"]
        self._first = 0  # whether the process's first step, which compiles, is included

    def add(self, step: int, data_step: int, loss: Tensor, norm: Tensor, measures: dict[str, Tensor]) -> None:
        """Record one step (device scalars)."""
        self._steps.append((step, data_step))
        self._values.append(torch.stack((loss, norm.float())))
        self._measures.append(measures)
        if not self.clock.first_seconds:
            # The first step compiles and allocates. Wait for it, this once, to measure its time.
            if loss.is_cuda:
                torch.cuda.synchronize(loss.device)
            self.clock.first_seconds = self.clock.training_here
            self._first = 1

    def __len__(self) -> int:
        return len(self._values)

    def take(self, skipped: Sequence[int]) -> Interval:
        """Read the interval's values and start a new interval.

        skipped: positions of the steps that the guard skipped.
        """
        clock = self.clock
        values = torch.stack(self._values).tolist()
        steps = [LoggedStep(*numbers, *row) for numbers, row in zip(self._steps, values, strict=True)]
        left_out = set(skipped)
        counted = [step.loss for place, step in enumerate(steps) if place not in left_out]
        counted = counted or [step.loss for step in steps]
        tokens = [measures.pop("tokens", None) for measures in self._measures]
        names = dict.fromkeys(name for measures in self._measures for name in measures)
        seconds = clock.training_here - self._begin
        clock.note(len(steps) - self._first, seconds - self._first * clock.first_seconds)
        interval = Interval(
            steps=steps,
            skipped=[steps[place] for place in sorted(left_out)],
            loss=math.fsum(counted) / len(counted),
            tokens=[None if count is None else float(count) for count in tokens],
            measures={name: self._merged(name) for name in names},
            seconds=seconds,
            data_seconds=clock.seconds["data"] - self._data_begin,
        )
        self.clear()
        gc.collect(1)
        return interval

    def _merged(self, name: str) -> float:
        """Combine a measure over the interval: the mean of the steps that have it, or the maximum."""
        values = torch.stack([measures[name] for measures in self._measures if name in measures])
        return float((values.max() if name.endswith("_max") else values.mean()).item())


def finite(value: float) -> float | None:
    """Return None for values that are not finite, because JSON has no NaN."""
    return value if math.isfinite(value) else None
