"""What goes wrong behind the server: each time the next request is as undisturbed and no page is held."""

import json
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from puna.serve.settings import Settings

LONG = {"prompt": "The ships", "max_tokens": 480, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def undisturbed(live):
    """What an undisturbed request gives; after the test it must be the same, with all pages free."""
    expected = live.complete(max_tokens=20)["choices"]
    yield expected
    assert live.settled()
    assert live.complete(max_tokens=20)["choices"] == expected
    assert live.api.get("/ready").status_code == 200


@pytest.mark.parametrize("count", [1, 300, 2000])
def test_a_client_gone_in_the_middle_of_a_stream(live, undisturbed, count: int) -> None:
    with (
        httpx.Client(base_url=live.url) as api,
        api.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        seen = 0
        for piece in answer.iter_raw():
            seen += len(piece)
            if seen >= count:
                break
    assert live.settled()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
def test_a_client_gone_while_it_waits(live, undisturbed, monkeypatch, path: str) -> None:
    runner = live.engine._core.runner
    real, started = runner.forward, live.engine.stats()["steps"]

    def forward(*args, **options):
        time.sleep(0.15)
        return real(*args, **options)

    text = {"messages": [{"role": "user", "content": "x"}], "input": "x"}
    body = {**LONG, **text} if path != "/v1/responses" else text
    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", forward)
        with httpx.Client(base_url=live.url, timeout=0.1) as api, pytest.raises(httpx.TimeoutException):
            api.post(path, json=body)
        assert live.settled()
    assert live.engine.stats()["steps"] - started < 400


def broken(live, monkeypatch, at: int):
    """Let the forward fail from its at-th call on."""
    runner = live.engine._core.runner
    real, calls = runner.forward, []

    def forward(*args, **options):
        calls.append(1)
        if len(calls) >= at:
            raise RuntimeError("the forward failed")
        return real(*args, **options)

    monkeypatch.setattr(runner, "forward", forward)


def test_a_forward_that_fails(live, undisturbed, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        broken(live, patch, 1)
        answer = live.post("/v1/completions", LONG)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"


def test_a_forward_that_fails_in_a_stream(live, undisturbed, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        broken(live, patch, 5)
        text = live.post("/v1/completions", {**LONG, "stream": True}).text
        assert json.loads(text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]["code"] == "engine_error"
    with monkeypatch.context() as patch:
        broken(live, patch, 5)
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIError):
            list(client.completions.create(model="tiny", stream=True, prompt="x", max_tokens=50))
    with monkeypatch.context() as patch:
        broken(live, patch, 5)
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
        with client, pytest.raises(openai.APIError):
            list(client.responses.create(model="tiny", stream=True, input="x"))


def test_a_tokenizer_that_fails(live, undisturbed, monkeypatch) -> None:
    with monkeypatch.context() as patch:

        def encode(*args, **options):
            raise RuntimeError("the tokenizer failed")

        patch.setattr(type(live.engine.tokenizer), "encode", encode)
        answer = live.post("/v1/completions", {"prompt": "x"})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"


def test_a_tokenizer_that_takes_too_long(chat_model: Path, monkeypatch, running) -> None:
    with running(chat_model, Settings(prepare_seconds=0.1)) as live:
        undisturbed = live.complete()
        with monkeypatch.context() as patch:
            real = type(live.engine.tokenizer).encode

            def encode(*args, **options):
                time.sleep(0.6)
                return real(*args, **options)

            patch.setattr(type(live.engine.tokenizer), "encode", encode)
            assert live.post("/v1/completions", LONG).status_code == 504
            assert live.api.get("/health").status_code == 200
        time.sleep(0.7)  # what was late came, and was not started
        assert live.settled()
        assert live.complete()["choices"] == undisturbed["choices"]


def test_an_engine_that_hangs(live, undisturbed, monkeypatch, eventually) -> None:
    runner = live.engine._core.runner
    real, go_on = runner.forward, threading.Event()

    def forward(*args, **options):
        go_on.wait(20)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", forward)
        thread = threading.Thread(target=lambda: live.complete(max_tokens=4))
        thread.start()
        begun = time.monotonic()
        assert eventually(lambda: live.api.get("/health/progress").status_code == 503)
        assert live.api.get("/health").status_code == 200
        assert live.server.settings.stuck_seconds < 2
        assert begun
        go_on.set()
        thread.join()
    assert live.api.get("/health/progress").status_code == 200


def test_a_closed_engine_is_dead(chat_model: Path, running) -> None:
    import asyncio

    with running(chat_model) as live:
        asyncio.run(live.server.models.get(None).close())
        assert live.api.get("/health").status_code == 503
        assert live.api.get("/ready").status_code == 503
        assert live.post("/v1/completions", {"prompt": "x"}).status_code == 503


def test_new_weights_while_a_text_is_written(live, undisturbed) -> None:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(live.post("/v1/completions", LONG)))
    thread.start()
    version = live.engine.update_weights([])
    thread.join()
    assert answers[0].status_code == 200
    assert live.api.get("/v1/models").json()["data"][0]["weight_version"] == version
