"""Counted initial weights: close to the empirical bigram distribution, and the predictions of a fresh model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from puna.core.errors import PunaError
from puna.train.init.bigram import bigram_weights


def _markov_chain(size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    table = random.dirichlet(np.full(size, 0.1), size=size)
    tokens = [0]
    for value in random.random(length):
        tokens.append(int(np.searchsorted(table[tokens[-1]].cumsum(), value).clip(0, size - 1)))
    return np.array(tokens, dtype=np.uint16), table


def test_predicts_a_markov_chain_nearly_as_well_as_its_own_table():
    tokens, table = _markov_chain(64, 20_000)
    embedding, head = bigram_weights(tokens, 64, 32)
    logits = F.rms_norm(embedding, (32,)) @ head.T
    inputs, targets = torch.from_numpy(tokens[:-1].astype(np.int64)), torch.from_numpy(tokens[1:].astype(np.int64))
    loss = F.cross_entropy(logits[inputs], targets).item()
    entropy = -np.log(table[tokens[:-1], tokens[1:]].clip(1e-12)).mean()
    uniform = np.log(64)
    assert loss - entropy < 0.1 * (uniform - entropy)


def test_is_deterministic_and_rows_have_unit_rms():
    tokens, _ = _markov_chain(32, 2_000)
    first, second = bigram_weights(tokens, 32, 16), bigram_weights(tokens, 32, 16)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.allclose(first[0].square().mean(1), torch.ones(32), atol=1e-3)


def test_tokens_that_never_occur_stay_finite():
    tokens = np.array([0, 1, 2] * 50, dtype=np.uint16)
    embedding, head = bigram_weights(tokens, 40, 8)
    assert embedding.isfinite().all()
    assert head.isfinite().all()


def test_a_large_vocabulary_is_refused():
    with pytest.raises(PunaError, match="too many"):
        bigram_weights(np.zeros(10, dtype=np.uint16), 128_256, 64)
