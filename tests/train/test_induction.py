"""Computed heads: they attend where they should, copy, and leave the initial predictions unchanged."""

import numpy as np
import pytest
import torch

from puna.core.errors import PunaError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM, rotate
from puna.train.init.bigram import bigram_weights
from puna.train.init.induction import induction_weights

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=128,
)


def _model(config: ModelConfig = CONFIG) -> LlamaForCausalLM:
    random = np.random.default_rng(0)
    table = random.dirichlet(np.full(96, 0.2), size=96)
    tokens = [0]
    for value in random.random(30_000):
        tokens.append(int(np.searchsorted(table[tokens[-1]].cumsum(), value).clip(0, 95)))
    stream = np.array(tokens)
    embedding, head = bigram_weights(stream, 96, 64)
    unigram = torch.from_numpy(np.bincount(stream, minlength=96) / len(stream)).float()
    model = LlamaForCausalLM(config)
    model.init_weights(0)
    weights = {"model.embed_tokens.weight": embedding, "lm_head.weight": head}
    weights |= induction_weights(config, embedding, head, unigram, seed=0)
    model.load_state_dict(weights, strict=False)
    return model


def _attention(model: LlamaForCausalLM, layer: int, x: torch.Tensor) -> torch.Tensor:
    """Attention weights (heads, seq, seq) of one block on its input x (1, seq, hidden)."""
    attention, size = model.model.layers[layer].self_attn, CONFIG.head_dim
    normed = model.model.layers[layer].input_layernorm(x)
    rope = model.model.rotary(torch.arange(x.shape[1]))
    query, key = (rotate(p(normed).unflatten(-1, (-1, size)), rope)[0] for p in (attention.q_proj, attention.k_proj))
    scores = torch.einsum("qhd,khd->hqk", query, key) / size**0.5
    hidden = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


@torch.no_grad()
def test_the_first_heads_look_one_and_two_tokens_back():
    model = _model()
    ids = torch.randint(0, 96, (1, 40), generator=torch.Generator().manual_seed(1))
    weights = _attention(model, 0, model.model.embed_tokens(ids))
    for head, distance in ((0, 1), (1, 2)):
        share = weights[head].diagonal(-distance)[8:].mean()
        assert share > 0.5, (head, share)


@torch.no_grad()
def test_the_second_block_looks_at_what_followed_this_token_before():
    model = _model()
    half = torch.randperm(96, generator=torch.Generator().manual_seed(2))[:24]
    ids = torch.cat((half, half))[None]  # every token of the second half also occurred 24 tokens before
    rope = model.model.rotary(torch.arange(48))
    x = model.model.layers[0](model.model.embed_tokens(ids), rope)
    weights = _attention(model, 1, x)
    for head in (0, 1):
        followed = weights[head].diagonal(-23)[4:].mean()  # position of the token after the earlier occurrence
        assert followed > 5 / 48, (head, followed)  # chance is about 1 / 36


@torch.no_grad()
def test_the_first_predictions_stay_those_of_the_bigram_table():
    model = _model()
    plain = _model()
    for block in plain.model.layers:
        block.self_attn.o_proj.weight.zero_()
    ids = torch.randint(0, 96, (2, 32), generator=torch.Generator().manual_seed(3))
    a, b = model(ids).log_softmax(-1), plain(ids).log_softmax(-1)
    assert (a.exp() * (a - b)).sum(-1).mean() < 0.1  # nats


def test_networks_without_room_for_the_heads_are_refused():
    config = ModelConfig.model_validate({**CONFIG.model_dump(), "num_hidden_layers": 1})
    table = torch.randn(96, 64)
    with pytest.raises(PunaError, match="needs two blocks"):
        induction_weights(config, table, table, torch.full((96,), 1 / 96), seed=0)
