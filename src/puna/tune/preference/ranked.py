"""Ranked answers as tokens and as rows, for all stages that learn from preferences.

Answers to one prompt share a row where they fit, as in `tune.rows.packing`: the prompt is computed once, and each
answer attends to it and to itself. The preferences of a step are a function of the seed and the step.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from puna.core.errors import PunaError
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from puna.tune.rows.dialogues import Message
from puna.tune.rows.packing import Answer, Row

T = TypeVar("T")


@dataclass(frozen=True)
class Ranked:
    """A prompt's ids and its answers, best first.

    `good` is for an answer that is labelled without a pair.
    """

    prompt: list[int]
    answers: list[Answer]
    good: bool = True

    def rows(self, seq_len: int) -> list[Row]:
        """One row for all answers if they fit, otherwise one row per answer, in order."""
        answers = [(answer, 0.0, 1) for answer in self.answers]
        if len(self.prompt) + sum(len(answer.ids) for answer in self.answers) <= seq_len:
            return [Row(self.prompt, answers)]
        return [Row(self.prompt, [answer]) for answer in answers]


def ranked_of(
    prompt: Sequence[Message],
    answers: Sequence[Sequence[Message]],
    tools: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    drop: bool = False,
    good: bool = True,
) -> Ranked | None:
    """Tokenize a prompt and its answers, truncated to `seq_len`, or dropped with `drop`.

    The length includes the prompt. None when it is dropped, the prompt leaves no room, or two answers are equal after
    truncation.
    """
    head = render(prompt, tokenizer, tools=tools or None, add_generation_prompt=True).ids
    room = seq_len - len(head)
    made = []
    for answer in answers:
        ids, mask = render([*prompt, *answer], tokenizer, tools=tools or None)
        assert ids[: len(head)] == head, "the renderer guarantees that a prompt is a prefix"
        ids, mask = ids[len(head) :], mask[len(head) :]
        if room < 1 or (drop and len(ids) > room):
            return None
        made.append(Answer(ids[:room], mask[:room], [0.0] * min(room, len(ids)), len(ids) <= room))
    if len({tuple(answer.ids) for answer in made}) < len(made):
        return None
    return Ranked(head, made, good)


def formatting(tokenizer: Tokenizer) -> list[int]:
    """Ids of formatting tokens: headers and end tokens, but not markers such as <think>."""
    return [id for id in tokenizer.special.values() if not tokenizer.token_bytes(id)]


def split_heldout(items: Sequence[T], share: float, key: Callable[[T], object]) -> tuple[list[T], list[T]]:
    """Split into (training, held out) by a hash of `key`, so that equal prompts are on one side."""

    def place(item: T) -> float:
        text = json.dumps(key(item), sort_keys=True, ensure_ascii=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64

    return [item for item in items if place(item) >= share], [item for item in items if place(item) < share]


def read_ranked(
    files: Sequence[str],
    read: Callable[[Path], list[T]],
    to_ids: Callable[[T], Ranked | None],
    heldout: float,
    key: Callable[[T], object],
) -> tuple[list[Ranked], list[Ranked], list[str]]:
    """Read preference files: (training, held out, notes).

    Raises PunaError when no preference is usable.
    """
    found = [item for name in files for item in read(Path(name))]
    sides = split_heldout(found, heldout, key)
    train, apart = ([ranked for item in side if (ranked := to_ids(item)) is not None] for side in sides)
    if not train:
        raise PunaError(
            f"None of the {len(found)} preferences can be used: all are held out or too long.",
            "Raise train.seq_len, or lower data.heldout.",
        )
    left_out = len(found) - len(train) - len(apart)
    cut = sum(not answer.ended for ranked in (*train, *apart) for answer in ranked.answers)
    notes = [f"{len(train):,} preferences to learn from, {len(apart):,} held out"]
    notes += [f"{left_out:,} left out: too long, or equal after truncation"] if left_out else []
    notes += [f"{cut:,} answers are truncated at the end of a row"] if cut else []
    return train, apart, notes


def numbers_of_step(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The items of step `step` out of `count`: passes over all of them, each in its own order."""
    places = [divmod(place, count) for place in range(step * batch, (step + 1) * batch)]
    return [_order(count, seed, epoch)[index] for epoch, index in places]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"ranked/{seed}/{epoch}").shuffle(order)
    return order
