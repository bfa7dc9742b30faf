"""Doors and limits: keys, names, sizes, times, the queue; and every failure as OpenAI's error object."""

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from puna.core.errors import PunaError
from puna.serve.settings import Settings
from puna.web.accounts.key_file import read_keys

ROUTES = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize"]


def is_error(answer: httpx.Response, status: int) -> bool:
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    return True


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"\xff\xfe{}", 400),
        (b"[1]", 400),
        (b'"x"', 400),
        (b"null", 400),
        (b'{"temperature": NaN, "prompt": "x"}', 400),
        (b'{"prompt": "\\ud800", "input": "\\ud800", "messages": []}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
        (b"{}", 400),
    ],
)
def test_bodies_that_are_none(live, path: str, body: bytes, status: int) -> None:
    assert is_error(live.api.post(path, content=body, headers={"content-type": "application/json"}), status)


def test_paths_methods_and_types(live) -> None:
    assert is_error(live.api.get("/nothing"), 404)
    assert is_error(live.api.get("/v1/models/nothing"), 404)
    assert is_error(live.api.get("/v1/chat/completions"), 405)
    assert is_error(live.api.put("/health"), 405)
    assert is_error(live.api.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_a_body_too_large_is_refused_while_it_comes(chat_model: Path, running) -> None:
    with running(chat_model, Settings(max_body_bytes=2000)) as live:
        assert is_error(live.post("/v1/completions", {"prompt": "x" * 3000}), 413)

        def endless():
            for _ in range(1000):
                yield b"x" * 100

        headers = {"content-type": "application/json"}
        with contextlib.suppress(httpx.WriteError):  # the server may close before all was sent
            assert is_error(live.api.post("/v1/completions", content=endless(), headers=headers), 413)
        assert live.complete()["choices"]


def test_a_body_that_does_not_come(chat_model: Path, running) -> None:
    with running(chat_model, Settings(body_seconds=0.1)) as live:
        with socket.create_connection(("127.0.0.1", int(live.url.rpartition(":")[2])), 10) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b'Content-Length: 500\r\n\r\n{"prompt":'
            )
            assert raw.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert live.complete()["choices"]


def test_names_of_the_server(live) -> None:
    for host in ("localhost:1", "127.0.0.1", "[::1]:8000"):
        assert live.api.get("/health", headers={"host": host}).status_code == 200
    for host in ("evil.example", "localhost.evil.example", "", "a[b"):
        assert is_error(live.api.get("/health", headers={"host": host}), 400)


def test_other_origins_are_not_let_in(live, chat_model: Path, running) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in live.api.options("/v1/completions", headers=asked).headers
    with running(chat_model, Settings(cors_origins=("https://a.example",))) as other:
        allowed = other.api.options("/v1/completions", headers=asked).headers
        assert allowed["access-control-allow-origin"] == "https://a.example"


def test_keys(chat_model: Path, running) -> None:
    with running(chat_model, Settings(keys={"key-of-ann": "ann", "key-of-bob": "bob"})) as live:
        for path in ROUTES:
            assert is_error(live.post(path, {}), 401)
            assert is_error(live.post(path, {}, headers={"authorization": "Bearer key-of-an"}), 401)
            assert is_error(live.post(path, {}, headers={"x-api-key": "key-of-ann"}), 401)
            assert is_error(live.post(path, {}, headers={"cookie": "puna_session=YTpi.00"}), 401)
        for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/version", "/v1/responses/x"):
            assert is_error(live.api.get(path), 401)
        for path in ("/health", "/ready", "/health/progress"):
            assert live.api.get(path).status_code == 200
        ann = {"authorization": "Bearer key-of-ann"}
        bob = {"authorization": "bearer key-of-bob"}
        answer = live.post("/v1/responses", {"input": "x", "max_output_tokens": 2}, headers=ann).json()
        assert live.api.get(f"/v1/responses/{answer['id']}", headers=ann).status_code == 200
        assert is_error(live.api.get(f"/v1/responses/{answer['id']}", headers=bob), 404)
        body = {"input": "x", "previous_response_id": answer["id"]}
        assert is_error(live.post("/v1/responses", body, headers=bob), 404)
        assert is_error(live.api.delete(f"/v1/responses/{answer['id']}", headers=bob), 404)
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong-key", max_retries=0)
        with client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nann = 0123456789\n\nabcdefghij==  # no name\n")
    assert read_keys(path) == {"0123456789": "ann", "abcdefghij==": "key-4"}
    for text in ("", "# nothing\n", "short\n", "a = 0123456789\nb = 0123456789\n", "has a space in it\n"):
        path.write_text(text)
        with pytest.raises(PunaError):
            read_keys(path)
    with pytest.raises(PunaError):
        read_keys(tmp_path / "none")


