"""Attention over blocks equals attention over everything, however the tokens are split and stored."""

from collections.abc import Callable, Iterator
from itertools import accumulate
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention

from puna.engine import attention
from puna.engine.attention import PagedAttention, QuerySpan, bucket
from puna.engine.core.kv_cache import BlockPool
from puna.engine.cuda import paged_attention
from puna.engine.cuda.graphs import DecodeGraphs
from puna.engine.cuda.paged_attention import FlexAttention
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
# The number of tokens per sequence in each of three forwards.
CUTS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5)


@pytest.fixture(params=["gather", "flex"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The attention backend.

    FlexAttention is written for the GPU, but computes the same everywhere.
    """
    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    with patch.object(attention, "attention_backend", lambda *_: request.param):
        yield request.param


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=CUTS, block_size=st.sampled_from([1, 3, 16]), seed=st.integers(0, 9))
@torch.inference_mode()
def test_pieces_give_what_the_whole_gives(
    random_model: Maker, backend: str, cuts: list[list[int]], block_size: int, seed: int
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 512, (sum(cut),), generator=generator) for cut in cuts]
    pool = BlockPool(model.config, 5 * 27 + 1, block_size, device="cpu", dtype=torch.float32)
    pool.store.fill_(1e6)  # stale data of earlier requests
    shuffled = (torch.randperm(pool.num_blocks, generator=generator)).tolist()
    needed = [pool.blocks_for(len(text)) for text in texts]
    tables = [shuffled[end - n : end] for end, n in zip(accumulate(needed), needed, strict=True)]
    wholes = [model(text[None])[0] if len(text) else None for text in texts]
    done = [0] * len(texts)
    for part in range(3):
        rows = [i for i, cut in enumerate(cuts) if cut[part]]
        if not rows:
            continue
        spans = [QuerySpan(tables[i], done[i], cuts[i][part]) for i in rows]
        ids = torch.cat([texts[i][span.start : span.end] for i, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.end) for span in spans])
        logits = model(ids[None], positions=positions[None], cache=PagedAttention.of(pool, spans))[0]
        for i, span, got in zip(rows, spans, logits.split([span.count for span in spans]), strict=True):
            whole = wholes[i]
            assert whole is not None
            torch.testing.assert_close(got, whole[span.start : span.end], rtol=0, atol=2e-5)
            done[i] = span.end


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=9), seed=st.integers(0, 9))
@torch.inference_mode()
def test_a_padded_decode_step_gives_what_the_whole_gives(
    random_model: Maker, backend: str, lengths: list[int], seed: int
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    generator = torch.Generator().manual_seed(seed)
    pool = BlockPool(model.config, 9 * 5 + 1, 4, device="cpu", dtype=torch.float32)
    pool.store[:, :, :, : pool.num_blocks] = 1e6
    shuffled = torch.randperm(pool.num_blocks, generator=generator).tolist()
    texts = [torch.randint(0, 512, (n,), generator=generator).tolist() for n in lengths]
    tables = [[shuffled.pop() for _ in range(pool.blocks_for(n))] for n in lengths]
    for text, table in zip(texts, tables, strict=True):
        cache = PagedAttention.of(pool, [QuerySpan(table, 0, len(text))])
        model(torch.tensor([text]), positions=torch.arange(len(text))[None], cache=cache)
    mine = [block for table in tables for block in table]
    others = [block for block in range(pool.num_blocks) if block not in mine]
    before = pool.store[:, :, :, others].clone()
    steps = DecodeGraphs(model, pool, capture=False)
    hidden = steps.hidden([text[-1] for text in texts], [n - 1 for n in lengths], tables)  # the last tokens again
    assert hidden is not None
    assert steps.sizes == [bucket(len(lengths))]
    for text, got in zip(texts, hidden, strict=True):
        expected = model(torch.tensor([text]), head=lambda hidden, _: hidden)[0, -1]
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)
    assert torch.equal(pool.store[:, :, :, others], before), "padding rows write only to the null block"


@given(
    starts=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    count=st.sampled_from([1, 100, 128, 200]),
    seed=st.integers(0, 9),
)
def test_flex_attention_visits_the_pages_it_sees_and_no_others(starts: list[int], count: int, seed: int) -> None:
    size, blocks = 64, 48
    shuffled = torch.randperm(blocks, generator=torch.Generator().manual_seed(seed)).tolist()
    tables = [[shuffled.pop() for _ in range(-(-(start + count) // size))] for start in starts]
    width = max(map(len, tables))
    padded = torch.tensor([[*table, *[blocks] * (width - len(table))] for table in tables])
    mask = FlexAttention.build(slice(None), padded, torch.tensor(starts), count, blocks + 1, size).mask
    for table, start, blocks, listed in zip(tables, starts, mask.kv_num_blocks, mask.kv_indices, strict=True):
        for block, (looked_at, indices) in enumerate(zip(blocks[0], listed[0], strict=True)):
            last = start + min(128 * (block + 1), count) - 1
            assert indices[:looked_at].tolist() == table[: last // size + 1]


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_flex_attention_gives_the_same() -> None:
    """Compare the kernel that reads the blocks in a mask with the one that reads all of them."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 4, 9, 128, 32, generator=generator)  # (2, kv_heads, blocks, block_size, dim)
    tables, starts = torch.tensor([[3, 0, 8], [7, 5, 1]]), torch.tensor([130, 300])
    query = torch.randn(2, 8, 32, generator=generator)
    with patch.object(paged_attention, "_flex", lambda _: torch.compile(flex_attention.flex_attention, dynamic=True)):
        got = FlexAttention.build(slice(None), tables, starts, 1, 9, 128).attend(query, keys, values)
    for one, start, table, out in zip(query, starts, tables, got, strict=True):
        seen, held = (x[:, table].flatten(1, 2)[:, : start + 1] for x in (keys, values))  # (kv_heads, tokens, dim)
        expected = F.scaled_dot_product_attention(one[:, None], seen, held, enable_gqa=True)[:, 0]
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@given(blocks=st.integers(1, 10_000))
def test_padding_stays_under_a_half(blocks: int) -> None:
    assert blocks <= bucket(blocks) < max(blocks * 1.5, 2)
