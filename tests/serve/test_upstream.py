"""Another server behind ours: the same answers as from it directly, and sentences for whatever it does wrong."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.serve.app import create_app
from puna.serve.backend import Models
from puna.serve.errors import ApiError
from puna.serve.protocol import ChatRequest, CompletionRequest, Usage
from puna.serve.server import Server
from puna.serve.settings import Settings
from puna.serve.upstream import answers, wire
from puna.serve.upstream.backend import UpstreamBackend, root_of
from puna.serve.upstream.events import events

MESSAGES = [{"role": "user", "content": "What is the time in the harbour?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
        },
    }
]
CHAT = {"messages": MESSAGES, "temperature": 0, "max_tokens": 12}


@dataclass
class Front:
    """A server that has its answers from elsewhere."""

    server: Server
    backend: UpstreamBackend
    api: httpx.Client

    def post(self, path: str, body: object) -> httpx.Response:
        return self.api.post(path, json=body)


@contextlib.contextmanager
def before(
    url: str, kind: wire.Kind = "openai", *, name: str = "", settings: Settings | None = None
) -> Iterator[Front]:
    """Serve what is at a URL until the block ends."""
    settings = settings or Settings(page=False)
    backend = UpstreamBackend(kind, url, name, settings)
    app = create_app(settings, Models([backend]))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    web = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1))

    async def run() -> None:
        await web.serve([listening])
        await app.state.puna.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        while not web.started:
            time.sleep(0.01)
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as api:
            yield Front(app.state.puna, backend, api)
    finally:
        web.should_exit = True
        thread.join(20)


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


def frames(text: str) -> list[dict]:
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(frame[6:]) for frame in text.split("\n\n") if frame.startswith("data: {")]


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


def test_who_leaves_stops_the_work_behind(live, front, eventually) -> None:
    body = {**CHAT, "max_tokens": 400, "n": 4, "temperature": 1, "stream": True}
    with front.api.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
        assert eventually(lambda: live.server.in_flight() == 4)
    assert live.settled()
    with pytest.raises(httpx.ReadTimeout):
        front.api.post("/v1/chat/completions", json={**body, "stream": False}, timeout=0.05)
    assert live.settled()
    assert eventually(lambda: front.server.in_flight() == 0)
    assert front.backend.stats() == {"running": 0}


# -- servers that misbehave ------------------------------------------------------------------------------------------


def chunk(text: str = "", reason: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return (
        b"data: " + json.dumps({"id": "x", "created": 1, "model": "m", "choices": [choice], **more}).encode() + b"\n\n"
    )


class Liar:
    """A server of raw bytes. answers: what it says to the next POST, piece by piece; None: it hangs."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.pieces: list[bytes | None] = []
        self.bodies: list[dict] = []
        self.headers: list[str] = []
        self.left = threading.Event()
        self.hang_ups = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def says(
        self, *pieces: bytes | None, status: str = "200 OK", kind: str = "text/event-stream", more: str = ""
    ) -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n{more}\r\n".encode()
        self.pieces = [head, *pieces]

    def _accept(self) -> None:
        while True:
            try:
                made, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(made,), daemon=True).start()

    def _answer(self, made: socket.socket) -> None:
        with made, made.makefile("rb") as lines, contextlib.suppress(OSError):
            request = lines.readline().decode()
            headers = []
            while line := lines.readline().decode().strip():
                headers.append(line.lower())
            length = next((int(line.split(":")[1]) for line in headers if line.startswith("content-length")), 0)
            body = lines.read(length)
            if request.startswith("GET"):
                answer = b'{"data": [{"id": "m", "max_model_len": 99}]}'
                made.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n" + answer)
                return
            if self.hang_ups:
                self.hang_ups -= 1
                return
            self.bodies.append(json.loads(body))
            self.headers = headers
            for piece in self.pieces:
                if piece is None:
                    made.settimeout(20)
                    made.recv(1)  # returns when the other side has gone
                    self.left.set()
                    return
                made.sendall(piece)
                time.sleep(0.002)


@pytest.fixture
def liar() -> Iterator[Liar]:
    made = Liar()
    yield made
    made.socket.close()


