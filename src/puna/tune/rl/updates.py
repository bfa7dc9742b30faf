"""From answers to optimizer steps: a set of answers becomes a queue of updates, an update the rows of each process.

The queue is plain JSON in a checkpoint, so a stage that stops between two updates on one set goes on with the second,
and every number comes out as if it had not stopped. Time is counted here too: what a step spends on writing answers, on
checking them, on learning, and on everything else.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from puna.tune.rows.packing import EMPTY, Answer, Group, Rows, lay_out, split
from puna.tune.stage import Stage


@dataclass
class Update:
    """The problems of one optimizer step, over all processes. fresh: no update has been made since they were written.
    notes: what to log with it."""

    groups: list[Group]
    fresh: bool
    notes: dict[str, float]

    @property
    def answers(self) -> int:
        """Answers that have a token to learn from."""
        return sum(
            times
            for group in self.groups
            for answer, times in zip(group.answers, group.times, strict=True)
            if any(answer.mask)
        )

    @property
    def tokens(self) -> int:
        """Tokens that the model chose."""
        return sum(
            times * sum(answer.mask)
            for group in self.groups
            for answer, times in zip(group.answers, group.times, strict=True)
        )

    def plain(self) -> dict[str, Any]:
        """As plain JSON."""
        return {**asdict(self)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "Update":
        """What `plain` gave."""
        groups = [
            Group(one["prompt"], [Answer(**answer) for answer in one["answers"]], one["advantages"], one["times"])
            for one in plain["groups"]
        ]
        return cls(groups, plain["fresh"], plain["notes"])


@dataclass(frozen=True)
class MicroBatch:
    """What `Objective.loss` gets: rows of this process, counts of the whole update, and notes for the log."""

    rows: Rows
    answers: int
    tokens: int
    fresh: bool
    first: bool
    """Whether it is the update's first."""
    notes: dict[str, float]


def plan_updates(
    groups: Sequence[Group], *, count: int, epochs: int, seed: str, notes: dict[str, float]
) -> list[Update]:
    """`count` updates of about as many problems each, `epochs` times over, in an order drawn from `seed`."""
    updates: list[Update] = []
    for epoch in range(epochs if groups else 0):
        order = list(groups)
        random.Random(f"{seed}/{epoch}").shuffle(order)
        size = -(-len(order) // count)
        updates += [Update(order[at : at + size], False, {}) for at in range(0, len(order), size)]
    if updates:
        updates[0].fresh, updates[0].notes = True, notes
    return updates


def micro_batches(update: Update, stage: Stage) -> list[MicroBatch]:
    """This process' micro-batches: as many as every other process has."""
    rank, ranks, at_once = stage.world.data_rank, stage.world.data_size, stage.share.rows
    rows = split(update.groups, stage.recipe.train.seq_len)
    steps = -(-len(rows) // (ranks * at_once))
    batches = []
    for step in range(steps):
        # Longest first and dealt out in turn: rows of a micro-batch are about as long, and so are the processes'.
        here = rows[step * ranks * at_once :][rank : ranks * at_once : ranks]
        # A measure is summed over processes, and each of them names the same ones.
        notes = {name: value / ranks for name, value in update.notes.items()} if not step else {}
        batches.append(
            MicroBatch(
                lay_out(here or [EMPTY], stage.device), update.answers, update.tokens, update.fresh, not step, notes
            )
        )
    return batches


class Shares:
    """Where the time of steps goes, in seconds: generation, reward, learning (forward, backward, update), rest."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.seconds = {"generation": 0.0, "reward": 0.0, "learning": 0.0, "rest": 0.0}
        self._learning_since: float | None = None
        self._begun = self._inside = 0.0

    def begin(self, spent: dict[str, float]) -> None:
        """A batch is asked for: what lay since the last one was learning. spent: counters of the collector."""
        now = self._now()
        if self._learning_since is not None:
            self.seconds["learning"] += now - self._learning_since
            self._learning_since = None
        self._begun, self._inside = now, sum(spent.values())

    def end(self, spent: dict[str, float]) -> None:
        """The batch is ready."""
        now = self._now()
        self.seconds |= spent
        self.seconds["rest"] += now - self._begun - (sum(spent.values()) - self._inside)
        self._learning_since = now

    def shares(self) -> dict[str, float]:
        """Of all seconds so far."""
        total = sum(self.seconds.values()) or 1.0
        return {f"time_{name}": value / total for name, value in self.seconds.items()}

    def _now(self) -> float:
        """Seconds without evaluations and checkpoints."""
        other = self.stage.clock.seconds
        return time.perf_counter() - other["eval"] - other["checkpoint"]
