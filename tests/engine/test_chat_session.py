"""Conversations: generated ids are reused unchanged, and an interrupted answer is kept."""

from collections.abc import Callable, Sequence

import pytest
import torch

from puna.core.errors import PunaError
from puna.engine.chat_session import ChatSession
from puna.engine.core.scheduler import Chunk
from puna.engine.generate import Engine, SamplingParams
from puna.model.config import ModelConfig
from puna.model.llama import LlamaForCausalLM
from puna.text.chat import render
from puna.text.tokenizer import train_tokenizer

PARAMS = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture
def engine(random_model: Callable[..., LlamaForCausalLM]) -> Engine:
    tokenizer = train_tokenizer(["how are you today, and how is the weather"] * 20, 320)
    return Engine(random_model(ModelConfig(preset="nano")), tokenizer)


def test_the_second_answer_follows_from_all_that_was_said(engine: Engine) -> None:
    talk = ChatSession(engine, chat=True, system="be brief")
    first = "".join(talk.send("how are you", PARAMS))
    second = "".join(talk.send("and the weather", PARAMS))
    assert [m["role"] for m in talk.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert engine.tokenizer is not None
    prompt = render(talk.messages[:4], engine.tokenizer, add_generation_prompt=True).ids
    said = talk.messages[2]["token_ids"]
    assert any(prompt[i : i + len(said)] == said for i in range(len(prompt))), "ids are reused, not encoded again"
    expected = engine.generate([prompt], PARAMS)[0]
    assert (talk.messages[4]["token_ids"], second) == (expected.ids, expected.text)
    assert talk.messages[2]["content"] == first
    talk.reset()
    assert [m["role"] for m in talk.messages] == ["system"]


def test_what_was_said_is_not_computed_again(engine: Engine) -> None:
    talk = ChatSession(engine, chat=True, system="be brief and say how the weather is today")
    "".join(talk.send("how are you", PARAMS))
    assert engine.tokenizer is not None
    known = len(render(talk.messages, engine.tokenizer).ids)
    forward, computed = engine._core.runner.forward, []

    def counted(chunks: Sequence[Chunk]) -> torch.Tensor:
        computed.extend(chunk.start for chunk in chunks)
        return forward(chunks)

    engine._core.runner.forward = counted  # type: ignore[method-assign]
    "".join(talk.send("and the weather", PARAMS))
    assert computed[0] >= known - 3, "all except the last token and the end of the turn"


def test_an_interrupted_answer_is_kept_as_far_as_it_went(engine: Engine) -> None:
    talk = ChatSession(engine, chat=True)
    answer = talk.send("how are you", SamplingParams(max_tokens=50, temperature=0))
    next(answer)
    next(answer)
    answer.close()
    assert len(talk.messages[1]["token_ids"]) == 2
    assert list(talk.send("go on", PARAMS)), "the conversation continues"


def test_what_does_not_fit_is_said_and_not_kept(engine: Engine) -> None:
    talk = ChatSession(engine, chat=True)
    with pytest.raises(PunaError, match="context holds 256"):
        list(talk.send("weather! " * 200, PARAMS))
    assert talk.messages == []


def test_a_base_model_continues_the_text_alone(engine: Engine) -> None:
    talk = ChatSession(engine, chat=False)
    list(talk.send("something before", PARAMS))
    assert engine.tokenizer is not None
    expected = engine.generate([engine.tokenizer.encode("how are", bos=True)], PARAMS)[0].text
    assert "".join(talk.send("how are", PARAMS)) == expected
    with pytest.raises(PunaError, match="base model"):
        ChatSession(engine, chat=False, system="x")
