"""Initial weights that can look back and copy.

Block 0 has previous-token heads, and block 1 matching heads. "What followed this token last time?" is the first thing a
transformer learns to do with context, and it learns it late: two heads in two blocks have to find each other (induction
heads, arXiv 2209.11895). Building on the bigram weights, which give every token a known code and keep dimension 0 of
the embedding constant, both heads can be written down:

- Block 0, heads 0 and 1, look one and two tokens back. Their queries and keys read only the constant dimension, so
  the score depends only on the distance, and the rotary phase puts its maximum there.
- Head 0 copies a code of the previous token into directions that the output head hardly reads.
- Block 1, heads 0 and 1, compare the current token's code with the codes copied there, so they attend to what followed
  this token before. How that is used is left to training: their output projections start at zero.

The result is ordinary weights of an ordinary Llama, and all of them are trained. Measured gain: docs/log.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import initial_weight, rotary_frequencies

_HEADS = 2  # heads that look back in block 0, and heads that match in block 1
_SHARPNESS = 15.0  # how far the score of the wanted distance is above the others
_COPY = 0.7  # size of the copied code relative to the token's own
_MATCH = 7.0  # score of a matching code
_SPAN = 128  # tokens within which matching must not depend on distance; uses slower rotary dimensions


def induction_weights(
    config: ModelConfig, embedding: Tensor, head: Tensor, unigram: Tensor, *, seed: int
) -> dict[str, Tensor]:
    """Return the projections that differ from a fresh network's, by name, float32.

    They are in the first two blocks. embedding, head: (vocab, hidden), from `bigram_weights`; unigram: (vocab,), the
    frequency of each token. Raises PunaError when the network has fewer than two blocks, too few heads, or heads as
    wide as the model.
    """
    size, width, sharing = config.head_dim, config.hidden_size, config.num_attention_heads // config.num_key_value_heads
    if config.num_hidden_layers < 2 or config.num_attention_heads < _HEADS or 2 * size > width - 1:
        raise PunaError(
            "train.init = 'induction' needs two blocks, two heads, and heads at most half as wide as the model; this "
            f"model has {config.num_hidden_layers} blocks and {config.num_attention_heads} heads of size {size} in "
            f"width {width}.",
            "Change the model, or use train.init = 'bigram'.",
        )
    shapes = config.parameter_shapes()
    names = [f"model.layers.0.self_attn.{p}_proj.weight" for p in "qkvo"]
    names += [f"model.layers.1.self_attn.{p}_proj.weight" for p in "qk"]
    weights = {name: initial_weight(config, name, shapes[name], seed) for name in names}
    q0, k0, v0, o0, q1, k1 = weights.values()
    frequencies, half = rotary_frequencies(config), size // 2

    # Block 0: scores by distance only, through the constant dimension and the faster half of the rotary pairs.
    constant = F.rms_norm(embedding, (width,))[:, 0].median()
    strength = torch.where(torch.arange(half) < half // 2, (_SHARPNESS * size**0.5 / 4) ** 0.5, 0.0) / constant
    for number in range(_HEADS):
        shared = number // sharing
        angle = frequencies * (shared + 1)  # heads that share keys look at the same distance
        query, key = _rows(q0, number, size), _rows(k0, shared, size)
        query.mul_(0.1)
        key.mul_(0.1)
        key[:half, 0] = strength
        query[:half, 0], query[half:, 0] = strength * angle.cos(), -strength * angle.sin()

    # Head 0 reads a whitened code of a token and writes it where the output head reads least.
    code = torch.zeros(size, width)
    generator = torch.Generator().manual_seed(seed)
    random = torch.linalg.qr(torch.randn(width - 1, size, generator=generator))[0]
    code[:, 1:] = random.mT @ _whitening(F.rms_norm(embedding, (width,))[:, 1:], unigram)
    place = torch.zeros(size, width)
    place[:, 1:] = _least_read(head[:, 1:], unigram)[:, :size].mT
    _rows(v0, 0, size).copy_(code)
    o0[:, :size] = _COPY * place.mT

    # Block 1: match the current token's code with the copied codes, in the slow rotary dimensions.
    slow = (frequencies * _SPAN < 1).nonzero().flatten()
    slow = torch.cat((slow, slow + half))
    gain = (_MATCH * size**0.5 / max(1, len(slow)) / _COPY) ** 0.5
    for number in range(_HEADS):
        shared = number // sharing
        generator.manual_seed(seed + shared)
        mix = torch.linalg.qr(torch.randn(size, len(slow), generator=generator))[0].mT
        query, key = _rows(q1, number, size), _rows(k1, shared, size)
        query.mul_(0.1)
        key.mul_(0.1)
        query[slow], key[slow] = gain * mix @ code, gain * mix @ place
    return weights


def _rows(weight: Tensor, number: int, size: int) -> Tensor:
    """The rows of one head in a projection."""
    return weight[number * size : (number + 1) * size]


def _whitening(codes: Tensor, unigram: Tensor) -> Tensor:
    """The matrix that makes codes of tokens uncorrelated, weighted by token frequency.

    It is symmetric.
    """
    covariance = (codes * unigram.unsqueeze(1)).mT @ codes
    covariance += 0.05 * covariance.diagonal().mean() * torch.eye(len(covariance))
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.mT


def _least_read(head: Tensor, unigram: Tensor) -> Tensor:
    """Directions of the residual stream as columns, those that change the logits least first."""
    centred = head - (unigram.unsqueeze(1) * head).sum(0)
    return torch.linalg.eigh((centred * unigram.unsqueeze(1)).mT @ centred)[1]
