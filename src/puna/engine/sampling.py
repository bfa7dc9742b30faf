"""Sampling: penalties, bias, grammar, greedy choice, temperature, top-k, top-p, min-p.

Each sequence draws one uniform number per token from its own generator and takes the token at that point of the
cumulative distribution. The result of a seed therefore depends neither on the other requests in the batch nor on the
device's random generator. Penalties come first, then the bias, then the grammar, which overrides both; filters follow
in transformers' order: temperature, top-k, top-p (arXiv 1904.09751), min-p (arXiv 2407.01082).
"""

import math
import random
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.engine.device_copy import to_device
from puna.engine.grammar import Grammar


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request. Raises PunaError for invalid values."""

    max_tokens: int = 256
    """Maximum number of generated tokens; 0, with prompt_logprobs, only scores the prompt."""
    temperature: float = 1.0
    """0 is greedy: always the most likely token."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Sample from the most likely tokens that together have this probability."""
    min_p: float = 0.0
    """Sample from tokens at least this fraction as likely as the most likely one."""
    seed: int | None = None
    """The same seed gives the same tokens; None: a random seed."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not included in it."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the text, in addition to the model's own end tokens."""
    ignore_end: bool = False
    """The model's own end tokens do not end the text; they may still be generated."""
    n: int = 1
    """Number of sequences; the i-th uses seed + i. The prompt is computed once for all."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in the prompt or the output (arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the output."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for each of its occurrences in the output."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    grammar: Grammar | None = None
    """A grammar the text must obey; it ends where the grammar does."""
    grammar_after: int | None = None
    """Apply the grammar only after the first token with this id (such as that of </think>); None: from the start."""
    top_logprobs: int = 0
    """Return, with each token, the log probabilities of this many most likely tokens."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; 0: only those of the tokens themselves, None: none."""
    prompt_logprobs_from: int = 1
    """Score the prompt's tokens from this one on; those before may then come from the prefix cache."""

    def __post_init__(self) -> None:
        scored = self.prompt_logprobs is not None
        _require(self.max_tokens >= (0 if scored else 1), f"max_tokens = {self.max_tokens} is below {int(not scored)}.",
                 "Ask for at least one token; 0 goes with prompt_logprobs.")  # fmt: skip
        _require(0 <= self.temperature < float("inf"), f"temperature = {self.temperature} is not a number from 0 up.",
                 "0 is greedy, 1 is the model's own distribution.")  # fmt: skip
        _require(self.top_k >= 0, f"top_k = {self.top_k} is negative.", "0 keeps all tokens.")
        _require(0 < self.top_p <= 1, f"top_p = {self.top_p} is not in (0, 1].", "1 keeps all tokens.")
        _require(0 <= self.min_p <= 1, f"min_p = {self.min_p} is not in [0, 1].", "0 keeps all tokens.")
        _require(not isinstance(self.stop, str), f"stop = {self.stop!r} is one string.", "Give a list of strings.")
        _require(all(self.stop), "A stop string is empty.", "It would end every text at once; leave it out.")
        _require(self.n >= 1, f"n = {self.n} is below 1.", "Ask for at least one sequence.")
        _require(0 < self.repetition_penalty < float("inf"),
                 f"repetition_penalty = {self.repetition_penalty} is not above 0.", "1 changes nothing.")  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(math.isfinite(value), f"{name} = {value} is not a number.", "0 changes nothing.")
        bad = next((token for token, bias in self.logit_bias.items() if not math.isfinite(bias)), None)
        _require(bad is None, f"logit_bias of token {bad} is not a number.", "Give a finite number, such as -100.")
        _require(self.top_logprobs >= 0, f"top_logprobs = {self.top_logprobs} is negative.", "0 gives none.")
        _require((self.prompt_logprobs or 0) >= 0, f"prompt_logprobs = {self.prompt_logprobs} is negative.",
                 "0 gives those of the prompt's own tokens.")  # fmt: skip
        _require(self.prompt_logprobs_from >= 1, f"prompt_logprobs_from = {self.prompt_logprobs_from} is below 1.",
                 "The first token of a prompt has no probability.")  # fmt: skip

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is sampled."""
        return bool(self.logit_bias or self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @property
    def looks_back(self) -> bool:
        """Whether sampling depends on earlier tokens by more than the logits: penalties, a grammar."""
        penalties = self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty
        return bool(penalties or self.grammar is not None)

    def uniforms(self, index: int = 0) -> random.Random:
        """The generator of uniform numbers of the index-th sequence."""
        return random.Random(secrets.randbits(64) if self.seed is None else self.seed + index)


class History(NamedTuple):
    """The tokens that penalties apply to."""

    prompt: Sequence[int]
    output: Sequence[int]


class Constraint(NamedTuple):
    """The tokens that some rows are limited to."""

    rows: Sequence[int]
    allowed: Tensor
    """bool (rows, vocab), at least one in each row."""


def sample(
    logits: Tensor,
    params: Sequence[SamplingParams],
    uniforms: Sequence[float],
    histories: Sequence[History] | None = None,
    constraint: Constraint | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample the next token of each row. logits: (rows, vocab); uniforms: one number in [0, 1) per row.

    histories: one per row, if any row's parameters adjust logits; constraint: what grammars allow. Returns (ids,
    logprobs), both (rows,); a logprob is that of the model's own distribution, before penalties, bias, grammar and
    filters.
    """
    logits = logits.float()
    target = adjusted(logits, params, histories) if histories and any(p.adjusts for p in params) else logits
    if constraint is not None:
        target = _constrained(target, constraint)
    greedy = [p.temperature == 0 for p in params]
    if all(greedy):
        ids = target.argmax(-1)
    else:
        # In float64, because a float32 sum over 128k tokens loses the tail.
        cumulative = probabilities(target, params).cumsum(-1, dtype=torch.float64)
        point = _column(uniforms, logits, torch.float64) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
        if any(greedy):
            ids = torch.where(to_device(greedy, logits.device), target.argmax(-1), ids)
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    return ids, logprobs


