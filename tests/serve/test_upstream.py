"""Another server behind ours: the same answers as from it directly, whatever words it has for them."""

import asyncio
import json
import re
import time
from collections.abc import Iterator

import httpx
import pytest
from fronts import CHAT, MESSAGES, Front, before, frames
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import PunaError
from puna.serve.backends.upstream import parse, request_mapping
from puna.serve.backends.upstream.backend import root_of
from puna.serve.backends.upstream.sse import events
from puna.serve.openai.protocol import ChatRequest, CompletionRequest, Usage
from puna.web.errors import ApiError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
        },
    }
]


@pytest.fixture(scope="module")
def front(live) -> Iterator[Front]:
    with before(live.url) as made:
        yield made


def told(answer: dict) -> dict:
    """An answer without what differs from one to the next."""
    left = {key: value for key, value in answer.items() if key not in ("id", "created")}
    usage = left.get("usage")
    if usage:
        left["usage"] = {key: value for key, value in usage.items() if not key.endswith("_details")}
    return _rounded(json.loads(re.sub(r"call-[0-9a-f]{32}", "call", json.dumps(left))))


def _rounded(value):
    """Logprobs differ in the seventh digit with who else was in the batch."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"logprobs": True, "top_logprobs": 3},
        {"n": 2, "seed": 5, "temperature": 1},
        {"tools": TOOLS, "tool_choice": "required", "max_tokens": 60},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_time"}}, "max_tokens": 60},
        {"response_format": {"type": "json_object"}, "max_tokens": 30},
        {"stop": ["e", "a"], "max_tokens": 30},
        {"logit_bias": {"100": 100}, "max_tokens": 3},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *MESSAGES]},
    ],
)
def test_chat_is_what_it_is_without_us_between(live, front, more) -> None:
    body = {**CHAT, **more}
    direct, through = live.post("/v1/chat/completions", body), front.post("/v1/chat/completions", body)
    assert through.status_code == direct.status_code == 200, through.text
    assert told(through.json()) == told(direct.json())
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    direct, through = live.post("/v1/chat/completions", streamed), front.post("/v1/chat/completions", streamed)
    assert _folded(frames(through.text)) == _folded(frames(direct.text))
    assert frames(through.text)[-1]["choices"] == []
    first = frames(through.text)[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert first["finish_reason"] is None


def _folded(chunks: list[dict]) -> dict:
    """A stream's texts, calls, reasons and logprobs; how it was cut depends on the moment."""
    texts: dict[int, dict] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            text = texts.setdefault(choice["index"], {"content": "", "calls": "", "tokens": [], "reasons": []})
            delta = choice.get("delta", {})
            text["content"] += (delta.get("content") or "") + choice.get("text", "")
            text["calls"] += "".join(str(call["function"]) for call in delta.get("tool_calls", ()))
            text["tokens"] += (choice["logprobs"] or {}).get("content", [])
            text["reasons"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return _rounded({**texts, "completion_tokens": chunks[-1]["usage"]["completion_tokens"]})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"echo": True, "logprobs": 2},
        {"echo": True, "logprobs": 1, "max_tokens": 0},
        {"prompt": [[5, 6, 7], [8, 9]], "logprobs": 1, "n": 2, "seed": 3, "temperature": 1},
        {"prompt": ["The ships", "Grüße aus 東京"], "stop": "e"},
    ],
)
def test_completions_are_what_they_are_without_us_between(live, front, more) -> None:
    body = {"prompt": "The harbour", "max_tokens": 8, "temperature": 0, **more}
    direct, through = live.post("/v1/completions", body), front.post("/v1/completions", body)
    assert through.status_code == direct.status_code == 200, through.text
    assert told(through.json()) == told(direct.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "x " * 2000}]}),
        ("/v1/chat/completions", {**CHAT, "logit_bias": {"99999": 1}}),
        ("/v1/chat/completions", {**CHAT, "model": "nobody"}),
        ("/v1/chat/completions", {**CHAT, "temperature": -1}),
        ("/v1/completions", {"prompt": [1, 2, 600]}),
        (
            "/v1/completions",
            {"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 3}}}},
        ),
    ],
)
def test_refusals_are_what_they_are_without_us_between(live, front, path, body) -> None:
    direct, through = live.post(path, body), front.post(path, body)
    assert 400 <= through.status_code == direct.status_code < 500
    assert through.json() == direct.json()
    streamed = front.post(path, {**body, "stream": True})
    assert streamed.status_code == direct.status_code
    assert streamed.json() == direct.json()


def test_embeddings_and_the_card(live, front) -> None:
    body = {"input": ["The harbour", "Ships"]}
    assert front.post("/v1/embeddings", body).json() == live.post("/v1/embeddings", body).json()
    card = front.api.get("/v1/models").json()["data"][0]
    assert card["id"] == "tiny"
    assert card["max_model_len"] == 512


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_what_openai_has_not_is_said(front, path) -> None:
    answer = front.post(path, {"prompt": "x", "tokens": [1]})
    assert answer.status_code == 501
    assert answer.json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize(
    "more",
    [{"top_k": 5}, {"structured_outputs": {"choice": ["a", "b"]}}, {"ignore_eos": True}, {"return_token_ids": True}],
)
def test_what_the_other_server_does_not_know_is_refused_not_dropped(front, more) -> None:
    answer = front.post("/v1/chat/completions", {**CHAT, **more})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == next(iter(more))