def failed(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_failures_of_the_other_server(liar) -> None:
    with before(liar.url) as front:

        def ask() -> httpx.Response:
            return front.post("/v1/chat/completions", CHAT)

        liar.says(b"<html>Internal Server Error</html>", status="500 Oh", kind="text/html")
        assert "500" in failed(ask(), 502)["message"]
        liar.says(b"<html>no</html>", status="404 Not Found", kind="text/html")
        failed(ask(), 502)
        liar.says(b"", status="302 Found", more="location: http://elsewhere.invalid/\r\n")
        failed(ask(), 502)
        liar.says(
            b'{"error": {"message": "Slow down.", "type": "x", "code": null}}',
            status="429 No",
            more="retry-after: 7\r\n",
        )
        answer = ask()
        assert failed(answer, 429)["message"] == "Slow down."
        assert answer.headers["retry-after"] == "7"
        liar.says(b"", status="429 No", more="retry-after: 3\r\n")
        answer = ask()
        failed(answer, 429)
        assert answer.headers["retry-after"] == "3"
        liar.says(
            b'{"object": "error", "message": "too long, maximum context length is 9", "code": 400}', status="400 No"
        )
        assert failed(ask(), 400)["code"] == "context_length_exceeded"
        liar.says(b'{"detail": "Not Found"}', status="404 Not Found")
        assert failed(ask(), 404)["message"] == "Not Found"
        liar.says(b'{"error": {"message": "bad key"}}', status="401 No")
        assert "PUNA_UPSTREAM_KEY" in failed(ask(), 502)["message"]
        liar.says(b'{"choices": []}', kind="application/json")
        failed(ask(), 502)
        liar.says(b"data: {nonsense\n\n")
        failed(ask(), 502)
        liar.says(b"data: [1, 2]\n\n")
        failed(ask(), 502)
        liar.says(b'data: {"choices": [{"index": "a", "delta": 5}]}\n\n')
        failed(ask(), 502)
        liar.says(b'data: {"error": {"message": "no memory", "code": 500}}\n\n')
        assert failed(ask(), 500)["message"] == "no memory"
        liar.says(b"data: [DONE]\n\n")
        failed(ask(), 502)
        liar.says(b"HTTP/9 what")
        liar.pieces = [b"HTTP/9 what\r\n\r\n"]
        failed(ask(), 502)


def test_failures_in_the_middle_of_a_stream(liar) -> None:
    ends: list[tuple[list[bytes | None], str]] = [
        ([], "broke its answer off"),
        ([b"data: {nonsense\n\n"], "no JSON"),
        ([b'data: {"error": {"message": "no memory"}}\n\n'], "no memory"),
        ([chunk("", "abort")], "gave up"),
        ([chunk("b")[:20]], "broke its answer off"),
    ]
    with before(liar.url) as front:
        for pieces, message in ends:
            liar.says(chunk("a"), *pieces)
            answer = front.post("/v1/chat/completions", {**CHAT, "stream": True})
            assert answer.status_code == 200
            *good, last = (json.loads(frame[6:]) for frame in answer.text.split("\n\n") if frame)
            assert good[0]["choices"][0]["delta"]["content"] == "a"
            assert message in last["error"]["message"]
            assert front.server.in_flight() == 0


def test_a_stream_is_put_in_order(liar) -> None:
    # No role, no [DONE], usage with the last piece, cut in the middle of a character and of a line end, comments.
    used = {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_tokens_details": None}}
    text = (
        b": hello\r\n\r\nevent: x\r\n"
        + chunk("東\u2028京").replace(b"\n", b"\r\n")
        + chunk("", "", id=None)
        + chunk("!", "stop", **used)
    )
    with before(liar.url) as front:
        for cut in (1, 3, 7):
            liar.says(*(text[at : at + cut] for at in range(0, len(text), cut)))
            body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
            found = frames(front.post("/v1/chat/completions", body).text)
            assert found[0]["choices"][0]["delta"]["role"] == "assistant"
            assert "".join(f["choices"][0]["delta"].get("content", "") for f in found[:-1]) == "東\u2028京!"
            assert [f["choices"][0]["finish_reason"] for f in found[:-1]] == [None, None, "stop"]
            assert all("usage" not in f for f in found[:-1])
            assert found[-1]["usage"]["total_tokens"] == 5
            assert {f["model"] for f in found} == {"m"}
        assert liar.bodies[-1]["stream_options"] == {"include_usage": True}


def test_one_who_hangs_has_a_limit(liar, eventually) -> None:
    with before(liar.url, settings=Settings(page=False, request_seconds=0.3)) as front:
        liar.says()
        liar.pieces = [None]
        assert failed(front.post("/v1/chat/completions", CHAT), 504)["code"] == "deadline_exceeded"
        liar.says(chunk("a"), None)
        answer = front.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert '"code":"deadline_exceeded"' in answer.text
        assert liar.left.wait(10)
        assert eventually(lambda: front.server.in_flight() == 0)


def test_one_who_is_not_there(eventually, live) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.raises(PunaError, match="does not say which models"):
        UpstreamBackend("vllm", url, "", Settings())
    with before(url, "vllm", name="m") as front:
        assert front.api.get("/health").status_code == 200
        assert front.api.get("/ready").status_code == 503
        answer = front.post("/v1/chat/completions", CHAT)
        assert failed(answer, 503)["code"] == "upstream_unreachable"
        assert "retry-after" in answer.headers
        assert front.api.get("/health/progress").status_code == 503
        # It comes, and is seen within two seconds.
        late = Liar.__new__(Liar)
        late.socket = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=late._accept, daemon=True).start()
        assert eventually(lambda: front.api.get("/ready").status_code == 200, 4)
        assert eventually(lambda: front.api.get("/v1/models").json()["data"][0].get("max_model_len") == 99, 4)
        late.socket.close()
    with pytest.raises(PunaError, match="has no model 'other'"):
        UpstreamBackend("openai", live.url, "other", Settings())


def test_a_kept_connection_that_was_closed_is_no_failure(liar) -> None:
    with before(liar.url) as front:
        liar.hang_ups = 1  # the next request is heard and not answered
        liar.says(chunk("a", "stop"))
        assert front.post("/v1/chat/completions", CHAT).status_code == 200
        liar.hang_ups = 2
        failed(front.post("/v1/chat/completions", CHAT), 502)


def test_the_key_is_the_environments(liar, monkeypatch) -> None:
    monkeypatch.setenv("PUNA_UPSTREAM_KEY", "secret-of-theirs")
    with before(liar.url) as front:
        liar.says(chunk("a", "stop"))
        assert (
            front.api.post("/v1/chat/completions", json=CHAT, headers={"authorization": "Bearer mine"}).status_code
            == 200
        )
        assert "authorization: bearer secret-of-theirs" in liar.headers
        assert not any("mine" in header for header in liar.headers)


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
    body = wire.chat_body(request, "llama.cpp", "m")
    assert body["tool_choice"] == "required"
    assert [tool["function"]["name"] for tool in body["tools"]] == ["get_time"]
    assert (body["max_tokens"], body["repeat_penalty"], body["top_k"], body["top_logprobs"]) == (7, 1.5, 0, 1)
    assert body["seed"] == 2**32 - 2
    complete = CompletionRequest.model_validate({"prompt": "x", "structured_outputs": {"choice": ['a"', "b"]}})
    assert wire.completion_body(complete, "llama.cpp", "m")["grammar"] == 'root ::= "a\\"" | "b"'
    for more in ({"echo": True}, {"structured_outputs": {"regex": "a"}}):
        with pytest.raises(ApiError):
            wire.completion_body(CompletionRequest.model_validate({"prompt": "x", **more}), "llama.cpp", "m")


def test_llama_servers_logprobs_become_the_older_form() -> None:
    request = CompletionRequest.model_validate({"prompt": "x", "logprobs": 1})
    entry = {"token": "ab", "logprob": -1, "bytes": [97, 98], "top_logprobs": [{"token": "c", "logprob": -0.5}]}
    offsets: dict[int, int] = {}
    for at in (0, 2):
        event = {"choices": [{"index": 0, "text": "ab", "logprobs": {"content": [entry]}, "finish_reason": None}]}
        named = answers.completion_event(event, "m", offsets, request)["choices"][0]["logprobs"]
        assert named == {
            "tokens": ["ab"],
            "token_logprobs": [-1],
            "top_logprobs": [{"c": -0.5, "ab": -1}],
            "text_offset": [at],
        }


def test_llama_servers_usage_is_that_of_one_text_each() -> None:
    one = Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10)
    two = CompletionRequest.model_validate({"prompt": ["a", "b"], "n": 2})
    whole = answers.whole_usage([one] * 4, "llama.cpp", two)
    assert (whole.prompt_tokens, whole.completion_tokens, whole.total_tokens) == (14, 12, 26)
    assert answers.whole_usage([one], "llama.cpp", two) == one
    none = CompletionRequest.model_validate({"prompt": "a", "max_tokens": 0, "echo": True})
    assert answers.whole_usage([one], "vllm", none).completion_tokens == 0
    request = CompletionRequest.model_validate({"prompt": "x", "logit_bias": {"9": 1}})
    with pytest.raises(ApiError, match="end at 8"):
        wire.check_bias(request, [{"id": "m", "meta": {"n_vocab": 9}}])
    wire.check_bias(request, [{"id": "m"}])


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


