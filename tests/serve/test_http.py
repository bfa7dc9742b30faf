"""HTTP as RFC 9110 and 9112 say, on a server as `puna serve` runs it; and heads and comments that come before text."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from puna.serve.app import create_app
from puna.serve.backends.base import Models
from puna.serve.backends.text import Prompt, TextBackend
from puna.serve.openai.objects import token_data, token_name
from puna.serve.run import Protocol
from puna.serve.settings import Settings
from puna.web import responses

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def waiting() -> threading.Event:
    """Set to let the model of `site` answer."""
    return threading.Event()


@contextlib.contextmanager
def serving(model: TextBackend, settings: Settings | None = None) -> Iterator[str]:
    app = create_app(settings or Settings(), Models([model]))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off", http=Protocol))
    thread = threading.Thread(target=lambda: asyncio.run(web.serve([listening])), daemon=True)
    thread.start()
    try:
        while not web.started:
            pass
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def url(waiting: threading.Event) -> Iterator[str]:
    async def say(prompt: Prompt, request: object) -> AsyncIterator[str]:
        if prompt.text == "wait":
            while not waiting.is_set():
                await asyncio.sleep(0.01)
        yield "Hello"

    with serving(TextBackend("mine", say), Settings(cors_origins=("https://a.example",))) as address:
        yield address


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as made:
        yield made


def raw(url: str, text: str) -> bytes:
    """Everything that a server sends for these bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20) as made:
        made.sendall(text.replace("\n", "\r\n").encode("latin-1"))
        found = b""
        while piece := made.recv(65536):
            found += piece
    return found


def is_error(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# -- the first byte --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "wait"}]}),
        ("/v1/completions", {"prompt": "wait"}),
        ("/v1/responses", {"input": "wait"}),
    ],
)
def test_the_head_and_comments_come_before_the_first_token(
    url: str, waiting: threading.Event, path: str, body: dict[str, Any]
) -> None:
    waiting.clear()
    with httpx.stream("POST", url + path, json={**body, "stream": True}, timeout=60, trust_env=False) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(3)] == [": waiting", "", ": waiting"]
        waiting.set()
        text = "\n".join(lines)
    assert "Hello" in text
    assert text.rstrip().endswith("data: [DONE]")


def test_an_error_before_the_head_keeps_its_status(api: httpx.Client) -> None:
    body = {"messages": MESSAGES, "stream": True, "n": 2}
    assert is_error(api.post("/v1/chat/completions", json=body), 400)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_a_request_that_is_admitted_is_answered_at_once(live, monkeypatch, path: str) -> None:
    """With Puna's own engine: no comment is due yet when the head comes, and the engine has made no step."""
    monkeypatch.setattr(responses, "COMMENT_SECONDS", 600.0)
    runner, free = live.engine._core.runner, threading.Event()
    real = runner.forward

    def forward(*args: Any, **options: Any) -> Any:
        free.wait(60)
        return real(*args, **options)

    field, value = {"chat/completions": ("messages", MESSAGES)}.get(path[4:], ("prompt", "x"))
    body: dict[str, Any] = {field: value, "max_tokens": 4, "stream": True}
    if path == "/v1/responses":
        body = {"input": "x", "max_output_tokens": 4, "stream": True}
    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", forward)
        try:
            with live.api.stream("POST", path, json=body) as answer:
                assert answer.status_code == 200
                free.set()
                assert answer.read().endswith(b"data: [DONE]\n\n")
        finally:
            free.set()
    assert live.settled()


# -- methods and headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/progress", "/v1/models", "/v1/models/mine", "/metrics",
                                  "/version", "/openapi.json"])  # fmt: skip
