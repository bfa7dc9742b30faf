"""Padded decode steps give the same results as others, and a size that cannot be captured still works."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest

from puna.engine.attention import bucket
from puna.engine.cuda import graphs
from puna.engine.generate import Engine, SamplingParams
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
PROMPTS = [[i, *range(3 * i)] for i in range(1, 8)]
PARAMS = [SamplingParams(max_tokens=5 + 2 * i, temperature=0) for i in range(7)]


@pytest.mark.parametrize("overlap", [False, True])
def test_texts_come_and_go_through_padded_steps(random_model: Maker, overlap: bool) -> None:
    model = random_model(ModelConfig(preset="nano"))
    expected = Engine(model, None).generate(PROMPTS, PARAMS)
    engine = Engine(model, None, block_size=8, decode_buckets=True, overlap=overlap)
    assert [done.ids for done in engine.generate(PROMPTS, PARAMS)] == [done.ids for done in expected]
    steps = engine._core.runner.decode_graphs
    assert steps is not None
    assert steps.sizes == sorted({bucket(n) for n in range(1, 8)})
    assert any("so far 1, 2, 3, 4, 6, 8." in line for line in engine.describe())
    pool = engine._core.scheduler.pool
    pool.check()
    assert pool.counts()["held"] == 0
    assert pool.null_block not in pool.allocate(pool.num_blocks)  # type: ignore[operator]


def test_other_weights_reach_steps_that_are_there(random_model: Maker) -> None:
    """A captured graph reads weights at fixed addresses, so an update has to write them there."""
    first, second = (random_model(ModelConfig(preset="nano"), seed) for seed in (0, 1))
    expected = Engine(second, None).generate(PROMPTS, PARAMS)
    engine = Engine(first, None, decode_buckets=True)
    engine.generate(PROMPTS, PARAMS)
    places = [parameter.data_ptr() for parameter in first.parameters()]
    engine.update_weights((name, parameter.detach().clone()) for name, parameter in second.named_parameters())
    assert [parameter.data_ptr() for parameter in first.parameters()] == places
    assert [done.ids for done in engine.generate(PROMPTS, PARAMS)] == [done.ids for done in expected]


def test_a_size_that_cannot_be_captured_is_computed_otherwise(
    random_model: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, memory: object) -> None:
        if self.size == 4:  # type: ignore[attr-defined]
            raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = random_model(ModelConfig(preset="nano"))
    engine = Engine(model, None, decode_buckets=True)
    steps = engine._core.runner.decode_graphs
    assert steps is not None
    steps.capture = True
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr(graphs._Graph, "_capture", refuse)
    expected = Engine(model, None).generate(PROMPTS, PARAMS)
    assert [done.ids for done in engine.generate(PROMPTS, PARAMS)] == [done.ids for done in expected]
    said = [line for line in engine.describe() if "steps of 4" in line]
    assert said == [
        "Decode steps of 4 sequences could not be captured: operation not permitted when stream is capturing."
    ]
    assert steps.sizes == [1, 2, 3, 6, 8]


def test_deterministic_steps_are_not_padded(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None, decode_buckets=True, deterministic=True)
    assert engine._core.runner.decode_graphs is None
