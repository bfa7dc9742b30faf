"""Lay out answers for the trainer: a problem and several answers share a row.

As many answers as fit share it, each attending only to the problem and itself.

    prompt | answer 1 | answer 2 | ... answer G | padding

The prompt is computed once instead of once per answer: if answers are shorter than problems, as in most of Puna's
tasks, a step takes a third of the time. An answer's tokens attend to the prompt and to their own beginning, at the
positions they had when they were generated, so the results are those of each answer on its own. Equal answers are
computed once and weighted by how often they occurred: a confident model generates few different ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from puna.core.errors import PunaError
from puna.model.llama import DocumentMask

Ids = list[int]


@dataclass(frozen=True)
class Answer:
    """A model's answer to a problem: everything after the prompt.

    mask: 1 where the model chose the token, 0 for inserted tokens (tool results, headers). logprobs: of each token
    under the policy that generated it, 0 where the mask is 0. ended: by an end token, not by the limit.
    """

    ids: Ids
    mask: list[int]
    logprobs: list[float]
    ended: bool


@dataclass(frozen=True)
class AnswerGroup:
    """A problem's prompt, its answers, their advantages, and how often each occurred.

    `grouped` creates groups.
    """

    prompt: Ids
    answers: list[Answer]
    advantages: list[float]
    times: list[int]


def grouped(prompt: Ids, answers: Sequence[Answer], advantages: Sequence[float]) -> AnswerGroup:
    """Build a group, merging equal answers with equal advantages.

    A merged answer has the log probabilities of the first.
    """
    group = AnswerGroup(prompt, [], [], [])
    places: dict[tuple[object, ...], int] = {}
    for answer, advantage in zip(answers, advantages, strict=True):
        key = (tuple(answer.ids), tuple(answer.mask), answer.ended, advantage)
        if key in places:
            group.times[places[key]] += 1
            continue
        places[key] = len(group.answers)
        group.answers.append(answer)
        group.advantages.append(advantage)
        group.times.append(1)
    return group


@dataclass(frozen=True)
class AnswerRows:
    """A micro-batch on the device. tokens: those that the model chose, concatenated.

    ids, positions: (rows, width). visible: bool (rows, 1, width, width), or None if each row has one answer.
    source: (tokens,) position in the flattened rows that predicted the token. target: (tokens,) its id.
    answer, place: (tokens,) its answer within the micro-batch, and its index among that answer's chosen tokens.
    mask, old_logprobs: (answers, longest). advantage, times: (answers,).
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor | None
    source: Tensor
    target: Tensor
    answer: Tensor
    place: Tensor
    mask: Tensor
    old_logprobs: Tensor
    advantage: Tensor
    times: Tensor

    def document_mask(self) -> DocumentMask | None:
        """The attention mask for the network."""
        return None if self.visible is None else DocumentMask(self.visible, None, self.ids.shape[1])

    def matrix(self, values: Tensor) -> Tensor:
        """Arrange values of tokens (tokens,) as (answers, longest), 0 where there is no token."""
        return values.new_zeros(self.mask.shape).index_put((self.answer, self.place), values)


@dataclass(frozen=True)
class Row:
    """The contents of one row: a prompt and answers, each with its advantage and count."""

    prompt: Ids
    answers: list[tuple[Answer, float, int]]

    @property
    def width(self) -> int:
        """Its tokens."""
        return len(self.prompt) + sum(len(answer.ids) for answer, _, _ in self.answers)


EMPTY = Row([0], [])
"""A row without a learning signal, for a process that has no other: all take part in every step."""