# -- started by us ---------------------------------------------------------------------------------------------------

FAKE = """#!{python}
import json, os, subprocess, sys, http.server
port = int(sys.argv[sys.argv.index("--port") + 1])
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({pids!r}, "w").write(f"{{os.getpid()}} {{grandchild.pid}}")
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        allowed = self.path == "/health" or self.headers["Authorization"] == "Bearer " + os.environ["LLAMA_API_KEY"]
        self.send_response(200 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({{"data": [{{"id": "m", "meta": {{"n_ctx_train": 77}}}}]}}).encode())
http.server.HTTPServer(("127.0.0.1", port), Answers).serve_forever()
"""


@pytest.fixture
def fake_llama(tmp_path: Path, monkeypatch) -> Path:
    program = tmp_path / "llama-server"
    program.write_text(FAKE.format(python=sys.executable, pids=str(tmp_path / "pids")))
    program.chmod(0o755)
    monkeypatch.setenv("PUNA_LLAMA_SERVER", str(program))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    return tmp_path


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_started_server_ends_with_us_however_we_end(fake_llama: Path, number, eventually) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(fake_llama / "m.gguf"), "--backend", "llama.cpp", "--port", str(port), "--no-page"]
    ours = subprocess.Popen([sys.executable, "-m", "puna", *words], stdout=subprocess.DEVNULL, env=os.environ)
    try:
        url = f"http://127.0.0.1:{port}"

        def card() -> dict:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"{url}/v1/models", trust_env=False, timeout=20).json()["data"][0]
            return {}

        assert eventually(lambda: bool(card()), 60)
        assert card()["max_model_len"] == 77
        pids = [int(word) for word in (fake_llama / "pids").read_text().split()]
        assert all(map(alive, pids))
        ours.send_signal(number)
        ours.wait(30)
        assert eventually(lambda: not any(map(alive, pids)), 20)
    finally:
        ours.kill()
        ours.wait()


def test_a_server_that_does_not_come_up(fake_llama: Path, capsys) -> None:
    program = fake_llama / "llama-server"
    program.write_text("#!/bin/sh\necho the file is broken\nexit 3\n")
    assert main(["serve", str(fake_llama / "m.gguf"), "--backend", "llama.cpp", "--port", "0"]) == 2
    assert "the file is broken" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x.gguf", "--backend", "llama.cpp"], "There is no"),
        (["x", "--backend", "vllm"], "vLLM is not installed"),
        (["--backend", "openai"], "needs an address"),
        (["--backend", "vllm"], "no model to start"),
        (["--backend", "openai", "--upstream", "nowhere"], "no address"),
        (["x", "--upstream", "http://localhost:1"], "Say which"),
        (["--backend", "openai", "--upstream", "http://localhost:1", "--quantize", "int8"], "own engine"),
        ([], "no model to serve"),
    ],
)
def test_one_sentence_for_what_cannot_be(words, sentence, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PUNA_LLAMA_SERVER", "no-such-program")
    monkeypatch.delenv("PUNA_VLLM_PYTHON", raising=False)
    assert main(["serve", *words, "--port", "0"]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
