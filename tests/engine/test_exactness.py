"""The engine's results equal the model's, however prompts are batched, split, cached, preempted or cancelled.

In fp32 a batch of another size rounds differently, so two tokens within 1e-4 of each other may swap; everything else
equals a plain forward loop. In the deterministic mode logits are equal to the bit, without exception.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.engine.core.scheduler import Chunk
from puna.engine.cpu.fused_model import fuse
from puna.engine.cpu.kernels import kernels
from puna.engine.generate import Engine, SamplingParams
from puna.engine.request import Request
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
CONFIG = ModelConfig(preset="nano")

# Few prefixes, so that prompts share them; lengths around blocks of 4 and 8.
PROMPTS = st.lists(
    st.builds(
        lambda family, length, tail: [*range(family * 50, family * 50 + length), *tail],
        st.integers(0, 2),
        st.integers(0, 30),
        st.lists(st.integers(0, 511), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=7,
)
ENGINES = st.fixed_dictionaries(
    {
        "max_batch": st.integers(1, 5),
        "block_size": st.sampled_from([4, 8, 16]),
        "step_tokens": st.sampled_from([1, 3, 7, 16, 64, 512]),
        "kv_tokens": st.sampled_from([64, 80, 128, 1024]),  # 64: every request fits alone, but hardly two together
        "prefix_cache": st.booleans(),
        "decode_buckets": st.booleans(),
        "overlap": st.booleans(),
    }
)


def params_of(lengths: Sequence[int], **others: Any) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=n, temperature=0, **others) for n in lengths]


def follows(model: LlamaForCausalLM, prompt: Sequence[int], ids: Sequence[int]) -> None:
    """Assert that a plain forward selects each of these ids after the prompt and the ids before it."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
    short = logits.amax(-1) - logits.gather(-1, torch.tensor(ids)[:, None]).flatten()
    assert (short < 1e-4).all()


def idle(engine: Engine) -> None:
    """Assert that nothing leaked."""
    engine._core.scheduler.pool.check()
    assert engine._core.scheduler.pool.counts()["held"] == 0
    assert not engine._core.scheduler.busy


@settings(max_examples=60, deadline=None)
@given(prompts=PROMPTS, engine=ENGINES, data=st.data())
def test_greedy_equals_a_plain_loop(
    random_model: Maker, prompts: list[list[int]], engine: dict[str, Any], data: st.DataObject
) -> None:
    model = random_model(CONFIG)
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=len(prompts), max_size=len(prompts)))
    made = Engine(model, None, **engine)
    for _ in range(2):  # the second time everything is cached
        for prompt, length, done in zip(prompts, lengths, made.generate(prompts, params_of(lengths)), strict=True):
            assert len(done.ids) == length
            follows(model, prompt, done.ids)
        idle(made)


@settings(max_examples=40, deadline=None)
@given(prompts=PROMPTS, engine=ENGINES, data=st.data())
def test_neighbours_come_and_go(
    random_model: Maker, prompts: list[list[int]], engine: dict[str, Any], data: st.DataObject
) -> None:
    """Requests arrive and are cancelled at any step, one of them with several sequences; the rest are correct."""
    model = random_model(CONFIG)
    made = Engine(model, None, **engine)
    arrivals = data.draw(st.lists(st.integers(0, 6), min_size=len(prompts), max_size=len(prompts)))
    leaves = data.draw(st.lists(st.none() | st.integers(0, 12), min_size=len(prompts), max_size=len(prompts)))
    n = data.draw(st.integers(1, 4))
    requests: dict[int, Request] = {}
    scheduler = made._core.scheduler
    for step in range(2000):
        for i, prompt in enumerate(prompts):
            if step == arrivals[i]:
                requests[i] = made._request(prompt, SamplingParams(max_tokens=12, temperature=0, n=n if i == 0 else 1))
                scheduler.add(requests[i])
            leave = leaves[i]
            if leave is not None and step == arrivals[i] + leave:
                requests[i].cancel()
        made._core.step()
        scheduler.pool.check()
        if step > 30 and not scheduler.busy:
            break
    idle(made)
    for i, request in requests.items():
        completions = request.completions(list(request))
        for done in completions:
            assert len(done.ids) == 12 or request.cancelled
            if done.ids:
                follows(model, prompts[i], done.ids)


def spied(engine: Engine, seen: dict[tuple[int, ...], torch.Tensor]) -> Engine:
    """Compare all logits of the engine with those that any engine computed for the same tokens."""
    forward = engine._core.runner.forward

    def compared(chunks: Sequence[Chunk], *said: torch.Tensor) -> torch.Tensor:
        logits = forward(chunks, *said)
        if said:  # the context of these logits is not known yet
            return logits
        contexts = [tuple(chunk.sequence.ids[: row + 1]) for chunk in chunks for row in chunk.rows]
        for context, row in zip(contexts, logits, strict=True):
            assert torch.equal(seen.setdefault(context, row), row), "same tokens, different logits"
        return logits

    engine._core.runner.forward = compared  # type: ignore[method-assign]
    return engine


