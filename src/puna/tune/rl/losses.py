"""Advantages and policy-gradient losses of reinforcement, computed from groups of answers.

Every answer to a prompt has a reward; its advantage is how much better it was than the others of its group. The loss
then makes its tokens more or less likely. The methods differ in four choices, and each is one argument here:

| kind | advantage | ratio | mean over | paper |
|---|---|---|---|---|
| grpo | reward - mean, over deviation | token | tokens of an answer, then answers | arXiv 2402.03300 |
| dr_grpo | reward - mean | token | answers * longest possible answer | arXiv 2503.20783 |
| dapo | reward - mean, over deviation | token, clipped higher above | all tokens | arXiv 2503.14476 |
| gspo | reward - mean, over deviation | answer, per token | tokens of an answer, then answers | arXiv 2507.18071 |
| rloo | reward - mean of the others | answer | answers | arXiv 2402.14740 |
| reinforce | reward - mean | none | answers | Williams, 1992 |

Functions are pure and sum over the rows they are given: `token_weights` gives each token's weight in the global batch,
so micro-batches and ranks add up to exactly the loss of the global batch. Values agree with TRL's trainers
(tests/tune/golden).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["grpo", "dr_grpo", "dapo", "gspo", "rloo", "reinforce"]
Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["group", "batch", "none"]

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to this: e^20 is far beyond any clipping, and its square is still a float32."""
_EPSILON = 1e-4  # added to a deviation, as in TRL


@dataclass(frozen=True)
class Method:
    """How a kind computes advantages and which ratios are clipped."""

    baseline: Baseline
    scale: Scale
    sequence: bool
    """Whether the ratio is that of a complete answer."""
    clip: tuple[float, float]
    """(low, high): the ratio has a gradient while it is between 1 - low and 1 + high."""


METHODS: dict[Kind, Method] = {
    "grpo": Method("mean", "group", False, (0.2, 0.2)),
    "dr_grpo": Method("mean", "none", False, (0.2, 0.2)),
    "dapo": Method("mean", "group", False, (0.2, 0.28)),
    "gspo": Method("mean", "group", True, (3e-4, 4e-4)),  # the paper's values, for ratios per token
    "rloo": Method("leave_one_out", "none", True, (0.2, 0.2)),
    "reinforce": Method("mean", "none", False, (0.2, 0.2)),
}
"""The choices of each paper."""


def advantages(rewards: Tensor, baseline: Baseline = "mean", scale: Scale = "group") -> Tensor:
    """How much better each answer was than its group, (prompts, samples), as `rewards`.

    rewards: NaN if unknown, for example when a check failed: such an answer is excluded from means and has advantage 0.
    baseline: mean of the group, of its other members (leave one out: RLOO), or 0. scale: divide by the standard
    deviation of the group or of the whole batch (with N - 1, as in the papers' code), or not at all.
    In a group with equal rewards all advantages are 0.
    """
    known = rewards.isfinite()
    count = known.sum(-1, keepdim=True)  # (prompts, 1)
    filled = rewards.masked_fill(~known, 0.0)
    total = filled.sum(-1, keepdim=True)
    if baseline == "mean":
        less = total / count
    elif baseline == "leave_one_out":
        less = (total - filled) / (count - 1)
    else:
        less = torch.zeros_like(total)
    result = filled - less
    if scale == "group":
        result = result / (_deviation(filled, known, -1) + _EPSILON)
    elif scale == "batch":
        result = result / (_deviation(filled.flatten(), known.flatten(), -1) + _EPSILON)
    # 0 / 0 if only one answer of a group is known.
    return torch.where(known & result.isfinite(), result, 0.0)


def _deviation(values: Tensor, known: Tensor, dim: int) -> Tensor:
    count = known.sum(dim, keepdim=True)
    mean = (values * known).sum(dim, keepdim=True) / count
    square = ((values - mean).square() * known).sum(dim, keepdim=True)
    return (square / (count - 1)).sqrt().nan_to_num(nan=0.0)


def informative(rewards: Tensor) -> Tensor:
    """Which groups (prompts,) have rewards that differ.

    rewards: (prompts, samples), NaN if unknown.
    """
    known = rewards.isfinite()
    low = rewards.masked_fill(~known, torch.inf).amin(-1)
    high = rewards.masked_fill(~known, -torch.inf).amax(-1)
    return high > low