def test_ten_times_more_than_there_is_room_for(chat_model: Path, running) -> None:
    with running(chat_model, Settings(max_queue=2), max_batch=2) as live:
        undisturbed = live.complete(max_tokens=60)
        answers: list[httpx.Response] = []
        body = {"prompt": "The harbour", "max_tokens": 60, "temperature": 0}
        with httpx.Client(base_url=live.url, timeout=120, limits=httpx.Limits(max_connections=None)) as api:
            threads = [
                threading.Thread(target=lambda: answers.append(api.post("/v1/completions", json=body)))
                for _ in range(40)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(good) + len(refused) == 40
        assert len(good) >= 4
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all(is_error(answer, 429) for answer in refused)
        assert all(answer.json()["choices"] == undisturbed["choices"] for answer in good)
        assert is_error(live.post("/v1/completions", {**body, "n": 5}), 400)
        assert live.settled()
        assert live.complete(max_tokens=60)["choices"] == undisturbed["choices"]


def test_n_counts_as_n(chat_model: Path, running) -> None:
    with running(chat_model, Settings(max_queue=0), max_batch=2) as live:
        assert live.post("/v1/completions", {"prompt": "x", "n": 2}).status_code == 200
        assert live.post("/v1/completions", {"prompt": "x", "n": 3}).status_code == 400


def test_a_request_that_takes_too_long(chat_model: Path, running) -> None:
    with running(chat_model, Settings(request_seconds=0.05)) as live:
        body = {"prompt": "x", "max_tokens": 500, "ignore_eos": True}
        answer = live.post("/v1/completions", body)
        assert is_error(answer, 504)
        assert answer.headers["x-should-retry"] == "false"
        streamed = live.post("/v1/completions", {**body, "stream": True})
        if streamed.status_code == 200:  # it had begun
            assert "error" in json.loads(streamed.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert live.settled()


def test_metrics_count(live) -> None:
    live.complete(max_tokens=5)
    text = live.api.get("/metrics").text
    for name in (
        'puna_http_requests_total{method="POST",route="/v1/completions",status="200"}',
        'puna_generated_tokens_total{model="tiny"}',
        'puna_time_to_first_token_seconds_count{model="tiny"}',
        'puna_pages{model="tiny",state="held"} 0.0',
        'puna_texts_in_flight{model="tiny"} 0.0',
        'puna_weight_version{model="tiny"} 0.0',
    ):
        assert name in text, name
    assert live.api.get("/version").json()["version"]


def test_a_client_that_reads_slowly_loses_its_stream(chat_model: Path, running, eventually) -> None:
    with running(chat_model, Settings(write_seconds=0.4)) as live:
        undisturbed = live.complete()
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        raw.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
        body = json.dumps(
            {"prompt": "x", "n": 8, "max_tokens": 480, "ignore_eos": True, "stream": True, "logprobs": 20}
        ).encode()
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        assert eventually(lambda: live.server.in_flight() > 0)
        assert live.settled()  # while nothing is read
        raw.close()
        assert live.complete()["choices"] == undisturbed["choices"]


def test_a_mailbox_is_bounded(chat_model: Path) -> None:
    import asyncio

    from puna.serve.backends.native.thread_bridge import Mailbox, ThreadBridge

    async def slow() -> None:
        lost: list[bool] = []
        box: Mailbox[int] = Mailbox(
            ThreadBridge(asyncio.get_running_loop()), limit=3, overflowed=lambda: lost.append(True)
        )
        for number in range(3):
            box.send(number)
        await asyncio.sleep(0)
        assert await box.take() == [0, 1, 2]
        for number in range(4):
            box.send(number)
        await asyncio.sleep(0.01)
        assert await box.take() == []
        assert box.full
        assert lost == [True]

    asyncio.run(slow())


def test_one_wake_up_for_many_tokens() -> None:
    import asyncio

    from puna.serve.backends.native.thread_bridge import Mailbox, ThreadBridge

    class Counting:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.loop, self.calls = loop, 0

        def call_soon_threadsafe(self, task) -> None:
            self.calls += 1
            self.loop.call_soon_threadsafe(task)

    async def many() -> None:
        loop = Counting(asyncio.get_running_loop())
        bridge = ThreadBridge(loop)  # type: ignore[arg-type]
        boxes = [Mailbox[int](bridge, limit=10, overflowed=lambda: None) for _ in range(32)]
        for box in boxes:
            box.send(1)
        time.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert loop.calls == 1
        assert all(box._items == [1] for box in boxes)

    asyncio.run(many())