@pytest.mark.parametrize("block_size", [8, 16], ids=["block by block", "one call a step"])
@settings(max_examples=25, deadline=None)
@given(prompts=PROMPTS, engines=st.lists(ENGINES, min_size=2, max_size=3), scored=st.booleans())
def test_deterministic_logits_are_equal_to_the_bit(
    random_model: Maker, block_size: int, prompts: list[list[int]], engines: list[dict[str, Any]], scored: bool
) -> None:
    model, plain = random_model(CONFIG), random_model(CONFIG)
    if block_size == 16:
        model = fuse(model)
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    results = []
    # Alone, then in any batch; the shape of a block is part of the mode.
    alone = spied(Engine(model, None, block_size=block_size, prefix_cache=False, max_batch=1, deterministic=True), seen)
    assert (alone._core.runner.native_step is not None) == (block_size == 16 and kernels() is not None)
    params = SamplingParams(max_tokens=10, seed=3, prompt_logprobs=2 if scored else None, top_logprobs=3)
    results.append([alone.generate([prompt], params)[0] for prompt in prompts])
    for options in engines:
        engine = spied(Engine(model, None, **{**options, "block_size": block_size}, deterministic=True), seen)
        results.append(engine.generate(prompts, params))
        idle(engine)
    assert all(result == results[0] for result in results), "ids, logprobs and top logprobs, to the bit"
    for prompt, done in zip(prompts, results[0], strict=True):
        with torch.no_grad():
            logprobs = plain(torch.tensor([prompt + done.ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logprobs.gather(-1, torch.tensor(done.ids)[:, None]).flatten().tolist()
        assert done.logprobs == pytest.approx(expected, abs=1e-4)


def test_preemption_happens_and_changes_nothing(random_model: Maker) -> None:
    model = random_model(CONFIG)
    prompts = [[i, i + 1, i + 2] for i in range(0, 60, 10)]
    engine = Engine(model, None, max_batch=6, kv_tokens=64, block_size=4)
    for prompt, done in zip(prompts, engine.generate(prompts, params_of([40] * 6)), strict=True):
        assert len(done.ids) == 40
        follows(model, prompt, done.ids)
    assert engine.stats()["preemptions"] > 0
    idle(engine)


def test_a_step_is_on_its_way_before_the_last_ones_tokens_are_known(random_model: Maker) -> None:
    model = random_model(CONFIG)
    engine = Engine(model, None, max_batch=4, block_size=4, overlap=True)
    asked = {1: (8, 0), 2: (20, 1), 3: (13, 2), 4: (20, 3), 5: (16, 4), 6: (9, 5)}  # prompt -> tokens, seed
    params = [SamplingParams(max_tokens=tokens, seed=seed) for tokens, seed in asked.values()]
    together = engine.generate([[i] for i in asked], params)
    core = engine._core
    assert core.overlapped_steps > core.steps / 2
    idle(engine)
    alone = Engine(model, None, overlap=False)
    assert [done.ids for done in together] == [
        alone.generate([[i]], p)[0].ids for i, p in zip(asked, params, strict=True)
    ]
    assert alone._core.overlapped_steps == 0


def test_an_end_that_is_found_a_step_late_is_the_end(random_model: Maker) -> None:
    model = random_model(CONFIG)
    [free] = Engine(model, None).generate([[1, 2]], params_of([20]))
    for stop in (free.ids[0], free.ids[5], free.ids[18]):
        engine = Engine(model, None, end_ids=[stop], overlap=True, block_size=4)
        first = free.ids.index(stop)
        done, other = engine.generate([[1, 2], [3]], params_of([20, 20]))
        assert done.ids == free.ids[: first + 1]
        assert done.finish_reason == "stop"
        follows(model, [3], other.ids)
        [again] = engine.generate([[1, 2, *done.ids]], params_of([5], ignore_end=True))
        follows(model, [1, 2, *done.ids], again.ids)
        idle(engine)


@pytest.mark.parametrize("params", [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"top_logprobs": 2}])
def test_what_needs_to_know_the_last_token_waits_for_it(random_model: Maker, params: dict[str, Any]) -> None:
    model = random_model(CONFIG)
    asked = [SamplingParams(max_tokens=12, temperature=0, **params), *params_of([12])]
    results = []
    for overlap in (False, True):
        engine = Engine(model, None, overlap=overlap)
        results.append([(done.ids, done.finish_reason) for done in engine.generate([[1], [2]], asked)])
        assert engine._core.overlapped_steps == 0
    assert results[0] == results[1]


def test_a_long_prompt_does_not_hold_up_those_who_are_being_answered(random_model: Maker) -> None:
    engine = Engine(random_model(CONFIG), None, max_batch=4, step_tokens=16, block_size=16)
    short = engine._request([1], SamplingParams(max_tokens=50, temperature=0))
    long = engine._request([2] * 200, SamplingParams(max_tokens=5, temperature=0))
    core = engine._core
    core.scheduler.add(short)
    core.step()
    core.scheduler.add(long)
    for made in range(2, 20):
        core.step()
        assert short.outputs.qsize() == made, "one token per step"
    assert long.outputs.qsize() > 0, "and the prompt was computed in chunks at the same time"


def test_a_known_beginning_is_not_computed_again(random_model: Maker) -> None:
    engine = Engine(random_model(CONFIG), None, block_size=16)
    computed: list[int] = []
    forward = engine._core.runner.forward

    def counted(chunks: Sequence[Chunk]) -> torch.Tensor:
        computed.append(sum(chunk.count for chunk in chunks))
        return forward(chunks)

    engine._core.runner.forward = counted  # type: ignore[method-assign]
    system = list(range(100))
    engine.generate([[*system, 1]], params_of([1]))
    assert sum(computed) == 101
    computed.clear()
    engine.generate([[*system, 2]], params_of([1]))
    assert sum(computed) == 1, "only the token that differs, although it is within a block"
    engine.update_weights(())
    computed.clear()
    engine.generate([[*system, 2]], params_of([1]))
    assert sum(computed) == 101, "new weights invalidate cached keys"


def test_continuations_share_the_prompt_and_keep_their_own_seeds(random_model: Maker) -> None:
    engine = Engine(random_model(CONFIG), None, block_size=16, prefix_cache=False, max_batch=3)
    prompt = list(range(70))
    computed: list[int] = []
    forward = engine._core.runner.forward

    def counted(chunks: Sequence[Chunk]) -> torch.Tensor:
        computed.append(sum(chunk.count for chunk in chunks))
        return forward(chunks)

    engine._core.runner.forward = counted  # type: ignore[method-assign]
    three = engine.generate([prompt], SamplingParams(max_tokens=12, seed=5, n=3))
    assert sum(computed) == 70 + 3 * 11
    alone = [engine.generate([prompt], SamplingParams(max_tokens=12, seed=5 + i))[0] for i in range(3)]
    assert [done.ids for done in three] == [done.ids for done in alone]
    assert len({tuple(done.ids) for done in three}) == 3
    five = engine.generate([prompt, [1]], SamplingParams(max_tokens=12, seed=5, n=5))  # more than can run at once
    assert [done.ids for done in five[:3]] == [done.ids for done in three]
    assert len(five) == 10
    idle(engine)


def test_logprobs_of_prompt_and_text_are_the_models(random_model: Maker) -> None:
    model = random_model(CONFIG)
    engine = Engine(model, None, step_tokens=16, max_batch=2)
    prompt = list(range(100, 150))
    params = SamplingParams(max_tokens=5, temperature=0, top_logprobs=4, prompt_logprobs=2)
    engine.generate([prompt], params_of([1]))  # so that the prompt is cached
    done = engine.generate([prompt, [3]], params)[0]
    ids = [*prompt, *done.ids]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0].log_softmax(-1)
    assert len(done.prompt_logprobs) == len(prompt)
    assert done.prompt_logprobs[0] == ()
    for at in range(1, len(ids)):
        if at < len(prompt):
            (own, *best) = done.prompt_logprobs[at]
            assert own.id == ids[at]
            assert own.logprob == pytest.approx(logprobs[at - 1, ids[at]].item(), abs=1e-4)
        else:
            best = list(done.top_logprobs[at - len(prompt)])
            assert done.logprobs[at - len(prompt)] == pytest.approx(best[0].logprob)
        expected = logprobs[at - 1].topk(2 if at < len(prompt) else 4)
        assert [token.id for token in best] == expected.indices.tolist()
        assert [token.logprob for token in best] == pytest.approx(expected.values.tolist(), abs=1e-4)
    assert engine.generate([[3]], params)[0].prompt_logprobs == [()]


@pytest.mark.parametrize("first", [1, 2, 16, 17, 33, 49, 50, 80])
def test_a_part_of_the_prompt_is_scored_as_in_the_whole_and_the_rest_may_come_from_the_cache(
    random_model: Maker, first: int
) -> None:
    engine = Engine(random_model(CONFIG), None, step_tokens=7, deterministic=True)
    prompt = list(range(100, 150))
    whole = engine.generate([prompt], SamplingParams(max_tokens=1, prompt_logprobs=1))[0].prompt_logprobs
    part = engine.submit(prompt, SamplingParams(max_tokens=0, prompt_logprobs=1, prompt_logprobs_from=first))
    assert list(part) == []
    assert part.prompt_logprobs == [*[()] * min(first, 50), *whole[first:]]
    assert part.cached_tokens == min(first - 1, 49)
    engine.close()
