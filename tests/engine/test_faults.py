"""Failures stay isolated: other requests are bit-equal to an undisturbed run, and no block is lost."""

import contextlib
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic, sleep
from typing import Any

import psutil
import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.core.scheduler import Chunk
from puna.engine.cuda import in_flight
from puna.engine.generate import Engine, SamplingParams
from puna.engine.request import DeadlineError, EngineError, Request, TokenOutput
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
Forward = Callable[..., torch.Tensor]
PARAMS = [SamplingParams(max_tokens=12, temperature=0), SamplingParams(max_tokens=14, seed=2)] * 3
PROMPTS = [[i, i + 1, i + 2, *range(3 * i)] for i in range(1, 7)]


@pytest.fixture(scope="module")
def model(random_model: Maker) -> LlamaForCausalLM:
    return random_model(ModelConfig(preset="nano"))


@pytest.fixture(scope="module")
def expected(model: LlamaForCausalLM) -> list[list[int]]:
    """The ids of each prompt without any failure."""
    return [done.ids for done in Engine(model, None, block_size=8, deterministic=True).generate(PROMPTS, PARAMS)]


@pytest.fixture(params=[False, True], ids=["", "overlap"])
def engine(model: LlamaForCausalLM, request: pytest.FixtureRequest) -> Iterator[Engine]:
    options = {"max_batch": 4, "block_size": 8, "step_tokens": 32, "overlap": request.param}
    engine = Engine(model, None, deterministic=True, **options)
    yield engine
    engine.close()
    whole(engine)


def whole(engine: Engine) -> None:
    """Assert that no block is lost and no request waits."""
    engine._core.scheduler.pool.check()
    assert engine.stats()["blocks"]["held"] == 0
    assert not engine._core.scheduler.requests()
    assert not engine.stuck(0)


def disturbed(engine: Engine, fault: Callable[[Sequence[Chunk]], Any]) -> None:
    """Let `fault` inspect, delay or reject each forward."""
    forward: Forward = engine._core.runner.forward

    def spoiled(chunks: Sequence[Chunk], *said: torch.Tensor) -> torch.Tensor:
        fault(chunks)
        return forward(chunks, *said)

    engine._core.runner.forward = spoiled  # type: ignore[method-assign]


def is_of(chunk: Chunk, prompt: int) -> bool:
    return chunk.sequence.request.prompt == PROMPTS[prompt]


def submit(engine: Engine) -> list[Request]:
    return [engine.submit(prompt, params) for prompt, params in zip(PROMPTS, PARAMS, strict=True)]


def ids(request: Request) -> list[int]:
    return [made.id for made in request]


@pytest.mark.parametrize("at", [0, 1, 5])
def test_an_exception_at_a_step_ends_whoever_causes_it(engine: Engine, expected: list[list[int]], at: int) -> None:
    def fault(chunks: Sequence[Chunk]) -> None:
        if any(is_of(chunk, 2) and len(chunk.sequence.output_ids) >= at for chunk in chunks):
            raise RuntimeError("a kernel failed")

    disturbed(engine, fault)
    for i, request in enumerate(submit(engine)):
        if i == 2:
            with pytest.raises(EngineError, match=r"failed in a step \(RuntimeError: a kernel failed\)"):
                ids(request)
        else:
            assert ids(request) == expected[i]


def test_a_fault_that_passes_harms_nobody(engine: Engine, expected: list[list[int]]) -> None:
    faults = iter([0, 0, 0, 1, 0, 0, 1])

    def fault(chunks: Sequence[Chunk]) -> None:
        if len(chunks) > 1 and next(faults, 0):
            raise RuntimeError("once")

    disturbed(engine, fault)
    assert [ids(request) for request in submit(engine)] == expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_in_a_prefill_ends_it_alone(engine: Engine, expected: list[list[int]], error: Exception) -> None:
    def fault(chunks: Sequence[Chunk]) -> None:
        if any(is_of(chunk, 5) and chunk.count > 1 for chunk in chunks):
            raise error

    disturbed(engine, fault)
    for i, request in enumerate(submit(engine)):
        if i == 5:
            with pytest.raises(EngineError, match="there was not enough memory"):
                ids(request)
        else:
            assert ids(request) == expected[i]