def test_head_is_get_without_a_body(api: httpx.Client, path: str) -> None:
    head, got = api.head(path), api.get(path)
    assert (head.status_code, got.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert head.headers["x-content-type-options"] == "nosniff"


def test_head_of_what_is_not_there(api: httpx.Client) -> None:
    assert api.head("/nothing").status_code == 404
    assert api.head("/v1/chat/completions").status_code == 405


def test_a_preflight_for_every_method_of_the_api(api: httpx.Client) -> None:
    for method in ("GET", "POST", "DELETE"):
        asked = {"origin": "https://a.example", "access-control-request-method": method}
        answer = api.options("/v1/responses/x", headers=asked)
        assert answer.status_code == 200
        assert method in answer.headers["access-control-allow-methods"]


def test_the_list_of_models_with_a_slash(api: httpx.Client) -> None:
    assert api.get("/v1/models/").json() == api.get("/v1/models").json()


@pytest.mark.parametrize("path", ["/health", "/ready", "/health/progress"])
def test_health_needs_no_host_name(url: str, path: str) -> None:
    assert raw(url, f"GET {path} HTTP/1.0\n\n").startswith(b"HTTP/1.1 200 ")
    assert raw(url, f"GET {path} HTTP/1.1\nConnection: close\n\n").startswith(b"HTTP/1.1 400 ")  # RFC 9112, 3.2
    assert raw(url, "GET /v1/models HTTP/1.0\n\n").startswith(b"HTTP/1.1 400 ")


def test_two_host_headers(url: str) -> None:
    two = "Host: localhost\nHost: localhost\nConnection: close\n\n"
    for path in ("/health", "/v1/models"):
        answer = raw(url, f"GET {path} HTTP/1.1\n{two}")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert set(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "text", ["nonsense\n\n", "GET / HTTP/9.9\n\n", "GET /a b HTTP/1.1\nHost: localhost\n\n",
             "GET / HTTP/1.1\nHost localhost\n\n", "POST / HTTP/1.1\nHost: x\nContent-Length: many\n\n"]
)  # fmt: skip
def test_what_is_not_http_gets_an_error_object(url: str, text: str) -> None:
    head, _, body = raw(url, text).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    assert b"x-content-type-options: nosniff" in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0_has_no_chunks(url: str, stream: bool) -> None:
    body = json.dumps({"messages": MESSAGES, "stream": stream})
    head, _, rest = raw(
        url,
        f"POST /v1/chat/completions HTTP/1.0\nHost: localhost\nContent-Type: application/json\n"
        f"Content-Length: {len(body)}\n\n{body}",
    ).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if stream:
        assert rest.startswith(b"data: {")
        assert rest.endswith(b"data: [DONE]\n\n")
    else:
        assert json.loads(rest)["choices"]


# -- bodies ----------------------------------------------------------------------------------------------------------

BODY = json.dumps({"messages": MESSAGES}).encode()
ZIPPED = gzip.compress(BODY, mtime=0)


def post(api: httpx.Client, data: bytes, coding: str) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return api.post("/v1/chat/completions", content=data, headers=headers)


@pytest.mark.parametrize(
    ("data", "coding"),
    [(ZIPPED, "gzip"), (ZIPPED, "GZIP"), (ZIPPED, "x-gzip"), (zlib.compress(BODY), "deflate"), (BODY, "identity")],
)
def test_a_body_in_a_coding(api: httpx.Client, data: bytes, coding: str) -> None:
    assert post(api, data, coding).status_code == 200


def test_bodies_that_cannot_be_decoded(api: httpx.Client) -> None:
    for coding in ("br", "zstd", "compress", "gzip, gzip"):
        answer = post(api, BODY, coding)
        assert is_error(answer, 415)
        assert "gzip" in answer.headers["accept-encoding"]
    assert is_error(post(api, BODY, "gzip"), 400)
    assert is_error(post(api, gzip.compress(BODY, mtime=0)[:-12], "gzip"), 400)


def test_a_body_that_grows_beyond_the_limit_is_refused(api: httpx.Client) -> None:
    bomb = gzip.compress(b'{"messages": "' + b"a" * (64 * 2**20) + b'"}')
    assert len(bomb) < 2**20
    assert is_error(post(api, bomb, "gzip"), 413)


# -- fields ----------------------------------------------------------------------------------------------------------


def test_values_that_openai_takes(live) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3, "seed": 1}
    likeliest = live.post("/v1/chat/completions", {**body, "temperature": 0}).json()["choices"]
    assert live.post("/v1/chat/completions", {**body, "top_p": 0}).json()["choices"] == likeliest
    assert live.post("/v1/chat/completions", {**body, "stop": list("abcdefgh")}).status_code == 200
    assert live.post("/v1/responses", {"input": "x", "top_p": 0, "max_output_tokens": 3}).status_code == 200
    answer = live.post("/v1/embeddings", {"input": "x", "encoding_format": None})
    assert isinstance(answer.json()["data"][0]["embedding"], list)


def test_a_long_input_is_named_as_it_was_sent(live) -> None:
    long = "harbour " * 600
    for path, body, param in (
        ("/v1/responses", {"input": long}, "input"),
        ("/v1/responses", {"input": long, "stream": True}, "input"),
        ("/v1/embeddings", {"input": long}, "input"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": long}]}, "messages"),
        ("/v1/completions", {"prompt": long}, "prompt"),
    ):
        error = is_error(live.post(path, body), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)


def test_usage_is_null_in_all_chunks_but_the_last(live) -> None:
    for path, body in (("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"})):
        asked = {**body, "max_tokens": 3, "stream": True}
        text = live.post(path, {**asked, "stream_options": {"include_usage": True}}).text
        usages = [json.loads(frame[6:])["usage"] for frame in text.split("\n\n") if frame.startswith("data: {")]
        assert usages[-1]["total_tokens"]
        assert usages[:-1] == [None] * (len(usages) - 1)
        assert '"usage"' not in live.post(path, asked).text


def test_tokens_that_are_parts_of_characters_have_names_of_their_own(live) -> None:
    assert token_name("é".encode()) == "é"
    assert token_name(b"\xe6\x97") == r"bytes:\xe6\x97"
    for data in (b"a", b"\xe6", b"\xff\x00", "日本".encode(), b"bytes:"):
        assert token_data(token_name(data)) == data
    tokenizer = live.engine.tokenizer
    parts = [id for id in range(tokenizer.vocab_size) if tokenizer.token_bytes(id)[:1] >= b"\x80"][:4]
    assert len({tokenizer.token_bytes(id) for id in parts}) == 4
    body = {"prompt": "x", "max_tokens": 1, "temperature": 0, "logprobs": 4}
    found = live.post("/v1/completions", {**body, "logit_bias": {str(id): 100 for id in parts}}).json()
    named = found["choices"][0]["logprobs"]
    assert len(named["top_logprobs"][0]) >= 4
    assert named["tokens"][0] in named["top_logprobs"][0]
    assert named["tokens"][0].startswith("bytes:\\x")


# -- start -----------------------------------------------------------------------------------------------------------


def test_nothing_is_accepted_before_the_models_are_loaded(tmp_path: Path) -> None:
    from puna.serve.run import listen

    with listen(Settings(port=0)) as made, pytest.raises(ConnectionRefusedError):
        socket.create_connection(made.getsockname(), 5)
