"""The engine compared with transformers' generate, and its guarantees on batches, seeds, stops and streams."""

from collections.abc import Callable

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.engine.generate import Engine, SamplingParams
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM

Maker = Callable[..., LlamaForCausalLM]
GREEDY = SamplingParams(max_tokens=24, temperature=0)


class Bytes:
    """A tokenizer of single bytes, which is enough to check text output. 256 ends a text."""

    vocab_size, eos_ids, drops_first_space = 257, [256], False

    def shown_bytes(self, token: int, *, skip_special: bool = False) -> bytes:
        return bytes([token]) if token < 256 else b""


class Script:
    """Replaces the network and produces the given ids one after the other."""

    def __init__(self, ids: list[int]) -> None:
        self.config = ModelConfig(preset="nano")
        self.head_weight = torch.zeros(1)
        self.ids, self.at = ids, 0

    def modules(self) -> list[torch.nn.Module]:
        return []

    def __call__(self, ids: torch.Tensor, **_: object) -> torch.Tensor:
        logits = torch.zeros(len(ids), 257)
        logits[:, self.ids[self.at]] = 9.0
        self.at += 1
        return logits


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [torch.randint(0, 512, (n,), generator=generator).tolist() for n in lengths]


def test_greedy_equals_transformers(random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    twin = transformers.LlamaForCausalLM(transformers.LlamaConfig(**model.config.to_hf())).eval()
    twin.load_state_dict(model.state_dict())
    engine = Engine(model, None)
    for prompt in prompts(4):
        theirs = twin.generate(
            torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert engine.generate([prompt], GREEDY)[0].ids == theirs[0, len(prompt) :].tolist()


def test_a_batch_gives_what_each_prompt_alone_gives(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None, max_batch=3)
    batch = prompts(7, seed=1)
    params = [
        GREEDY,
        SamplingParams(max_tokens=5, temperature=0),
        SamplingParams(max_tokens=30, seed=3),
        SamplingParams(max_tokens=12, seed=3, top_k=20, temperature=0.7),
        SamplingParams(max_tokens=30, seed=4, top_p=0.8),
        GREEDY,
        SamplingParams(max_tokens=9, seed=5, min_p=0.1),
    ]
    together = engine.generate(batch, params)
    for prompt, p, completion in zip(batch, params, together, strict=True):
        alone = engine.generate([prompt], p)[0]
        assert completion.ids == alone.ids
        assert len(completion.ids) == p.max_tokens
        assert completion.finish_reason == "length"
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_logprobs_are_the_models_own(random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    prompt = prompts(1)[0]
    completion = Engine(model, None).generate([prompt], SamplingParams(max_tokens=10, temperature=2.0, seed=1))[0]
    ids = torch.tensor([prompt + completion.ids])
    with torch.no_grad():
        expected = model(ids).log_softmax(-1)[0, len(prompt) - 1 : -1].gather(-1, torch.tensor(completion.ids)[:, None])
    assert completion.logprobs == pytest.approx(expected.flatten().tolist(), abs=1e-4)


def test_seeds(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None)
    prompt = [1, 2, 3]
    runs = [
        engine.generate([prompt], SamplingParams(max_tokens=16, seed=seed))[0].ids for seed in (1, 1, 2, None, None)
    ]
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs}) == 4


def test_each_prompt_is_told_of_as_soon_as_it_and_those_before_have_ended(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), None)
    asked = prompts(3)
    params = [SamplingParams(max_tokens=size, n=2, seed=size) for size in (4, 60, 8)]
    whole = [done.ids for done in engine.generate(asked, params)]
    rows = engine.generate_each(asked, params)
    first = next(rows)
    assert [done.ids for done in first] == whole[:2]
    assert engine.stats()["running"] > 0  # the second is still running
    assert [done.ids for done in (*first, *next(rows), *next(rows))] == whole
    assert next(rows, None) is None
    rows = engine.generate_each(asked, params)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert engine.stats()["running"] == engine.stats()["blocks"]["held"] == 0
    with pytest.raises(PunaError):
        engine.generate_each([[]])  # raises at the call, not at the first answer


