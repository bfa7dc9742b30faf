"""Embeddings and scores: requests that generate nothing."""

from collections.abc import Callable

import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.generate import Engine, SamplingParams
from puna.engine.request import EngineError
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
SCORE = SamplingParams(max_tokens=0, prompt_logprobs=2)


def test_embeddings_are_the_mean_of_the_last_hidden_states(random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    engine = Engine(model, None, step_tokens=16, max_batch=2)
    prompts = [[1], [5, 6, 7], list(range(256))]  # the last is longer than a step, and as long as the context
    beside = engine.submit([3], SamplingParams(max_tokens=100, temperature=0))
    vectors = engine.embed(prompts)
    assert vectors.shape == (3, 64)
    assert vectors.dtype == torch.float32
    for prompt, vector in zip(prompts, vectors, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(vector, model.model(torch.tensor([prompt]))[0].mean(0), rtol=1e-4, atol=1e-5)
    assert len(list(beside)) == 100
    assert engine.embed([]).shape == (0, 64)
    with pytest.raises(PunaError, match="257 tokens"):
        engine.embed([[1] * 257])
    with pytest.raises(PunaError, match="prompt is empty"):
        engine.embed([[1], []])
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(EngineError, match="not finite"):
        engine.embed([[1]])
    engine.close()


def test_a_score_generates_nothing_and_may_fill_the_context(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None, step_tokens=32, max_batch=2)
    long = list(range(256))
    whole, short, one = engine.generate([long, [4, 5, 6], [7]], SCORE)
    assert [done.ids for done in (whole, short, one)] == [[], [], []]
    assert {done.finish_reason for done in (whole, short, one)} == {"length"}
    written = engine.generate([long[:200]], SamplingParams(max_tokens=1, prompt_logprobs=2))[0]
    for a, b in zip(whole.prompt_logprobs[1:200], written.prompt_logprobs[1:], strict=True):
        assert a[0].id == b[0].id
        assert a[0].logprob == pytest.approx(b[0].logprob, abs=1e-4)
    assert len(whole.prompt_logprobs) == 256
    assert len(engine.generate([[4, 5, 6]], SamplingParams(max_tokens=0, prompt_logprobs=0, n=3))) == 3
    engine._core.scheduler.pool.check()
    assert engine.stats()["blocks"]["held"] == 0
    with pytest.raises(PunaError, match="max_tokens = 0"):
        SamplingParams(max_tokens=0)


def test_end_tokens_can_be_ignored(random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    said = Engine(model, None).generate([[1, 2, 3]], SamplingParams(max_tokens=12, temperature=0))[0].ids
    engine = Engine(model, None, end_ids=[said[2]])
    assert engine.generate([[1, 2, 3]], SamplingParams(max_tokens=12, temperature=0))[0].ids == said[:3]
    ignored = SamplingParams(max_tokens=12, temperature=0, ignore_end=True)
    assert engine.generate([[1, 2, 3]], ignored)[0].ids == said
    stop = SamplingParams(max_tokens=12, temperature=0, ignore_end=True, stop_ids=(said[4],))
    assert engine.generate([[1, 2, 3]], stop)[0].ids == said[: said.index(said[4]) + 1]


def test_an_engine_says_what_it_chose(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None, kv_tokens=64, block_size=8, deterministic=True)
    text = " ".join(engine.describe())
    for part in ("float32 on cpu", "gathered blocks", "64 tokens in blocks of 8", "64 sequences", "Deterministic"):
        assert part in text
