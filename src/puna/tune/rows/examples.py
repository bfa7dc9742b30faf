"""Turn dialogues into rows: the next example, its counted tokens, and the packing.

Sources are files of dialogues and demonstrations of tasks. Example number i of a source is a function of the seed and
i, and the mixture draws sources by their shares, so the complete state is a few integers. Rows are filled by best fit:
each starts with the example that has waited longest and takes the longest one that still fits, until none does.
Examples of a row do not see each other (document mask). Loss masks come from the renderer, not from this module.
"""

import hashlib
import json
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from puna.core.errors import DataError, PunaError
from puna.tasks.catalogue import find
from puna.tasks.contract import Problem, Task
from puna.tasks.heldout import training_problem
from puna.tasks.tools import SCHEMAS, calls_in, first_call
from puna.text.chat import render
from puna.text.tokenizer import Tokenizer
from puna.train.loss import IGNORE
from puna.tune.rows.dialogues import Dialogue, Message, read_dialogues
from puna.tune.sft.recipe import SFTDataConfig

# Tokens waiting to be packed, in batches. With 1.25, 96 to 99 % of the positions were used (demonstrations in rows of
# 128 to 512, Dolly in rows of 1024); 4 did not improve that (2026-11-25).
_WAITING = 1.25
_UNLUCKY = 1000  # this many unusable examples in a row are an error


class Example(NamedTuple):
    """inputs: (tokens,).

    targets: (tokens,), the next token where the model should learn it, otherwise -100.
    """

    inputs: list[int]
    targets: list[int]
    truncated: bool = False


class PackedRows(NamedTuple):
    """ids, targets, documents: (rows, seq_len).

    Each example, and the padding, has its own document number.
    """

    ids: Tensor
    targets: Tensor
    documents: Tensor


def example_of(dialogue: Dialogue, tokenizer: Tokenizer, longest: int, *, drop: bool = False) -> Example | None:
    """Tokenize a dialogue, truncated to `longest` tokens, or dropped with `drop`.

    Returns inputs and targets. None when it is dropped, or when nothing of it is to be learned. Raises PunaError naming
    the dialogue's row.
    """
    try:
        ids, mask = render(dialogue.messages, tokenizer, tools=dialogue.tools or None)
    except PunaError as error:
        raise DataError(f"{dialogue.where}: {error}" if dialogue.where else str(error)) from None
    inputs, targets = ids[:-1], [token if learn else IGNORE for token, learn in zip(ids[1:], mask[1:], strict=True)]
    truncated = len(inputs) > longest
    if truncated and drop:
        return None
    inputs, targets = inputs[:longest], targets[:longest]
    if all(target == IGNORE for target in targets):
        return None
    return Example(inputs, targets, truncated)


def demonstration(task: Task, problem: Problem, *, instruct: bool = False) -> Dialogue:
    """The reference answer to a problem; for tasks with tools, preceded by the tool call."""
    messages: list[Message] = [*problem.messages(task.instruction if instruct else "")]
    tools = [SCHEMAS[name] for name in task.tools]
    if tools:
        calls = [call for call in calls_in(first_call(problem.data)) if not isinstance(call, str)]
        messages.append(
            {"role": "assistant", "tool_calls": [{"name": name, "arguments": given} for name, given in calls]}
        )
        messages.append({"role": "tool", "content": str(problem.data["answer"])})
    messages.append({"role": "assistant", "content": task.solution(problem)})
    return Dialogue(messages, tools, f"{task.name}, level {problem.level}, seed {problem.seed}")


class Source(NamedTuple):
    """dialogue: number -> dialogue. size: number of different dialogues, None if unlimited."""

    name: str
    share: float
    size: int | None
    dialogue: Callable[[int], Dialogue]


def sources_of(data: SFTDataConfig, seed: int) -> tuple[list[Source], list[Dialogue]]:
    """The sources of a recipe, and the held-out dialogues of its files.

    Raises PunaError for missing files, unknown tasks, and invalid rows.
    """
    sources: list[Source] = []
    heldout: list[Dialogue] = []
    for file in data.files:
        dialogues = read_dialogues(Path(file.path))
        apart = [dialogue for dialogue in dialogues if _share_of(dialogue) < data.heldout]
        kept = [dialogue for dialogue in dialogues if _share_of(dialogue) >= data.heldout]
        if not kept:
            raise DataError(f"{file.path}: all its dialogues are held out.", "Lower data.heldout.")
        heldout += apart
        sources.append(Source(file.path, file.share, len(kept), _shuffled(kept, f"{seed}/{len(sources)}")))
    for entry in data.tasks:
        task = find(entry.name)
        for level in entry.levels:
            task.sample(0, level)  # raises for an unknown level
        sources.append(
            Source(entry.name, entry.share, entry.count or None, _solved(task, entry.levels, entry.count, data, seed))
        )
    return sources, heldout


