"""Turn a set of answers into a queue of updates, and an update into rows per process.

The queue is plain JSON in a checkpoint, so a stage that stops between two updates on one set resumes with the second,
with the same numbers as without the stop. Time is also counted here: for generating answers, checking them, learning,
and everything else.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from puna.tune.rows.packing import EMPTY, Answer, AnswerGroup, AnswerRows, collate, split
from puna.tune.stage import Stage


@dataclass
class Update:
    """The problems of one optimizer step, over all processes.

    fresh: no update has been made since they were generated. notes: what to log with it.
    """

    groups: list[AnswerGroup]
    fresh: bool
    notes: dict[str, float]

    @property
    def answers(self) -> int:
        """Number of answers that have a token to learn from."""
        return sum(
            times
            for group in self.groups
            for answer, times in zip(group.answers, group.times, strict=True)
            if any(answer.mask)
        )

    @property
    def tokens(self) -> int:
        """Number of tokens that the model chose."""
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
        """Restore what `plain` returned."""
        groups = [
            AnswerGroup(one["prompt"], [Answer(**answer) for answer in one["answers"]], one["advantages"], one["times"])
            for one in plain["groups"]
        ]
        return cls(groups, plain["fresh"], plain["notes"])


@dataclass(frozen=True)
class MicroBatch:
    """The input of `Objective.loss`: rows of this process and counts of the update.

    Also has notes for the log.
    """

    rows: AnswerRows
    answers: int
    tokens: int
    fresh: bool
    first: bool
    """Whether it is the first of the update."""
    notes: dict[str, float]


def plan_updates(
    groups: Sequence[AnswerGroup], *, count: int, epochs: int, seed: str, notes: dict[str, float]
) -> list[Update]:
    """Plan `count` updates of about equal size, `epochs` times, in an order from `seed`.

    Size is the number of problems.
    """
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
    """This process's micro-batches; every process has the same number."""
    rank, ranks, at_once = stage.world.data_rank, stage.world.data_size, stage.share.rows
    rows = split(update.groups, stage.recipe.train.seq_len)
    steps = -(-len(rows) // (ranks * at_once))
    batches = []
    for step in range(steps):
        # Sort by length and distribute in turn, so that the rows of a micro-batch, and processes, have similar lengths.
        here = rows[step * ranks * at_once :][rank : ranks * at_once : ranks]
        # A measure is summed over processes, and each of them has the same names.
        notes = {name: value / ranks for name, value in update.notes.items()} if not step else {}
        batches.append(
            MicroBatch(
                collate(here or [EMPTY], stage.device), update.answers, update.tokens, update.fresh, not step, notes
            )
        )
    return batches


class TimeBreakdown:
    """Seconds of steps by use: generation, reward, learning (forward, backward, update), rest."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.seconds = {"generation": 0.0, "reward": 0.0, "learning": 0.0, "rest": 0.0}
        self._learning_since: float | None = None
        self._begun = self._inside = 0.0

    def begin(self, spent: dict[str, float]) -> None:
        """Called when a batch is requested: the time since the last one was learning.

        spent: the collector's counters.
        """
        now = self._now()
        if self._learning_since is not None:
            self.seconds["learning"] += now - self._learning_since
            self._learning_since = None
        self._begun, self._inside = now, sum(spent.values())

    def end(self, spent: dict[str, float]) -> None:
        """Called when the batch is ready."""
        now = self._now()
        self.seconds |= spent
        self.seconds["rest"] += now - self._begun - (sum(spent.values()) - self._inside)
        self._learning_since = now

    def shares(self) -> dict[str, float]:
        """Shares of the total time so far."""
        total = sum(self.seconds.values()) or 1.0
        return {f"time_{name}": value / total for name, value in self.seconds.items()}

    def _now(self) -> float:
        """Seconds, excluding evaluations and checkpoints."""
        other = self.stage.clock.seconds
        return time.perf_counter() - other["eval"] - other["checkpoint"]
