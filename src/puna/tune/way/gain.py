"""What a stage gained over another model, with the interval of the difference. No torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from puna.core.statistics import Z95


class Gain(NamedTuple):
    """The mean of a measure for two models, and their difference with a 95 % interval.

    Means are over tasks and levels.
    """

    ours: float
    theirs: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """One word for the interval: gained, lost, or no difference shown."""
        return "gained" if self.low > 0 else "lost" if self.high < 0 else "no difference shown"


def gain(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], measure: str) -> Gain:
    """Compare plain `Measured` rows of the same tasks and levels.

    measure: "greedy", "pass_1" or "pass_k". Standard errors are derived from the intervals and treated as independent,
    although both models got the same problems; that makes a difference harder to show.
    """
    means = [sum(row[measure] for row in rows) / len(rows) for rows in (ours, theirs)]
    error = math.hypot(*(_error(rows, measure) for rows in (ours, theirs)))
    difference = means[0] - means[1]
    return Gain(means[0], means[1], difference, difference - Z95 * error, difference + Z95 * error)


def mean(rows: Sequence[Mapping[str, Any]], measure: str) -> float:
    """The mean of a measure over tasks and levels."""
    return sum(row[measure] for row in rows) / len(rows)


def _error(rows: Sequence[Mapping[str, Any]], measure: str) -> float:
    """Standard error of the mean over rows."""
    errors = [(row[f"{measure}_interval"][1] - row[f"{measure}_interval"][0]) / (2 * Z95) for row in rows]
    return math.hypot(*errors) / len(rows)