def overlong_penalty(lengths: Tensor, limit: int, cache: int) -> Tensor:
    """The penalty added to rewards of long answers, 0 to -1 (DAPO, equation 13).

    It has the shape of `lengths`. lengths: in tokens. 0 up to limit - cache, then linearly down to -1 at `limit`. cache
    0: -1 beyond the limit.
    """
    over = lengths.float() - (limit - cache)
    return -(over / cache).clamp(0, 1) if cache else -(over > 0).float()


def token_weights(
    mask: Tensor, kind: Kind, *, max_tokens: int, answers: float | None = None, tokens: float | None = None
) -> Tensor:
    """The weight of each token in the loss, (answers, tokens) float32.

    mask: 1 where a token was chosen by the policy. An answer without any such token (truncated and to be left out) does
    not count as an answer, so numerator and denominator agree. max_tokens: the maximum length of an answer (used only
    by dr_grpo). answers, tokens: counts of the global batch, when these rows are only a part of it; None: these rows
    are the batch.
    """
    mask = mask.float()
    lengths = mask.sum(-1, keepdim=True)
    answers = max(1.0, float((lengths > 0).sum()) if answers is None else answers)
    if kind == "dapo":
        return mask / max(1.0, float(lengths.sum()) if tokens is None else tokens)
    if kind == "dr_grpo":
        return mask / (answers * max_tokens)
    if kind == "reinforce":
        return mask / answers
    # Ratios of complete answers are the same in all their tokens: spread over the tokens, they count once.
    return mask / (lengths.clamp_min(1) * answers)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    advantage: Tensor,
    weights: Tensor,
    kind: Kind = "dr_grpo",
    *,
    times: Tensor | None = None,
    clip: tuple[float, float] | None = None,
    ref_logprobs: Tensor | None = None,
    kl: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of these answers, a scalar to differentiate, and sums for the log.

    logprobs: (answers, tokens) under the current policy, with gradient; old_logprobs: under the policy that wrote them;
    mask: 1 where a token counts; advantage: (answers,); weights: see `token_weights`, for the same answers. times:
    (answers,), how often each answer occurred, when equal answers are computed once. clip: (low, high) instead of the
    kind's own. ref_logprobs, kl: a reference and the weight of the divergence from it (k3, Schulman 2020: never
    negative), whose gradient the token's ratio makes unbiased (arXiv 2512.02556).
    A token with non-finite log probabilities is dropped and counted; log ratios are clamped to MAX_LOG_RATIO.

    metrics, all sums over tokens: tokens, dropped (not finite), clipped, ratio, kl_old (k3 from the writer), kl.
    """
    low, high = clip or METHODS[kind].clip
    ok = (mask > 0) & logprobs.detach().isfinite() & old_logprobs.isfinite() & advantage.isfinite()[:, None]
    if ref_logprobs is not None:
        ok &= ref_logprobs.isfinite()
    # Apply `where` before anything else: 0 * inf would be NaN in the sum and in its gradient.
    current = torch.where(ok, logprobs, 0.0)
    log_ratio = (current - torch.where(ok, old_logprobs, 0.0)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    counted = ok.float()
    often = counted if times is None else counted * times[:, None]
    weights = weights * often
    advantage = advantage.nan_to_num(nan=0.0)[:, None]
    if METHODS[kind].sequence:
        whole = (log_ratio * counted).sum(-1, keepdim=True)
        if kind == "gspo":
            whole = whole / counted.sum(-1, keepdim=True).clamp_min(1)
        ratio = whole.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().expand_as(log_ratio)
    else:
        ratio = log_ratio.exp()
    if kind == "reinforce":
        per_token = -advantage * current
        clipped = torch.zeros_like(ok)
    else:
        bounded = ratio.clamp(1 - low, 1 + high)
        per_token = -torch.minimum(ratio * advantage, bounded * advantage)
        clipped = ok & (((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0)))
    metrics = {
        "tokens": often.sum(),
        "dropped": (mask > 0).sum() - counted.sum(),
        "clipped": (clipped * often).sum(),
        "ratio": (ratio.detach() * often).sum(),
        "kl_old": (k3(log_ratio.detach()) * often).sum(),
    }
    if ref_logprobs is not None:
        behind = (current - torch.where(ok, ref_logprobs, 0.0)).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        divergence = k3(behind)
        per_token = per_token + kl * divergence * log_ratio.exp()
        metrics["kl"] = (divergence.detach() * often).sum()
    return (per_token * weights).sum(), metrics


def k3(log_ratio: Tensor) -> Tensor:
    """Schulman's estimate of KL(policy | other) from tokens of the policy.

    log_ratio: log policy - log other.
    """
    return torch.expm1(-log_ratio) + log_ratio