def test_vllm_words_reach_a_server_that_knows_them(live) -> None:
    with before(live.url, "vllm") as front:
        more = {"structured_outputs": {"choice": ["harbour", "ships"]}, "return_token_ids": True, "top_k": 4}
        body = {**CHAT, **more}
        through = front.post("/v1/chat/completions", body).json()
        assert through["choices"][0]["message"]["content"] in ("harbour", "ships")
        assert told(through) == told(live.post("/v1/chat/completions", body).json())
        asked = {"messages": MESSAGES, "return_token_strs": True}
        assert front.post("/tokenize", asked).json() == live.post("/tokenize", asked).json()
        assert (
            front.post("/detokenize", {"tokens": [70, 71]}).json()
            == live.post("/detokenize", {"tokens": [70, 71]}).json()
        )


def test_who_leaves_stops_the_work_behind(live, front, eventually, monkeypatch) -> None:
    runner = live.engine._core.runner
    real, before_us = runner.forward, live.engine.stats()["steps"]

    def forward(*args, **options):
        time.sleep(0.05)  # 400 tokens take 20 s: nothing ends by itself while we look
        return real(*args, **options)

    monkeypatch.setattr(runner, "forward", forward)
    never_ends = {str(token): -100 for token in live.engine.end_ids}
    body = {**CHAT, "max_tokens": 400, "n": 4, "temperature": 1, "stream": True, "logit_bias": never_ends}
    with front.api.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
        assert eventually(lambda: live.server.in_flight() == 4)
    assert live.settled()
    with pytest.raises(httpx.ReadTimeout):
        front.api.post("/v1/chat/completions", json={**body, "stream": False}, timeout=1)
    assert live.settled()
    assert eventually(lambda: front.server.in_flight() == 0)
    assert front.backend.stats() == {"running": 0}
    assert live.engine.stats()["steps"] - before_us < 400  # one text to its end would be as many


# -- words -----------------------------------------------------------------------------------------------------------


def test_what_llama_server_is_told() -> None:
    request = ChatRequest.model_validate(
        {
            **CHAT,
            "tools": [*TOOLS, {"type": "function", "function": {"name": "other"}}],
            "tool_choice": {"type": "function", "function": {"name": "get_time"}},
            "max_completion_tokens": 7,
            "repetition_penalty": 1.5,
            "seed": -1,
            "logprobs": True,
        }
    )
    body = request_mapping.chat_body(request, "llama.cpp", "m")
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["get_time"]
    assert (body["max_tokens"], body["repeat_penalty"], body["top_k"], body["top_logprobs"]) == (7, 1.5, 0, 1)
    assert body["seed"] == 2**32 - 2
    complete = CompletionRequest.model_validate({"prompt": "x", "structured_outputs": {"choice": ['a"', "b"]}})
    assert request_mapping.completion_body(complete, "llama.cpp", "m")["grammar"] == 'root ::= "a\\"" | "b"'
    for more in ({"echo": True}, {"structured_outputs": {"regex": "a"}}):
        with pytest.raises(ApiError):
            request_mapping.completion_body(CompletionRequest.model_validate({"prompt": "x", **more}), "llama.cpp", "m")


def test_llama_servers_logprobs_become_the_older_form() -> None:
    request = CompletionRequest.model_validate({"prompt": "x", "logprobs": 1})
    entry = {"token": "ab", "logprob": -1, "bytes": [97, 98], "top_logprobs": [{"token": "c", "logprob": -0.5}]}
    offsets: dict[int, int] = {}
    for at in (0, 2):
        event = {"choices": [{"index": 0, "text": "ab", "logprobs": {"content": [entry]}, "finish_reason": None}]}
        named = parse.completion_event(event, "m", offsets, request)["choices"][0]["logprobs"]
        assert named == {
            "tokens": ["ab"],
            "token_logprobs": [-1],
            "top_logprobs": [{"c": -0.5, "ab": -1}],
            "text_offset": [at],
        }


def test_llama_servers_usage_is_that_of_one_text_each() -> None:
    one = Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)
    two = CompletionRequest.model_validate({"prompt": ["a", "b"], "n": 2})
    whole = parse.whole_usage([one] * 4, "llama.cpp", two)
    assert (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens) == (14, 12, 26)
    assert parse.whole_usage([one], "llama.cpp", two) == one
    none = CompletionRequest.model_validate({"prompt": "a", "max_tokens": 0, "echo": True})
    assert parse.whole_usage([one], "vllm", none).completion_tokens == 0
    request = CompletionRequest.model_validate({"prompt": "x", "logit_bias": {"9": 1}})
    with pytest.raises(ApiError, match="end at 8"):
        request_mapping.check_bias(request, [{"id": "m", "meta": {"n_vocab": 9}}])
    request_mapping.check_bias(request, [{"id": "m"}])


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=5),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 9),
)
def test_events_are_found_however_they_are_cut(texts: list[str], end: str, cut: int) -> None:
    data = "".join(f"data: {text}{end}{end}" for text in texts).encode() + b"\n\n"

    async def pieces():
        for at in range(0, len(data), cut):
            yield data[at : at + cut]

    async def read() -> list[bytes]:
        return [event async for event in events(pieces())]

    told_until = next((at for at, text in enumerate(texts) if text.strip() == "[DONE]"), len(texts))
    assert asyncio.run(read()) == [text.encode() for text in texts[:told_until]]


def test_addresses() -> None:
    assert root_of("http://host:1/v1/") == root_of("http://host:1") == "http://host:1"
    assert root_of("https://host/api/v1") == "https://host/api"
    for wrong in ("host:1", "ftp://host", "http://", "http://[", ""):
        with pytest.raises(PunaError):
            root_of(wrong)
