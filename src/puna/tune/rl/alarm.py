"""Alarms: bounds on what a healthy policy does, beyond which a run of reinforcement is called back.

Collapse is quick (a rate five times too high ended a small model within 15 seconds, docs/log.md) and looks the same
everywhere: entropy runs to nothing or to everything, answers stop ending or grow without end, the policy leaves the one
that wrote the answers, the reward falls. Bounds are relative to the first set of answers, so they need no tuning.
Everything is a function of the measures in their order, and the state is plain JSON.
"""

from collections.abc import Sequence
from typing import Any

from puna.tune.rl.recipe import AlarmConfig

_MOVING = 0.7  # how much of the moving reward stays from set to set
_ENDED_FLOOR = 0.2  # a model that hardly ever ended cannot stop ending


class Alarm:
    """Says what is wrong, in a sentence, or "" while nothing is."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self.first: dict[str, float] = {}
        """Measures of the first set: entropy, ended, length."""
        self.moving: float | None = None
        self.best = 0.0
        self.positions: list[float] = []

    def answers(self, found: dict[str, float], positions: Sequence[float] = ()) -> str:
        """Judge a set of answers by its `reward`, `ended` and `length`, before anything is learned from it.

        positions: of the curricula. Rewards are compared while these stay: harder problems earn less.
        """
        if list(positions) != self.positions:
            self.positions, self.moving, self.best = list(positions), None, 0.0
        ended = self.first.setdefault("ended", found["ended"])
        length = self.first.setdefault("length", found["length"])
        if ended > _ENDED_FLOOR and found["ended"] < self.config.ended * ended:
            return self._alarm(f"Only {found['ended']:.0%} of the answers end by themselves; it was {ended:.0%}.")
        if found["length"] > self.config.length * length:
            return self._alarm(f"Answers are {found['length']:.0f} tokens long; it was {length:.0f}.")
        reward = found["reward"]
        self.moving = reward if self.moving is None else _MOVING * self.moving + (1 - _MOVING) * reward
        self.best = max(self.best, self.moving)
        if self.moving < self.config.reward * self.best:
            return self._alarm(f"The moving reward fell to {self.moving:.2f}; it was {self.best:.2f}.")
        return ""

    def update(self, *, entropy: float, kl: float) -> str:
        """Judge the updates on a set: mean entropy of a token, and divergence from who wrote the answers, in nats."""
        first = self.first.setdefault("entropy", entropy)
        if not entropy >= self.config.entropy_low * first:  # NaN too
            return self._alarm(f"The entropy of a token fell to {entropy:.3g} nats; it was {first:.3g}.")
        if entropy > self.config.entropy_high * first:
            return self._alarm(f"The entropy of a token rose to {entropy:.3g} nats; it was {first:.3g}.")
        if kl > self.config.kl:
            return self._alarm(f"The policy is {kl:.3g} nats a token away from the one that wrote the answers.")
        return ""

    def _alarm(self, reason: str) -> str:
        """After going back the reward starts anew."""
        self.moving = None
        return reason

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"first": dict(self.first), "moving": self.moving, "best": self.best, "positions": self.positions}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.first, self.moving, self.best = dict(state["first"]), state["moving"], state["best"]
        self.positions = state["positions"]