def split(groups: Sequence[AnswerGroup], seq_len: int) -> list[Row]:
    """Split groups into rows of at most `seq_len` tokens, longest first.

    Answers without chosen tokens are left out. Raises PunaError when a problem with one answer does not fit.
    """
    rows = []
    for group in groups:
        row = Row(group.prompt, [])
        for answer, advantage, times in zip(group.answers, group.advantages, group.times, strict=True):
            if not any(answer.mask):
                continue
            if len(group.prompt) + len(answer.ids) > seq_len:
                raise PunaError(
                    f"A problem of {len(group.prompt)} tokens with an answer of {len(answer.ids)} does not fit into "
                    f"rows of train.seq_len = {seq_len}.",
                    "Raise train.seq_len, or lower rollout.max_tokens.",
                )
            if row.width + len(answer.ids) > seq_len:
                rows.append(row)
                row = Row(group.prompt, [])
            row.answers.append((answer, advantage, times))
        if row.answers:
            rows.append(row)
    return sorted(rows, key=lambda row: -row.width)


def collate(rows: Sequence[Row], device: torch.device | str = "cpu") -> AnswerRows:
    """Create the tensors of a micro-batch."""
    width = max(row.width for row in rows)
    ids, positions, branches = [], [], []
    source: list[int] = []
    target: list[int] = []
    answer_of: list[int] = []
    place: list[int] = []
    old: list[list[float]] = []
    advantages: list[float] = []
    often: list[float] = []
    for number, row in enumerate(rows):
        row_ids, row_positions, row_branches = list(row.prompt), list(range(len(row.prompt))), [0] * len(row.prompt)
        for own, (answer, advantage, times) in enumerate(row.answers, 1):
            start = len(row_ids)
            chosen = [at for at, learn in enumerate(answer.mask) if learn]
            # The first token of an answer was predicted by the last token of the prompt.
            source += [number * width + (start + at - 1 if at else len(row.prompt) - 1) for at in chosen]
            target += [answer.ids[at] for at in chosen]
            answer_of += [len(advantages)] * len(chosen)
            place += range(len(chosen))
            old.append([answer.logprobs[at] for at in chosen])
            advantages.append(advantage)
            often.append(float(times))
            row_ids += answer.ids
            row_positions += range(len(row.prompt), len(row.prompt) + len(answer.ids))
            row_branches += [own] * len(answer.ids)
        rest = width - len(row_ids)
        ids.append(row_ids + [0] * rest)
        positions.append(row_positions + [0] * rest)
        branches.append(row_branches + [-1] * rest)
    longest = max((len(one) for one in old), default=0)
    visible = None
    if any(len(row.answers) > 1 for row in rows):
        branch = torch.tensor(branches)  # (rows, width)
        seen = (branch[:, :, None] == branch[:, None, :]) | (branch[:, None, :] == 0)
        visible = seen.tril()[:, None].to(device, non_blocking=True)

    def whole(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)

    def real(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).to(device, non_blocking=True)

    padded = [one + [0.0] * (longest - len(one)) for one in old]
    mask = [[1.0] * len(one) + [0.0] * (longest - len(one)) for one in old]
    return AnswerRows(
        ids=whole(ids),
        positions=whole(positions),
        visible=visible,
        source=whole(source),
        target=whole(target),
        answer=whole(answer_of),
        place=whole(place),
        mask=real(mask).view(len(old), longest),
        old_logprobs=real(padded).view(len(old), longest),
        advantage=real(advantages),
        times=real(often),
    )


def token_logprobs(
    hidden: Tensor, weight: Tensor, source: Tensor, target: Tensor, chunk: int = 1024
) -> tuple[Tensor, Tensor]:
    """Log probability of each target and entropy of its distribution.

    Both are (tokens,) float32, in nats. hidden: (..., hidden_size), flattened before `source` (tokens,) selects from
    it; weight: (vocab, hidden_size); target: (tokens,). chunk: tokens whose logits exist at once (0: all); with more
    than one chunk, each is recomputed in backward. The entropy has no gradient.
    """
    picked = hidden.flatten(0, -2)[source]
    if not chunk or len(target) <= chunk:
        return _logprobs(picked, weight, target)
    parts = [
        checkpoint(_logprobs, h, weight, t, use_reentrant=False)
        for h, t in zip(picked.split(chunk), target.split(chunk), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _logprobs(hidden: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = (hidden @ weight.to(hidden.dtype).T).float().log_softmax(-1)  # (tokens, vocab)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, target[:, None]).squeeze(-1), entropy
