"""Attention over pages gives what a forward over everything gives, however the tokens are cut and wherever they lie."""

from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.attention import CUDA_PAGE, PagedAttention, Span, _bucket
from puna.engine.pages import PagePool
from puna.model.config import ModelConfig
from puna.model.features import has_paged_attention
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
# Per sequence, how many tokens arrive in each of three forwards.
CUTS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(cuts=CUTS, page_size=st.sampled_from([1, 3, 16]), seed=st.integers(0, 9))
@torch.inference_mode()
def test_pieces_give_what_the_whole_gives(
    random_model: Maker, cuts: list[list[int]], page_size: int, seed: int
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 512, (sum(cut),), generator=generator) for cut in cuts]
    pool = PagePool(model.config, 5 * 27 + 1, page_size, device="cpu", dtype=torch.float32)
    pool.store.fill_(1e6)  # whatever others left behind
    shuffled = (torch.randperm(pool.pages, generator=generator)).tolist()
    needed = [pool.pages_for(len(text)) for text in texts]
    tables = [shuffled[end - n : end] for end, n in zip(accumulate(needed), needed, strict=True)]
    wholes = [model(text[None])[0] if len(text) else None for text in texts]
    done = [0] * len(texts)
    for part in range(3):
        rows = [i for i, cut in enumerate(cuts) if cut[part]]
        if not rows:
            continue
        spans = [Span(tables[i], done[i], cuts[i][part]) for i in rows]
        ids = torch.cat([texts[i][span.start : span.end] for i, span in zip(rows, spans, strict=True)])
        positions = torch.cat([torch.arange(span.start, span.end) for span in spans])
        logits = model(ids[None], positions=positions[None], cache=PagedAttention(pool, spans))[0]
        for i, span, got in zip(rows, spans, logits.split([span.count for span in spans]), strict=True):
            whole = wholes[i]
            assert whole is not None
            torch.testing.assert_close(got, whole[span.start : span.end], rtol=0, atol=2e-5)
            done[i] = span.end


@given(pages=st.integers(1, 10_000))
def test_padding_stays_under_a_half(pages: int) -> None:
    assert pages <= _bucket(pages) < max(pages * 1.5, 2)


@pytest.mark.skipif(not has_paged_attention(), reason="needs CUDA and torch 2.12, whose varlen_attn reads pages")
@torch.inference_mode()
def test_flash_attention_reads_pages_as_gathering_does(random_model: Maker) -> None:
    config = ModelConfig(preset="nano", head_dim=64)
    model = random_model(config).to("cuda", torch.bfloat16)
    text = torch.randint(0, 512, (200,), device="cuda")
    pool = PagePool(config, 3, CUDA_PAGE, device="cuda", dtype=torch.bfloat16)
    pool.store.zero_()
    rows = []
    for start, end in ((0, 150), (150, 199), (199, 200)):
        positions = torch.arange(start, end, device="cuda")
        cache = PagedAttention(pool, [Span([2], start, end - start)])
        rows.append(model(text[None, start:end], positions=positions[None], cache=cache)[0])
    torch.testing.assert_close(torch.cat(rows), model(text[None])[0], rtol=0.05, atol=0.2)