def adjusted(logits: Tensor, params: Sequence[SamplingParams], histories: Sequence[History]) -> Tensor:
    """A copy of the logits (rows, vocab) with each row's penalties and bias applied."""
    logits = logits.clone()
    for row, p, history in zip(logits, params, histories, strict=True):
        if p.repetition_penalty != 1:
            seen = _ids({*history.prompt, *history.output}, row)
            old = row[seen]
            row[seen] = torch.where(old > 0, old / p.repetition_penalty, old * p.repetition_penalty)
        if (p.presence_penalty or p.frequency_penalty) and history.output:
            seen, count = _ids(history.output, row).unique(return_counts=True)
            row[seen] -= p.presence_penalty + p.frequency_penalty * count
        if p.logit_bias:  # ids are within the vocabulary: the engine rejected others
            row[_ids(p.logit_bias, row)] += torch.tensor(list(p.logit_bias.values()), device=row.device)
    return logits


def _constrained(logits: Tensor, constraint: Constraint) -> Tensor:
    logits, rows = logits.clone(), torch.tensor(constraint.rows, device=logits.device)
    logits[rows] = logits[rows].masked_fill(~constraint.allowed.to(logits.device), float("-inf"))
    return logits


def gather_logprobs(logits: Tensor, ids: Sequence[int], count: int) -> list[list[tuple[int, float]]]:
    """Per row of logits (rows, vocab): (id, logprob) of its token in `ids`, then of the `count` most likely tokens."""
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(-1, torch.tensor(ids, device=logits.device)[:, None])
    values, best = logprobs.topk(min(count, logits.shape[-1]))
    rows = zip(ids, own.flatten().tolist(), best.tolist(), values.tolist(), strict=True)
    return [[(id, logprob), *zip(tops, top_logprobs, strict=True)] for id, logprob, tops, top_logprobs in rows]


def probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The distribution each row is sampled from, (rows, vocab); filtered tokens are 0, the rest is not rescaled.

    Rows with temperature 0 stay at temperature 1: their sample is not used.
    """
    # Subtract the largest logit and bound temperatures from below, so that a tiny one cannot overflow.
    temperature = _column([max(p.temperature, 1e-6) if p.temperature else 1.0 for p in params], logits)
    logits = logits - logits.amax(-1, keepdim=True)
    probs = (logits / temperature).softmax(-1)
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered * (rank < _column([p.top_k or logits.shape[-1] for p in params], logits))
        before = ordered.cumsum(-1) - ordered  # probability of all more likely tokens
        enough = _column([p.top_p for p in params], logits) * ordered.sum(-1, keepdim=True)
        # The most likely token always stays; top_p = 1 must not cut because of a rounding error.
        keep = (before < enough) | (rank == 0) | (_column([p.top_p for p in params], logits) == 1)
        probs = torch.zeros_like(probs).scatter_(-1, index, ordered * keep)
    if any(p.min_p > 0 for p in params):
        floor = _column([p.min_p for p in params], logits) * probs.amax(-1, keepdim=True)
        probs = probs * (probs >= floor)
    return probs


def _ids(tokens: Iterable[int], row: Tensor) -> Tensor:
    """The tokens that the row has a logit for: a padded embedding has more ids than can be generated."""
    return torch.tensor([token for token in tokens if token < len(row)], dtype=torch.long, device=row.device)


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return to_device(values, like.device, dtype)[:, None]


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise PunaError(message, hint)
