"""The engine's thread: many callers at once, isolated faults, weight updates."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.core.scheduler import Chunk
from puna.engine.generate import Engine, SamplingParams
from puna.engine.request import DeadlineError, EngineError, Request, TokenOutput
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
GREEDY = SamplingParams(max_tokens=20, temperature=0)
LONG = SamplingParams(max_tokens=200, temperature=0)
PROMPTS = [[i, i + 1, i + 2, *range(i)] for i in range(1, 9)]


@pytest.fixture
def model(random_model: Maker) -> LlamaForCausalLM:
    return random_model(ModelConfig(preset="nano"))


@pytest.fixture(params=[False, True], ids=["", "overlap"])
def engine(model: LlamaForCausalLM, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(model, None, max_batch=4, block_size=8, deterministic=True, overlap=request.param)
    yield engine
    engine.close()
    engine._core.scheduler.pool.check()
    assert engine._core.scheduler.pool.counts()["held"] == 0


def ids(steps: Sequence[TokenOutput]) -> list[int]:
    return [step.id for step in steps]


def undisturbed(model: LlamaForCausalLM, params: SamplingParams = GREEDY) -> list[list[int]]:
    return [done.ids for done in Engine(model, None, block_size=8, deterministic=True).generate(PROMPTS, params)]


def faulty(engine: Engine, fault: Callable[[Sequence[Chunk], torch.Tensor], None]) -> None:
    """Let `fault` inspect, modify or reject the result of each forward."""
    forward = engine._core.runner.forward

    @torch.inference_mode()
    def spoiled(chunks: Sequence[Chunk], *said: torch.Tensor) -> torch.Tensor:
        logits = forward(chunks, *said)
        fault(chunks, logits)
        return logits

    engine._core.runner.forward = spoiled  # type: ignore[method-assign]


def test_requests_from_many_threads_get_what_they_get_alone(engine: Engine, model: LlamaForCausalLM) -> None:
    answers: dict[int, list[int]] = {}

    def ask(i: int) -> None:
        if i % 3 == 0:
            answers[i] = ids(list(engine.submit(PROMPTS[i], GREEDY)))
        elif i % 3 == 1:
            answers[i] = engine.generate([PROMPTS[i]], GREEDY)[0].ids
        else:
            answers[i] = [token for token, _ in engine.stream(PROMPTS[i], GREEDY)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(len(PROMPTS))] == undisturbed(model)


def test_a_failing_forward_fails_its_requests_and_nobody_else(engine: Engine, model: LlamaForCausalLM) -> None:
    def fault(chunks: Sequence[Chunk], logits: torch.Tensor) -> None:
        if any(chunk.sequence.request.prompt == PROMPTS[0] and chunk.start > 8 for chunk in chunks):
            raise RuntimeError("out of memory in a kernel")

    faulty(engine, fault)
    with pytest.raises(EngineError, match=r"failed in a step \(RuntimeError: out of memory in a kernel\)"):
        list(engine.submit(PROMPTS[0], GREEDY))
    later = [engine.submit(prompt, GREEDY) for prompt in PROMPTS[1:]]
    assert [ids(list(request)) for request in later] == undisturbed(model)[1:]


def test_nan_in_one_row_fails_that_request_alone(engine: Engine, model: LlamaForCausalLM) -> None:
    def fault(chunks: Sequence[Chunk], logits: torch.Tensor) -> None:
        at = 0
        for chunk in chunks:
            if chunk.sequence.request.prompt == PROMPTS[2] and chunk.end > 12:
                logits[at, 7] = float("nan")
                # Like a fault in a layer: also in the keys and values, which other requests will be given later.
                engine._core.scheduler.pool.store[:, :, :, chunk.sequence.block_table[0]] = float("nan")
            at += len(chunk.rows)

    faulty(engine, fault)
    requests = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    for i, (request, expected) in enumerate(zip(requests, undisturbed(model), strict=True)):
        if i == 2:
            with pytest.raises(EngineError, match="logits after 13 tokens are not finite"):
                list(request)
        else:
            assert ids(list(request)) == expected
    # Use every block of the pool.
    for prompt in PROMPTS:
        if prompt != PROMPTS[2]:
            engine.generate([prompt], LONG)


def test_a_tokenizers_exception_fails_its_request_alone(model: LlamaForCausalLM) -> None:
    class Fussy:
        vocab_size, eos_ids, drops_first_space = 512, (), False

        def shown_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
            if token == bad:
                raise ValueError("no such token")
            return b"x"

    expected = [done.ids for done in Engine(model, None).generate(PROMPTS, GREEDY)]
    bad = next(token for token in expected[1] if all(token not in row for row in (*expected[:1], *expected[2:])))
    engine = Engine(model, Fussy())  # type: ignore[arg-type]
    requests = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    for i, request in enumerate(requests):
        if i == 1:
            with pytest.raises(EngineError, match=f"Token {bad} could not be decoded to text"):
                list(request)
        else:
            assert ids(list(request)) == expected[i]
    engine.close()


def test_cancelling_ends_the_iteration_and_frees_the_pages(engine: Engine, model: LlamaForCausalLM) -> None:
    doomed = [engine.submit(prompt, LONG) for prompt in PROMPTS[:4]]
    later = engine.submit(PROMPTS[4], GREEDY)
    for request in doomed:
        next(iter(request))
        request.cancel()
    assert all(len(list(request)) < 199 for request in doomed)
    assert ids(list(later)) == undisturbed(model)[4]
    assert doomed[0].completions([])[0].finish_reason == "cancelled"


def test_a_deadline_is_kept_also_in_the_queue(engine: Engine) -> None:
    late = engine.submit(PROMPTS[0], LONG, deadline_seconds=0)
    with pytest.raises(DeadlineError, match="deadline passed after 0 tokens"):
        list(late)


def test_weights_change_in_place_under_load(engine: Engine, random_model: Maker) -> None:
    other = random_model(ModelConfig(preset="nano"), seed=1)
    started = threading.Event()
    faulty(engine, lambda chunks, logits: started.set())
    requests = [engine.submit(prompt, LONG) for prompt in PROMPTS[:3]]
    started.wait(60)
    place = engine.model.head_weight.data_ptr()
    assert engine.update_weights(other.named_parameters()) == 1
    assert engine.model.head_weight.data_ptr() == place
    for request in requests:
        steps = list(request)
        versions = [step.weight_version for step in steps]
        assert versions == sorted(versions)
        new = versions.index(1)
        said = [*request.prompt, *ids(steps)]
        with torch.no_grad():
            logits = other(torch.tensor([said]))[0, len(request.prompt) - 1 + new : -1]
        own = logits.gather(-1, torch.tensor(ids(steps)[new:])[:, None]).flatten()
        assert (logits.amax(-1) - own < 1e-4).all(), "from there on the new model's result for all tokens so far"


def test_wrong_weights_are_refused(engine: Engine) -> None:
    with pytest.raises(PunaError, match=r"no weight model\.norm\.weigth\. Did you mean 'model\.norm\.weight'"):
        engine.update_weights([("model.norm.weigth", torch.zeros(64))])
    with pytest.raises(PunaError, match=r"model\.norm\.weight is \(3,\), but the model's is \(64,\)"):
        engine.update_weights([("model.norm.weight", torch.zeros(3))])
    assert engine.weight_version == 2


def test_closing_fails_what_is_on_its_way_and_what_comes_after(engine: Engine) -> None:
    request = engine.submit(PROMPTS[0], LONG)
    engine.close()
    with pytest.raises(EngineError, match="engine is closed"):
        list(request)
    with pytest.raises(EngineError, match="engine is closed"):
        engine.generate([PROMPTS[0]])


def test_a_defect_of_the_engine_reaches_everybody_who_waits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("lost")

    monkeypatch.setattr(engine._core.scheduler, "schedule", broken)
    requests: list[Request] = [engine.submit(prompt, GREEDY) for prompt in PROMPTS]
    for request in requests:
        with pytest.raises(EngineError, match="KeyError"):
            list(request)


def test_streams_take_turns_and_an_abandoned_one_leaves_nothing(model: LlamaForCausalLM) -> None:
    engine = Engine(model, None, block_size=8, deterministic=True)
    one, two = (engine.stream(PROMPTS[i], GREEDY) for i in (0, 1))
    got: tuple[list[int], list[int]] = ([], [])
    for _ in range(20):
        got[0].append(next(one)[0])
        got[1].append(next(two)[0])
    assert [*got] == undisturbed(model)[:2]
    left = engine.stream(PROMPTS[2], LONG)
    next(left)
    assert engine.stats()["blocks"]["held"] > 0
    del left
    assert engine.stats()["blocks"]["held"] == 0
    unused = engine.stream(PROMPTS[2], LONG)
    del unused
    assert engine.stats()["waiting"] == 0


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (SamplingParams(max_tokens=62), "3 tokens and max_tokens = 62 are 65, but the KV cache holds 64"),
        (SamplingParams(logit_bias={512: 1.0}), "logit_bias names token id 512, but ids are 0 to 511"),
    ],
)
def test_what_can_never_run_is_refused_at_once(model: LlamaForCausalLM, params: SamplingParams, words: str) -> None:
    engine = Engine(model, None, kv_tokens=64, block_size=8)
    with pytest.raises(PunaError, match=words):
        engine.submit([1, 2, 3], params)
    with pytest.raises(PunaError, match="a stream has one"):
        engine.stream([1], SamplingParams(n=2))


def test_steps_are_brought_to_who_asked_for_that(engine: Engine, model: LlamaForCausalLM) -> None:
    brought: list[TokenOutput | Exception | None] = []
    ended = threading.Event()

    def deliver(step: TokenOutput | Exception | None) -> None:
        brought.append(step)
        if not isinstance(step, TokenOutput):
            ended.set()

    engine.submit(PROMPTS[2], GREEDY, deliver=deliver)
    assert ended.wait(60)
    assert brought.pop() is None
    assert [step.id for step in brought if isinstance(step, TokenOutput)] == undisturbed(model)[2]