def test_memory_that_is_short_for_a_batch_is_enough_for_its_halves(
    engine: Engine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.engine.core.errors.gc.collect", lambda: 0)  # takes a quarter of a second each time here

    def fault(chunks: Sequence[Chunk]) -> None:
        if len(chunks) > 2:
            raise torch.OutOfMemoryError("out of memory")

    disturbed(engine, fault)
    assert [ids(request) for request in submit(engine)] == expected


def test_nan_where_a_prompt_is_scored_ends_that_request(engine: Engine, expected: list[list[int]]) -> None:
    forward: Forward = engine._core.runner.forward

    @torch.inference_mode()
    def spoiled(chunks: Sequence[Chunk], *said: torch.Tensor) -> torch.Tensor:
        logits, at = forward(chunks, *said), 0
        for chunk in chunks:
            if chunk.prompt_rows:
                logits[at] = float("nan")
            at += len(chunk.rows)
        return logits

    engine._core.runner.forward = spoiled  # type: ignore[method-assign]
    scored = engine.submit([7, 8, 9], SamplingParams(max_tokens=0, prompt_logprobs=1))
    assert [ids(request) for request in submit(engine)] == expected
    with pytest.raises(EngineError, match="not finite"):
        list(scored)


def test_an_engine_that_hangs_is_known_and_goes_on(engine: Engine, expected: list[list[int]]) -> None:
    gate, inside = threading.Event(), threading.Event()

    def fault(chunks: Sequence[Chunk]) -> None:
        if any(chunk.sequence.output_ids for chunk in chunks):
            inside.set()
            assert gate.wait(60)

    sleep(0.1)
    assert not engine.stuck(0.05), "no request was made"
    disturbed(engine, fault)
    requests = submit(engine)
    assert inside.wait(60)
    deadline = monotonic() + 60
    while not engine.stuck(0.2):
        assert monotonic() < deadline
        sleep(0.01)
    stats = engine.stats()
    assert stats["busy"]
    assert stats["progress_age"] >= 0.2
    gate.set()
    assert [ids(request) for request in requests] == expected
    engine.close()
    assert not engine.stuck(0)


def test_a_rest_is_no_hanging_and_the_first_step_has_its_time(engine: Engine) -> None:
    engine.generate([[1]], PARAMS[0])
    sleep(0.15)
    seen: list[bool] = []
    disturbed(engine, lambda chunks: seen.append(engine.stuck(0.14)))
    assert len(ids(engine.submit([1], PARAMS[0]))) == 12
    assert not seen[0]


def test_new_weights_under_load_and_a_bad_update(
    engine: Engine, model: LlamaForCausalLM, expected: list[list[int]]
) -> None:
    requests = submit(engine)
    same = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    with pytest.raises(PunaError):
        engine.update_weights([("no.such.weight", torch.zeros(1))])
    assert engine.update_weights(same.items()) == 2
    assert [ids(request) for request in requests] == expected, "the original weights give the original texts"


def test_a_pool_that_is_too_small_for_all_serves_all(model: LlamaForCausalLM, expected: list[list[int]]) -> None:
    engine = Engine(model, None, max_batch=6, kv_tokens=40, block_size=8, deterministic=True)
    assert [ids(request) for request in submit(engine)] == expected
    assert engine.stats()["preemptions"] > 0
    engine.close()
    whole(engine)


def test_a_consumer_that_raises_ends_its_own_request(engine: Engine, expected: list[list[int]]) -> None:
    calls: list[TokenOutput | Exception | None] = []

    def deliver(made: TokenOutput | Exception | None) -> None:
        calls.append(made)
        raise ConnectionError("the client is gone")

    gone = engine.submit([9, 9], SamplingParams(max_tokens=200), deliver=deliver)
    assert [ids(request) for request in submit(engine)] == expected
    assert len(calls) == 1
    assert gone.done
    assert isinstance(gone.delivery_error, ConnectionError)


@pytest.mark.parametrize(
    ("where", "overlap"),
    [("schedule", False), ("schedule_ahead", True), *itertools.product(["forward", "sample", "blocks"], [False, True])],
)
def test_ctrl_c_on_a_callers_thread_leaves_the_others_streams_whole(
    model: LlamaForCausalLM, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch, where: str, overlap: bool
) -> None:
    engine = Engine(model, None, max_batch=4, block_size=8, deterministic=True, overlap=overlap)
    stream = engine.stream(PROMPTS[1], PARAMS[1])
    said = [next(stream)[0] for _ in range(5)]
    left = iter([False, False, True])

    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            if next(left, False):
                raise KeyboardInterrupt
            return result

        return wrapper

    scheduler = engine._core.scheduler
    if where == "forward":
        monkeypatch.setattr(engine._core.runner, "forward", interrupted(engine._core.runner.forward))
    elif where.startswith("schedule"):
        monkeypatch.setattr(scheduler, where, interrupted(getattr(scheduler, where)))
    elif where == "blocks":
        monkeypatch.setattr(scheduler.pool, "allocate", interrupted(scheduler.pool.allocate))
    else:
        monkeypatch.setattr(in_flight, "sample", interrupted(in_flight.sample))
    with pytest.raises(KeyboardInterrupt):
        engine.generate([PROMPTS[0], PROMPTS[2]], SamplingParams(max_tokens=60, temperature=0))
    assert said + [token for token, _ in stream] == expected[1]
    assert engine.generate([PROMPTS[2]], PARAMS[2])[0].ids == expected[2]
    whole(engine)


@pytest.mark.parametrize("overlap", [False, True])
def test_hundreds_of_random_requests_leave_nothing_behind(model: LlamaForCausalLM, overlap: bool) -> None:
    engine = Engine(model, None, max_batch=8, kv_tokens=512, block_size=8, step_tokens=48, overlap=overlap)
    chance = random.Random(0)

    def burst(count: int) -> None:
        requests = []
        for _ in range(count):
            prompt = [chance.randrange(3)] * chance.randrange(1, 40) + [chance.randrange(512)]
            params = SamplingParams(
                max_tokens=chance.randrange(1, 24),
                n=chance.choice([1, 1, 1, 3]),
                seed=chance.randrange(9),
                prompt_logprobs=chance.choice([None, None, 1]),
                repetition_penalty=chance.choice([1.0, 1.2]),
            )
            late = chance.choice([None, None, None, 0.02])
            requests.append(engine.submit(prompt, params, deadline_seconds=late))
            if chance.random() < 0.3:
                chance.choice(requests).cancel()
        for request in requests:
            with contextlib.suppress(DeadlineError):
                list(request)

    process = psutil.Process()
    burst(60)
    before = process.memory_info().rss
    for _ in range(4):
        burst(60)
        engine._loop.between_steps(engine._core.scheduler.pool.check)
    grown = process.memory_info().rss - before
    assert grown < 24 * 2**20, f"{grown / 2**20:.0f} MiB more than after the warm-up"
    engine.close()
    whole(engine)