def test_end_tokens_stop_ids_and_the_context_end_a_text(random_model: Maker) -> None:
    model = random_model(ModelConfig(preset="nano"))
    ids = Engine(model, None).generate([[1, 2, 3]], GREEDY)[0].ids
    end = ids[3]
    expected = ids[: ids.index(end) + 1]
    by_model = Engine(model, None, end_ids=[end]).generate([[1, 2, 3]], GREEDY)[0]
    by_request = Engine(model, None).generate(
        [[1, 2, 3]], SamplingParams(max_tokens=24, temperature=0, stop_ids=(end,))
    )[0]
    assert by_model.ids == by_request.ids == expected
    assert by_model.finish_reason == by_request.finish_reason == "stop"
    full = Engine(model, None).generate([[7] * 250], GREEDY)[0]
    assert len(full.ids) == 256 - 250
    assert full.finish_reason == "length"


@settings(max_examples=200, deadline=None)
@given(
    said=st.text("abcé€🙂", min_size=1, max_size=12),
    stops=st.lists(st.text("abcé🙂", min_size=1, max_size=4), max_size=3),
    ended=st.booleans(),
)
def test_a_stream_is_the_text_up_to_the_first_stop_string(said: str, stops: list[str], ended: bool) -> None:
    ids = [*said.encode(), *([256] if ended else [])]
    params = SamplingParams(max_tokens=len(ids), temperature=0, stop=tuple(stops))
    # The stop string that is complete first wins; if several are complete at once, the one that starts first.
    expected = said
    for end in range(1, len(said) + 1):
        begins = [said[:end].find(stop) for stop in stops if stop in said[:end]]
        if begins:
            expected = said[: min(begins)]
            break
    streamed = list(Engine(Script(ids), Bytes()).stream([97], params))
    assert "".join(text for _, text in streamed) == expected
    completion = Engine(Script(ids), Bytes()).generate([[0]], params)[0]
    assert completion.text == expected
    assert completion.ids == [token for token, _ in streamed] == ids[: len(streamed)]
    assert completion.finish_reason == ("stop" if expected != said or ended else "length")


def test_what_the_tokenizer_does_not_have_is_never_said(random_model: Maker) -> None:
    engine = Engine(random_model(ModelConfig(preset="nano")), Bytes())  # type: ignore[arg-type]
    engine.end_ids = set()
    said = engine.generate([[1]], SamplingParams(max_tokens=200, temperature=5.0, seed=0))[0].ids
    assert len(set(said)) > 50
    assert max(said) < Bytes.vocab_size <= 512


def test_half_a_character_waits_and_a_broken_one_is_shown_as_such() -> None:
    euro = list("€".encode())
    pieces = [text for _, text in Engine(Script([*euro, *euro[:2]]), Bytes()).stream([0], SamplingParams(5, 0))]
    assert pieces == ["", "", "€", "", "\ufffd"]


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ([], GREEDY, "prompt is empty"),
        ([1] * 256, GREEDY, "256 tokens, but the model's context holds 256"),
        ([1, 512], GREEDY, "token id 512, but the model's ids are 0 to 511"),
        ([1, -1], GREEDY, "token id -1"),
        ([1], SamplingParams(stop=("x",)), "need a tokenizer"),
        ([1], [GREEDY, GREEDY], "1 prompts but 2"),
    ],
)
def test_bad_requests(random_model: Maker, prompt: list[int], params: SamplingParams, words: str) -> None:
    with pytest.raises(PunaError, match=words):
        Engine(random_model(ModelConfig(preset="nano")), None).generate([prompt], params)


def test_a_tokenizer_that_is_too_large_is_refused(random_model: Maker) -> None:
    with pytest.raises(PunaError, match="257 tokens but the model's vocab_size is 200"):
        Engine(random_model(ModelConfig(preset="nano", vocab_size=200)), Bytes())  # type: ignore[arg-type]
