"""Defaults: batches as published, adjusted so that layouts exist."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.model.config import PRESETS, ModelConfig
from puna.plan.layouts.defaults import batches_near, divisible_batch, pretraining_length, tokens_per_step
from puna.plan.layouts.predict import Question
from puna.plan.layouts.search import legal_layouts

Ask = Callable[..., Question]


@pytest.mark.parametrize(
    ("model", "tokens", "length"),
    [
        ("llama3.1-405b", 16_777_216, 8192),
        ("llama3-8b", 4_194_304, 8192),
        ("llama2-70b", 4_194_304, 4096),
        ("llama3.2-1b", 1_048_576, 8192),
        ("small-120m", 524_288, 2048),
    ],
)
def test_batches_and_lengths_are_those_that_were_published(model: str, tokens: int, length: int) -> None:
    config = ModelConfig(preset=model)
    assert tokens_per_step(config.num_parameters())[0] == tokens
    assert pretraining_length(config) == length
    assert "arXiv" in tokens_per_step(config.num_parameters())[1]


def test_every_preset_has_a_batch_of_whole_sequences() -> None:
    for name in PRESETS:
        config = ModelConfig(preset=name)
        assert tokens_per_step(config.num_parameters())[0] % pretraining_length(config) == 0


@given(count=st.integers(1, 600).map(lambda nodes: 8 * nodes), stack=st.sampled_from(["puna", "megatron-core"]))
@settings(max_examples=40, deadline=None)
def test_the_default_batch_has_layouts_on_any_number_of_nodes(ask: Ask, count: int, stack: str) -> None:
    batch = divisible_batch(512, count, stack)
    layouts = legal_layouts(ask("llama3-8b", count, batch=batch, stack=stack).workload())
    assert len(layouts.tp) > 0


@given(st.floats(1, 1e5), st.integers(1, 10**6), st.sampled_from(["puna", "megatron-core"]))
def test_a_batch_is_never_less_than_one(sequences: float, accelerators: int, stack: str) -> None:
    assert divisible_batch(sequences, accelerators, stack) >= 1


def test_a_batch_that_divides_stays() -> None:
    assert divisible_batch(2048, 16384, "megatron-core") == 2048
    assert divisible_batch(512, 8, "puna") == 512
    assert divisible_batch(512, 24, "puna") == 504
    assert divisible_batch(512, 4096, "puna") == 4096, "data parallelism alone needs one sequence per rank"


@given(st.integers(1, 10_000), st.integers(1, 10_000))
def test_batches_near_are_near_and_others(sequences: int, accelerators: int) -> None:
    near = batches_near(sequences, accelerators)
    assert sequences not in near
    assert all(batch >= 1 for batch in near)
    assert len(near) == len(set(near)) <= 24