class Mixture:
    """Draws examples from sources by their shares and packs them into rows."""

    def __init__(self, sources: Sequence[Source], tokenizer: Tokenizer, seq_len: int, *, seed: int, drop: bool) -> None:
        self.sources, self.tokenizer, self.seq_len, self.seed, self.drop = sources, tokenizer, seq_len, seed, drop
        self.drawn = [0] * len(sources)
        self.dropped = 0
        """Number of examples that were left out so far."""
        self._waiting: list[tuple[int, int]] = []  # (source, number)
        self._made: dict[tuple[int, int], Example] = {}

    def rows(self, count: int) -> tuple[list[list[Example]], int]:
        """The examples of the next `count` rows, and how many were truncated.

        Rows have at most `seq_len` tokens.
        """
        while sum(self._length(place) for place in self._waiting) < _WAITING * count * self.seq_len:
            self._waiting.append(self._next())
        packed = best_fit([self._length(place) for place in self._waiting], self.seq_len, count)
        rows = [[self._made[self._waiting[index]] for index in row] for row in packed]
        used = {index for row in packed for index in row}
        self._waiting = [place for index, place in enumerate(self._waiting) if index not in used]
        self._made = {place: self._made[place] for place in self._waiting}
        return rows, sum(example.truncated for row in rows for example in row)

    def state(self) -> dict[str, Any]:
        """All that the next rows depend on in addition to the arguments, as plain JSON."""
        return {"drawn": self.drawn, "dropped": self.dropped, "waiting": [list(place) for place in self._waiting]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises PunaError when it belongs to other sources."""
        if len(state["drawn"]) != len(self.sources):
            raise DataError("The run was started with other data.", "Resume it with its own recipe.")
        self.drawn, self.dropped = list(state["drawn"]), state["dropped"]
        self._waiting, self._made = [(source, number) for source, number in state["waiting"]], {}

    def _length(self, place: tuple[int, int]) -> int:
        if place not in self._made:
            example = self._make(place)
            assert example is not None, "only usable examples are waiting"
            self._made[place] = example
        return len(self._made[place].inputs)

    def _make(self, place: tuple[int, int]) -> Example | None:
        source, number = place
        return example_of(self.sources[source].dialogue(number), self.tokenizer, self.seq_len, drop=self.drop)

    def _next(self) -> tuple[int, int]:
        for _ in range(_UNLUCKY):
            draw = random.Random(f"mixture/{self.seed}/{sum(self.drawn)}")
            source = draw.choices(range(len(self.sources)), [source.share for source in self.sources])[0]
            place = (source, self.drawn[source])
            self.drawn[source] += 1
            example = self._make(place)
            if example is not None:
                self._made[place] = example
                return place
            self.dropped += 1
        names = ", ".join(source.name for source in self.sources)
        raise DataError(
            f"{_UNLUCKY} examples in a row of {names} have nothing to learn in {self.seq_len} tokens.",
            "Raise train.seq_len.",
        )


def best_fit(lengths: Sequence[int], capacity: int, rows: int) -> list[list[int]]:
    """Assign examples to rows: indices into `lengths`, for each of at most `rows` rows.

    Each row starts with the first remaining example and takes the longest one that still fits (the earlier of two with
    the same length) until none does. No length may exceed `capacity`.
    """
    left = sorted((length, -index) for index, length in enumerate(lengths))
    packed: list[list[int]] = []
    for first, length in enumerate(lengths):
        place = bisect_left(left, (length, -first))
        if len(packed) == rows or left[place : place + 1] != [(length, -first)]:
            continue  # already in a row
        row, room = [], capacity
        while place >= 0:
            longest, index = left.pop(place)
            row.append(-index)
            room -= longest
            place = bisect_right(left, (room, 1)) - 1
        packed.append(row)
    return packed


def to_tensors(rows: Sequence[Sequence[Example]], seq_len: int) -> PackedRows:
    """Convert rows of examples to tensors, (rows, seq_len) each, on the CPU.

    Padding has no target.
    """
    ids = torch.zeros(len(rows), seq_len, dtype=torch.int64)
    targets = torch.full_like(ids, IGNORE)
    documents = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        start = 0
        for index, example in enumerate(row, 1):
            stop = start + len(example.inputs)
            ids[number, start:stop] = torch.tensor(example.inputs)
            targets[number, start:stop] = torch.tensor(example.targets)
            documents[number, start:stop] = index
            start = stop
    return PackedRows(ids, targets, documents)


def _share_of(dialogue: Dialogue) -> float:
    """A number in [0, 1) from a dialogue's text, so that copies of it are on the same side."""
    messages = [{key: value for key, value in message.items() if key != "weight"} for message in dialogue.messages]
    text = json.dumps(messages, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _shuffled(dialogues: Sequence[Dialogue], seed: str) -> Callable[[int], Dialogue]:
    """number -> dialogue; every pass over them has its own order."""
    orders: dict[int, list[int]] = {}

    def at(number: int) -> Dialogue:
        epoch, place = divmod(number, len(dialogues))
        if epoch not in orders:
            orders.pop(epoch - 2, None)
            orders[epoch] = list(range(len(dialogues)))
            random.Random(f"{seed}/{epoch}").shuffle(orders[epoch])
        return dialogues[orders[epoch][place]]

    return at


def _solved(task: Task, levels: Sequence[int], count: int, data: SFTDataConfig, seed: int) -> Callable[[int], Dialogue]:
    """number -> demonstration, alternating between the levels."""

    def at(number: int) -> Dialogue:
        problem = training_problem(task, levels[number % len(levels)], number, seed)
        return demonstration(task, problem, instruct=data.instruct)

    if not count:
        return at
    kept = lru_cache(maxsize=count)(at)
    return lambda number: kept(number % count)
