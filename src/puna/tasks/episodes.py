"""The loop in which a model works on problems: in a single message or, with tools, in several turns.

Rollouts, measuring and benchmarks all go through `run_attempts`. The caller generates: it is given the attempts that
wait for a turn and returns what was generated, so nothing here needs torch. All attempts that are not finished are
continued together. Ids that the model generated are never decoded and encoded again: the next prompt contains them as
they are.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from puna.tasks.contract import Problem, Task, Verdict, refused
from puna.tasks.tools import Episode, RunCode
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from puna.engine.request import Completion


class Turn(NamedTuple):
    """What the model generated, and the prompt ids that it continued."""

    prompt: list[int]
    written: "Completion"


class Attempt:
    """One answer to one problem: a single message, or up to `turns` messages if the task has tools.

    prompt: the ids that the model continues next. turns: what it has generated so far. max_tokens: of one turn. seed:
    the source of random numbers; `sample` tells attempts with the same seed apart.
    """

    def __init__(
        self,
        task: Task,
        problem: Problem,
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        seed: int = 0,
        sample: int = 0,
        instruct: bool = False,
        turns: int = 8,
        run_code: RunCode | None = None,
    ) -> None:
        self.task, self.problem, self.max_tokens, self.seed, self.sample = task, problem, max_tokens, seed, sample
        self._tokenizer = tokenizer
        self._episode = (
            Episode(task, problem, instruct=instruct, turns=turns, run_code=run_code) if task.tools else None
        )
        self._messages: list[dict[str, Any]] = (
            self._episode.messages if self._episode else [*problem.messages(task.instruction if instruct else "")]
        )
        self._asked = len(self._messages)
        self.turns: list[Turn] = []
        self.prompt = self._rendered()

    @property
    def turn_seed(self) -> int:
        """The seed of the next turn. In the first turn the engine itself counts up from sample to sample."""
        return seed_of(self.seed, self.sample, len(self.turns)) if self.turns else self.seed

    @property
    def done(self) -> bool:
        """Whether the attempt is finished."""
        return self._episode.done if self._episode else bool(self.turns)

    @property
    def text(self) -> str:
        """The text that the model generated last."""
        return self.turns[-1].written.text if self.turns else ""

    @property
    def ended(self) -> bool:
        """Whether the last text ended by itself instead of at the length limit."""
        return bool(self.turns) and self.turns[-1].written.finish_reason == "stop"

    @property
    def transcript(self) -> list[dict[str, Any]]:
        """All messages after the prompt, including tool results."""
        return self._messages[self._asked :]

    @property
    def verdict(self) -> Verdict | None:
        """The verdict of an episode with tools. None for a single answer, which the caller checks."""
        if self._episode is None:
            return None
        return self._episode.verdict or refused("There was no room for another turn.")

    def add_turn(self, written: "Completion") -> None:
        """Add the model's turn and answer its tool calls. Raises PunaError as `Episode.step`."""
        self.turns.append(Turn(self.prompt, written))
        if self._episode is None:
            self._messages.append({"role": "assistant", "content": written.text})
            return
        self._episode.step(written.text, written.ids)
        if not self._episode.done:
            self.prompt = self._rendered()

    def _rendered(self) -> list[int]:
        tools = self._episode.tools if self._episode else None
        return render(self._messages, self._tokenizer, tools=tools, add_generation_prompt=True).ids


Group = Sequence[Attempt]
"""Attempts at one problem from one seed, in the order of their `sample`."""


def run_attempts(
    groups: Sequence[Group],
    write: Callable[[Sequence[Group]], Iterable["Completion"]],
    *,
    longest: int,
    on_finished: Callable[[Attempt], None] | None = None,
) -> None:
    """Continue all attempts, turn by turn, until each is finished or its prompt has `longest` tokens.

    write: returns len(group) continuations of group[0].prompt for each group, drawn from group[0].turn_seed, in the
    order of the groups, as `Engine.generate` does. In the first turn the attempts of a group share one prompt.
    on_finished: called with each finished attempt, while `write` may still be generating others.
    Raises what `write` and `Attempt.add_turn` raise.
    """
    waiting = groups
    while waiting:
        attempts = [attempt for group in waiting for attempt in group]
        for attempt, written in zip(attempts, write(waiting), strict=True):
            attempt.add_turn(written)
            if on_finished and attempt.done:
                on_finished(attempt)
        waiting = [[attempt] for attempt in attempts if not attempt.done and len(attempt.prompt) < longest]


def seed_of(*parts: object) -> int:
    """Return a seed below 2**62 that depends on all parts and nothing else."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2
