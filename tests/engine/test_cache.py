"""The key-value cache gives what a forward over everything gives, however the tokens are cut and whoever is beside."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine import cache as cache_module
from puna.engine.cache import KVCache
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

# Per row, how many tokens arrive in each of three forwards.
CUTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)


@settings(max_examples=25, deadline=None)
@given(cuts=CUTS, seed=st.integers(0, 9))
@torch.no_grad()
def test_pieces_give_what_the_whole_gives(
    random_model: Callable[..., LlamaForCausalLM], cuts: list[tuple[int, int, int]], seed: int
) -> None:
    model = random_model(ModelConfig(preset="nano"))
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(0, 512, (sum(cut),), generator=generator) for cut in cuts]
    cache = KVCache(len(texts), "cpu")
    done = [0] * len(texts)
    for part in range(3):
        counts = [cut[part] for cut in cuts]
        ids = torch.full((len(texts), max(counts)), 511)  # padding that must not be seen
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            ids[row, :count] = text[done[row] : done[row] + count]
        logits = model(ids, positions=cache.extend(counts), cache=cache)
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            whole = model(text[None])[0, done[row] : done[row] + count]
            torch.testing.assert_close(logits[row, :count], whole, rtol=0, atol=2e-5)
        done = [a + b for a, b in zip(done, counts, strict=True)]
    assert cache.lengths == done


@torch.no_grad()
def test_growing_and_dropping_rows_keeps_the_rest(
    random_model: Callable[..., LlamaForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_GROWTH", 3)
    model = random_model(ModelConfig(preset="nano"))
    texts = torch.randint(0, 512, (3, 30), generator=torch.Generator().manual_seed(1))
    cache = KVCache(3, "cpu")
    model(texts[:, :10], positions=cache.extend([10, 10, 10]), cache=cache)
    cache.keep([2, 0])
    for at in range(10, 30):
        logits = model(texts[[2, 0], at : at + 1], positions=cache.extend([1, 1]), cache=cache)
    torch.testing.assert_close(logits[:, 0], model(texts[[2, 0]])[:, -1], rtol=0, atol=2e-5)
