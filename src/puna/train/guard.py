"""Skip steps whose loss or gradient norm is not finite, or far above recent values.

`Guard.check` decides on the device, from two scalars that are the same on every process, without synchronizing with
the host. It returns `found_inf`, which turns the optimizer's step into a no-op (the idea of OLMo-core's skip-step
optimizer). What follows is decided on the host, at log intervals: too many skips within a window mean that the run
itself is broken, and `decide` says whether to roll back or to stop.

Both are pure functions of their state, so a resumed run decides as the uninterrupted run would have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from puna.train.recipe import GuardConfig

# Deviations are at least this share of the mean. Otherwise, when values are almost equal (a memorised corpus, a test),
# every rounding error would count as a spike.
LEAST_DEVIATION = 1e-3


class Guard:
    """Watches loss and gradient norm over the last `config.window` accepted steps.

    A step is skipped when either value is not finite, or above mean + config.sigmas * deviation of the accepted values
    in the window. Spike detection begins once a quarter of the window is filled (32 steps of 128): before that the
    statistics mean little, and the loss falls steeply in the first steps. Skipped values do not enter the statistics.
    """

    def __init__(self, config: GuardConfig, device: torch.device | str) -> None:
        self.config = config
        self.warmup = max(2, config.window // 4)
        # (2, window): loss and gradient norm, ring buffers over accepted steps.
        self._ring = torch.zeros(2, config.window, dtype=torch.float32, device=device)
        self._accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._slots = torch.arange(config.window, device=device)
        self._since_drain: list[Tensor] = []

    @torch.no_grad()
    def check(self, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Decide whether to skip this step.

        Returns a float32 scalar on the device, 1.0 to skip and 0.0 to continue. loss, grad_norm: scalars that are the
        same on all processes. Never synchronizes with the device.
        """
        values = torch.stack([loss.detach().float().reshape(()), grad_norm.detach().float().reshape(())])
        if not self.config.enabled:
            return values.new_zeros(())
        filled = self._slots < self._accepted  # (window,)
        count = self._accepted.clamp(1, self.config.window)
        mean = self._ring.sum(dim=1) / count  # unfilled slots are zero
        deviation = (((self._ring - mean[:, None]).square() * filled).sum(dim=1) / count).sqrt()
        deviation = torch.maximum(deviation, LEAST_DEVIATION * mean.abs())
        spike = (values > mean + self.config.sigmas * deviation).any() & (self._accepted >= self.warmup)
        skip = spike | ~torch.isfinite(values).all()
        here = (self._slots == self._accepted % self.config.window) & ~skip
        self._ring.copy_(torch.where(here, values[:, None], self._ring))
        self._accepted.add_(~skip)
        found_inf = skip.float()
        self._since_drain.append(found_inf)
        return found_inf

    def drain(self) -> list[int]:
        """Return which checks since the last drain asked to skip, counted from 0.

        Waits for the device: once per log line. Drain before saving a checkpoint: skips that were not drained are not
        part of the state.
        """
        flags, self._since_drain = self._since_drain, []
        if not flags:
            return []
        return [offset for offset, flag in enumerate(torch.stack(flags).tolist()) if flag]

    def state_dict(self) -> dict[str, Tensor]:
        """The live state; loading a checkpoint writes into it in place."""
        return {"ring": self._ring, "accepted": self._accepted}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the state of another guard with the same window."""
        self._ring.copy_(state["ring"])
        self._accepted.copy_(state["accepted"])
        self._since_drain = []


@dataclass(frozen=True)
class Decision:
    """What to do after skipped steps, and why.

    why: a sentence, "" when there is nothing to report.
    """

    action: Literal["none", "rollback", "stop"]
    reason: str = ""


def decide(config: GuardConfig, skipped: Sequence[int], *, step: int, rollbacks: int) -> Decision:
    """Decide whether to continue, roll back or stop, from the steps skipped so far.

    skipped: steps skipped since the last roll-back. step: the step just done. rollbacks: roll-backs so far.
    `config.max_skips` skips within the last `config.window` steps trigger a roll-back; after `config.max_rollbacks`
    roll-backs, the run stops instead.
    """
    recent = [s for s in skipped if step - config.window < s <= step]
    if len(recent) < config.max_skips:
        return Decision("none")
    found = f"{len(recent)} of the last {min(config.window, step)} steps were skipped (the first at step {recent[0]})"
    if rollbacks < config.max_rollbacks:
        return Decision("rollback", f"{found}: rolling back to the last good checkpoint and skipping this data.")
    again = f" after {rollbacks} roll-backs" if rollbacks else ""
    return Decision(
        "stop",
        f"Training is not recovering: {found}{again}. Lower the learning rate, look at the documents named in "
        "metrics.jsonl, or raise guard.sigmas if these steps were fine.",
    )
