"""From logits to the next token: greedy, temperature, top-k, top-p, min-p.

Each request draws one uniform number per token from a generator of its own and takes the token at that point of the
cumulative distribution. So what a seed gives depends neither on the other requests of the batch nor on the device's
random generator. Filters apply in transformers' order: temperature, top-k, top-p (arXiv 1904.09751), min-p (arXiv
2407.01082).
"""

import random
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.core.errors import PunaError


@dataclass(frozen=True)
class SamplingParams:
    """How one request is continued. Raises PunaError for values that mean nothing."""

    max_tokens: int = 256
    temperature: float = 1.0
    """0 is greedy: always the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together hold this probability."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the likeliest."""
    seed: int | None = None
    """The same seed gives the same tokens; None: another every time."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the text, besides the model's own end tokens."""

    def __post_init__(self) -> None:
        _require(self.max_tokens >= 1, f"max_tokens = {self.max_tokens} is below 1.", "Ask for at least one token.")
        _require(0 <= self.temperature < float("inf"), f"temperature = {self.temperature} is not a number from 0 up.",
                 "0 is greedy, 1 is the model's own distribution.")  # fmt: skip
        _require(self.top_k >= 0, f"top_k = {self.top_k} is negative.", "0 keeps all tokens.")
        _require(0 < self.top_p <= 1, f"top_p = {self.top_p} is not in (0, 1].", "1 keeps all tokens.")
        _require(0 <= self.min_p <= 1, f"min_p = {self.min_p} is not in [0, 1].", "0 keeps all tokens.")
        _require(not isinstance(self.stop, str), f"stop = {self.stop!r} is one string.", "Give a list of strings.")
        _require(all(self.stop), "A stop string is empty.", "It would end every text at once; leave it out.")

    def uniforms(self) -> random.Random:
        """The request's own source of uniform numbers."""
        return random.Random(secrets.randbits(64) if self.seed is None else self.seed)


def sample(logits: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Choose the next token of each row. logits: (rows, vocab); uniforms: one number in [0, 1) per row.

    Returns (ids, logprobs), both (rows,); a logprob is that of the model's own distribution, before any filter.
    """
    logits = logits.float()
    ids = logits.argmax(-1)
    if any(p.temperature > 0 for p in params):
        # In float64, as a float32 sum over 128k tokens loses the tail.
        cumulative = probabilities(logits, params).cumsum(-1, dtype=torch.float64)
        point = _column(uniforms, logits, torch.float64) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True).squeeze(-1).clamp_max(logits.shape[-1] - 1)
        greedy = torch.tensor([p.temperature == 0 for p in params], device=logits.device)
        ids = torch.where(greedy, ids, drawn)
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
    return ids, logprobs


def probabilities(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The distribution each row is drawn from, (rows, vocab); filtered tokens are 0 and the rest is not rescaled.

    Rows with temperature 0 are left at temperature 1: their draw is not used.
    """
    # The largest logit becomes 0 and temperatures have a floor, so that a tiny one cannot overflow.
    temperature = _column([max(p.temperature, 1e-6) if p.temperature else 1.0 for p in params], logits)
    logits = logits - logits.amax(-1, keepdim=True)
    probs = (logits / temperature).softmax(-1)
    if any(p.top_k > 0 or p.top_p < 1 for p in params):
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered * (rank < _column([p.top_k or logits.shape[-1] for p in params], logits))
        before = ordered.cumsum(-1) - ordered  # probability of all likelier tokens
        enough = _column([p.top_p for p in params], logits) * ordered.sum(-1, keepdim=True)
        # The likeliest token always stays; top_p = 1 must not cut at a rounding error.
        keep = (before < enough) | (rank == 0) | (_column([p.top_p for p in params], logits) == 1)
        probs = torch.zeros_like(probs).scatter_(-1, index, ordered * keep)
    if any(p.min_p > 0 for p in params):
        floor = _column([p.min_p for p in params], logits) * probs.amax(-1, keepdim=True)
        probs = probs * (probs >= floor)
    return probs


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)[:, None]


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise PunaError(message, hint)
