"""A backend from one function: text in pieces becomes OpenAI's protocol, whatever the pieces are."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.serve.backends.text import Prompt, TextBackend
from puna.serve.openai.protocol import ChatRequest, CompletionRequest
from puna.web.errors import ApiError


def backend(pieces: Sequence[str], seen: list[Prompt] | None = None) -> TextBackend:
    async def say(prompt: Prompt, request: object) -> AsyncIterator[str]:
        if seen is not None:
            seen.append(prompt)
        for piece in pieces:
            yield piece

    return TextBackend("mine", say)


def completed(model: TextBackend, **body: object) -> tuple[str, str | None, int]:
    """Text, the reason for its end and the tokens counted."""

    async def run() -> tuple[str, str | None, int]:
        chunks = [chunk async for chunk in model.complete(CompletionRequest(prompt="x", **body))]
        assert not chunks[-1].choices
        assert chunks[-1].usage is not None
        choices = [choice for chunk in chunks[:-1] for choice in chunk.choices]
        return "".join(one.text for one in choices), choices[-1].finish_reason, chunks[-1].usage.completion_tokens

    return asyncio.run(run())


@given(
    st.text("abc", max_size=30),
    st.lists(st.integers(1, 5), max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(
    text: str, cuts: list[int], stops: list[str]
) -> None:
    pieces, rest = [], text
    for size in [*cuts, len(text) + 1]:
        pieces.append(rest[:size])
        rest = rest[size:]
    found, reason, _ = completed(backend(pieces), stop=stops or None, max_tokens=1000)
    places = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert found == (text[: min(places)] if places else text)
    assert reason == "stop"


def test_max_tokens_counts_pieces() -> None:
    assert completed(backend(["one ", "two ", "three"]), max_tokens=2) == ("one two ", "length", 2)
    assert completed(backend(["one ", "two "]), max_tokens=5) == ("one two ", "stop", 2)


def test_a_dialogue_comes_whole_and_its_last_message_alone() -> None:
    seen: list[Prompt] = []
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]

    async def run() -> list[object]:
        request = ChatRequest.model_validate({"messages": messages})
        return [chunk async for chunk in backend(["Good", " day"], seen).chat(request)]

    chunks = asyncio.run(run())
    assert [choice.delta.content for chunk in chunks for choice in chunk.choices] == ["Good", " day", ""]
    assert seen == [Prompt("Hello", tuple(messages))]


def test_an_answer_that_takes_too_long_is_a_timeout_and_ends_the_function() -> None:
    ended: list[bool] = []

    async def slow(prompt: Prompt, request: object) -> AsyncIterator[str]:
        try:
            yield "at once"
            await asyncio.sleep(3600)
        finally:
            ended.append(True)

    async def run() -> None:
        async for _ in TextBackend("slow", slow).complete(CompletionRequest(prompt="x"), deadline_seconds=0.05):
            pass

    with pytest.raises(ApiError, match="took longer") as error:
        asyncio.run(run())
    assert (error.value.status, ended) == (504, [True])


def test_a_reader_who_leaves_ends_the_function() -> None:
    ended: list[bool] = []

    async def endless(prompt: Prompt, request: object) -> AsyncIterator[str]:
        try:
            while True:
                yield "again "
        finally:
            ended.append(True)

    async def run() -> None:
        model = TextBackend("endless", endless)
        chunks = model.complete(CompletionRequest(prompt="x", max_tokens=None))
        await anext(chunks)
        assert model.stats()["running"] == 1
        await chunks.aclose()
        assert model.stats()["running"] == 0

    asyncio.run(run())
    assert ended == [True]


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("n", {"n": 2}),
        ("logprobs", {"logprobs": 1}),
        ("echo", {"echo": True}),
        ("prompt", {"prompt": ["x", "y"]}),
        ("prompt", {"prompt": [1, 2]}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("structured_outputs", {"structured_outputs": {"regex": "a"}}),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(field: str, body: dict[str, object]) -> None:
    async def run() -> None:
        request = CompletionRequest.model_validate({"prompt": "x", **body})
        await anext(backend(["x"]).complete(request))

    with pytest.raises(ApiError, match=f"{field} is not supported") as error:
        asyncio.run(run())
    assert (error.value.status, error.value.param) == (400, field)


def test_closing_calls_what_was_given() -> None:
    closed: list[bool] = []

    async def say(prompt: Prompt, request: object) -> AsyncIterator[str]:
        yield "x"

    asyncio.run(TextBackend("mine", say, close=lambda: closed.append(True)).close())
    assert closed == [True]
