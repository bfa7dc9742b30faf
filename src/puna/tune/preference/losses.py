"""Losses that prefer one answer to another, on log probabilities of complete answers.

In all functions chosen, rejected and logps are (pairs,) or (answers,): log probabilities summed over an answer's
tokens, in nats. `reference` means the same under the policy that tuning started from. All return one loss per pair or
answer, (pairs,) or (answers,), whose mean is minimised. Tests compare values and gradients with TRL's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7)."""
    return -F.logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    beta: float,
) -> Tensor:
    """Identity preference optimisation, with means over tokens instead of sums.

    See arXiv 2310.12036, eq. 17. chosen_tokens, rejected_tokens: (pairs,) the number of tokens in the sums; the
    authors' own form, as in TRL.
    """
    ratio = (chosen - reference_chosen) / chosen_tokens - (rejected - reference_rejected) / rejected_tokens
    return (ratio - 1 / (2 * beta)).square()


def simpo(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, beta: float, gamma: float
) -> Tensor:
    """Simple preference optimisation: mean log probabilities, a margin, no reference.

    See arXiv 2405.14734, eq. 6.
    """
    return -F.logsigmoid(beta * (chosen / chosen_tokens - rejected / rejected_tokens) - gamma)


def kto(
    logps: Tensor, reference: Tensor, good: Tensor, kl: Tensor, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Kahneman-Tversky optimisation: answers that are good or bad, without pairs.

    See arXiv 2402.01306, eq. 7. good: (answers,) bool. kl: scalar, the distance of the policy from the reference on
    mismatched answers, at least 0, without gradient. weights: of good and of bad answers.
    """
    ratio = logps - reference
    gain = 1 - torch.sigmoid(beta * torch.where(good, ratio - kl, kl - ratio))
    return torch.where(good, weights[0], weights[1]) * gain


def bradley_terry(better: Tensor, worse: Tensor) -> Tensor:
    """Loss of a reward model (arXiv 2307.09288, eq. 2, without its margin as in Llama 3).

    better, worse: (pairs,) scores.
    """
    return -F.logsigmoid(better - worse)
