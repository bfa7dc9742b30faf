"""Initial weights from token counts: a bigram model of the corpus.

A Llama whose output projections start at zero computes, at its first step, head @ rmsnorm(embedding): a table of which
token follows which, through a bottleneck of `hidden_size`. Gradient descent needs its first hundreds of steps to find
that table; counting finds it in seconds. Counts are smoothed by absolute discounting towards the unigram distribution
(Kneser and Ney 1995, without continuation counts). Their log ratio to it is factored by a truncated singular value
decomposition (word2vec does so implicitly: Levy and Goldberg 2014), and the head is solved for by least squares. A few
full-batch steps then correct what the norm's rescaling of each row distorted. Measured gain: docs/log.md, 2026-11-23.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.errors import PunaError

# The counts are a dense vocab x vocab table; 16,384 tokens make it 1 GiB, and a few such tables exist at once.
LARGEST_VOCABULARY = 16_384
_DISCOUNT = 0.75
_STEPS = 30
_ROWS = 1024


def bigram_weights(tokens: np.ndarray, vocab_size: int, hidden_size: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Fit (embedding, head) so that head @ rmsnorm(embedding) predicts bigrams.

    Both are float32 (vocab_size, hidden_size). tokens: (tokens,) integers, the training stream in order. Rows of the
    embedding have a root mean square of 1. Raises PunaError when the vocabulary is too large for a dense table of
    counts.
    """
    if vocab_size > LARGEST_VOCABULARY:
        raise PunaError(
            f"train.init = 'bigram' counts pairs of tokens in a dense table, and {vocab_size} tokens are too many.",
            f"Use train.init = 'normal', or a vocabulary of at most {LARGEST_VOCABULARY}.",
        )
    following, unigram, weight = _probabilities(tokens, vocab_size)
    embedding, head = _factor(following, unigram, weight, hidden_size, seed)
    _polish(embedding, head, following, weight)
    return F.rms_norm(embedding, (hidden_size,)), head


def _probabilities(tokens: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """(p(next | token) (V, V), p(token) (V,), weight of each row in the fit (V,)), all float32."""
    stream = torch.from_numpy(tokens.astype(np.int64))
    counts = torch.bincount(stream[:-1] * size + stream[1:], minlength=size * size).view(size, size).float()
    seen = counts.sum(1)
    unigram = counts.sum(0) + 0.5
    unigram /= unigram.sum()
    kinds = (counts > 0).sum(1, keepdim=True).float()
    following = (counts - _DISCOUNT).clamp_(min=0).add_((_DISCOUNT * kinds + 1.0) * unigram)
    following /= following.sum(1, keepdim=True)
    # Weight frequent tokens more, but by less than their share: rare rows must not remain noise.
    weight = (seen + 1).pow(0.75)
    return following, unigram, weight / weight.sum()


def _factor(following: Tensor, unigram: Tensor, weight: Tensor, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Randomised SVD (Halko 2011, two power iterations) of the weighted log ratios.

    Ridge regression for the head.
    """
    rank, root = width - 1, weight.sqrt().unsqueeze(1)
    target = (following / unigram).log_().mul_(root)
    generator = torch.Generator().manual_seed(seed)
    basis = target @ torch.randn(target.shape[1], rank + 16, generator=generator)
    for _ in range(2):
        basis = target @ torch.linalg.qr(target.mT @ basis)[0]
    basis = torch.linalg.qr(basis)[0]
    u, s, _ = torch.linalg.svd(basis.mT @ target, full_matrices=False)
    del target  # as large as the counts, and the logarithms below are too
    rows = (basis @ u)[:, :rank] * s[:rank].sqrt() / root
    # One dimension is the same for every token; through it the head keeps the unigram distribution.
    embedding = torch.empty(len(weight), width)
    embedding[:, 0] = (0.19 * width) ** 0.5
    embedding[:, 1:] = rows * (0.9 * width**0.5 / rows.norm(dim=1, keepdim=True).clamp_min(1e-12))
    x = embedding * root
    ridge = x.mT @ x + 1e-4 * torch.eye(width)
    head = torch.linalg.solve(ridge, x.mT @ following.log().mul_(root)).mT.contiguous()
    return embedding, head


def _polish(embedding: Tensor, head: Tensor, following: Tensor, weight: Tensor) -> None:
    """Polish the tables with a few full-batch Adam steps, in place.

    The loss is the exact cross entropy with the counted distribution.
    """
    width = embedding.shape[1]
    tables = (embedding, head)
    mean = [torch.zeros_like(t) for t in tables]
    square = [torch.zeros_like(t) for t in tables]
    for step in range(_STEPS):
        x = F.rms_norm(embedding, (width,))
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        for rows in torch.arange(len(x)).split(_ROWS):  # never a full table of logits
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            error = torch.softmax(x[part] @ head.mT, dim=1).sub_(following[part])  # gradient of the logits
            torch.mm(error, head, out=grad_x[part])
            grad_head.addmm_(error.mul_(weight[part].unsqueeze(1)).mT, x[part])
        grads = (grad_x - x * (grad_x * x).mean(1, keepdim=True), grad_head)
        rate = 0.03 * min(1.0, (step + 1) / 5) * (1 - step / _STEPS)
        for table, grad, m, v in zip(tables, grads, mean, square, strict=True):
            m.lerp_(grad, 0.2)
            v.lerp_(grad.square(), 0.1 if step else 1.0)
            table.sub_(rate * m / (v.sqrt() + 1e-10))
