"""Alarms: bounds on what a healthy policy does; beyond them a reinforcement run rolls back.

Collapse is quick (a rate five times too high ruined a small model within 15 seconds, docs/log.md) and looks the same
everywhere: entropy falls to zero or grows without bound, answers stop ending or keep getting longer, the policy moves
away from the one that wrote the answers, the reward falls. Bounds are relative to the first set of answers, so they
need no tuning. A reward over few problems fluctuates by itself: a fall counts when it exceeds two standard errors on
both sides. Everything is a function of the measures in their order, and the state is plain JSON.
"""

import math
from collections.abc import Sequence
from typing import Any

from puna.tune.rl.recipe import AlarmConfig

_MOVING = 0.7  # weight of the previous sets in moving averages when a new set arrives
_ERRORS = 2.0  # standard errors on both sides of a fall
_ENDED_FLOOR = 0.2  # below this share at the start, answers that do not end are no sign of collapse


class Alarm:
    """Returns a sentence that says what is wrong, or "" if nothing is."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self.first: dict[str, float] = {}
        """Measures of the first set: entropy, ended, length."""
        self.entropy: float | None = None
        """The moving entropy; that of a single set depends on its problems."""
        self.sums = [0.0, 0.0, 0.0]
        """State of the moving reward: weights, weighted rewards, squared weights times squared standard errors."""
        self.reached = 0.0
        """The highest moving reward, less its error: a reward that the policy has certainly reached."""
        self.positions: list[float] = []

    def answers(self, found: dict[str, float], positions: Sequence[float] = ()) -> str:
        """Judge a set of answers before it is learned from.

        found: `reward`, `reward_error`, `ended` and `length`. positions: of the curricula. Rewards are compared only
        while these do not change, because harder problems earn less.
        """
        if list(positions) != self.positions:
            self.positions, self.sums, self.reached = list(positions), [0.0, 0.0, 0.0], 0.0
        ended = self.first.setdefault("ended", found["ended"])
        length = self.first.setdefault("length", found["length"])
        if ended > _ENDED_FLOOR and found["ended"] < self.config.ended * ended:
            return self._alarm(f"Only {found['ended']:.0%} of the answers end with an end token; it was {ended:.0%}.")
        if found["length"] > self.config.length * length:
            return self._alarm(f"Answers are {found['length']:.0f} tokens long; it was {length:.0f}.")
        moving, error = self._move(found["reward"], found["reward_error"])
        self.reached = max(self.reached, moving - error)
        if moving + error < self.config.reward * self.reached:
            return self._alarm(f"The moving reward fell to {moving:.2f}; it was above {self.reached:.2f}.")
        return ""

    def update(self, *, entropy: float, kl: float) -> str:
        """Judge the updates on a set.

        entropy: mean per token; kl: divergence from the policy that wrote the answers; both in nats.
        """
        first = self.first.setdefault("entropy", entropy)
        moving = entropy if self.entropy is None else _MOVING * self.entropy + (1 - _MOVING) * entropy
        self.entropy = moving
        if not moving >= self.config.entropy_low * first:  # NaN too
            return self._alarm(f"The moving entropy of a token fell to {moving:.3g} nats; it was {first:.3g}.")
        if moving > self.config.entropy_high * first:
            return self._alarm(f"The moving entropy of a token rose to {moving:.3g} nats; it was {first:.3g}.")
        if kl > self.config.kl:
            return self._alarm(f"The policy is {kl:.3g} nats a token away from the one that wrote the answers.")
        return ""

    def _move(self, reward: float, error: float) -> tuple[float, float]:
        """The moving reward including this set, and two of its standard errors."""
        weights, rewards, errors = self.sums
        self.sums = [_MOVING * weights + 1, _MOVING * rewards + reward, _MOVING**2 * errors + error**2]
        return self.sums[1] / self.sums[0], _ERRORS * math.sqrt(self.sums[2]) / self.sums[0]

    def _alarm(self, reason: str) -> str:
        """Raise the alarm and reset all moving averages, because the run rolls back."""
        self.sums, self.entropy = [0.0, 0.0, 0.0], None
        return reason

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "first": dict(self.first),
            "entropy": self.entropy,
            "sums": self.sums,
            "reached": self.reached,
            "positions": self.positions,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.first, self.sums, self.reached = dict(state["first"]), state["sums"], state["reached"]
        self.positions, self.entropy = state["positions"], state["entropy"]
