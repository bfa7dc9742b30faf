"""`puna serve` as a process: how it starts, how it leaves, and what it says when it cannot start."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from puna.cli.main import main


@pytest.fixture
def process(chat_model: Path, tmp_path: Path, eventually) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server of its own, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve", str(chat_model), "--port", str(port), "--no-page", "--device", "cpu", "--drain", "20"]
    with (tmp_path / "log").open("w") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "puna", *words], stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert started.poll() is None, (tmp_path / "log").read_text()
        try:
            return httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        assert eventually(answers, 120), (tmp_path / "log").read_text()
        yield started, url
    finally:
        started.kill()
        started.wait()


def test_a_reachable_server_asks_everyone_to_sign_in_and_prints_the_owners_link(
    chat_model: Path, tmp_path: Path, eventually
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    words = ["serve", str(chat_model), "--host", "0.0.0.0", "--port", str(port), "--data", str(tmp_path / "data")]
    with log.open("w") as file:
        started = subprocess.Popen([sys.executable, "-m", "puna", *words, "--device", "cpu"], stdout=file, stderr=file)
    try:
        assert eventually(lambda: "/account/invitation#" in log.read_text() or started.poll() is not None, 120)
        token = log.read_text().partition("/account/invitation#")[2].split()[0]
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=60, trust_env=False, headers={"origin": url}) as api:
            assert api.get("/app/models").status_code == 401
            assert api.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}).status_code == 401
            body = {"token": token, "name": "Ana", "password": "a long enough password"}
            assert api.post("/app/invitations/accept", json=body).json() == {"user": "Ana", "role": "owner"}
            key = api.post("/app/account/keys", json={"label": "x"}).json()["key"]
            assert api.get("/app/models").json()["user"] == "Ana"
        bearer = {"authorization": f"Bearer {key}"}
        body = {"prompt": "The ships", "max_tokens": 2}
        assert httpx.post(f"{url}/v1/completions", json=body, headers=bearer, timeout=60).status_code == 200
    finally:
        started.kill()
        started.wait()


def test_a_signal_lets_answers_finish_and_takes_no_new_ones(process, eventually) -> None:
    started, url = process
    body = {"prompt": "The ships", "max_tokens": 480, "temperature": 0, "ignore_eos": True, "stream": True, "n": 8}
    events: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120, trust_env=False) as answer:
            for line in answer.iter_lines():
                events.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as api:
        api.get("/health")  # its connection is open when the server begins to leave
        reader.start()
        assert begun.wait(60)
        started.send_signal(signal.SIGTERM)
        refused: list[httpx.Response] = []

        def is_refused() -> bool:
            try:
                answer = api.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})
            except httpx.TransportError:
                return True  # it has finished already
            refused.append(answer)
            return answer.status_code == 503

        assert eventually(is_refused)
    reader.join(60)
    assert started.wait(60) == 0
    frames = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
    assert not any("error" in frame for frame in frames)
    ends = [choice["finish_reason"] for frame in frames for choice in frame["choices"] if choice["finish_reason"]]
    assert ends == ["length"] * 8
    assert events[-2] == "data: [DONE]" or events[-1] == "data: [DONE]"


def test_a_second_signal_leaves_at_once(process) -> None:
    started, url = process
    body = {"prompt": "x", "max_tokens": 480, "n": 64, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as answer:
        next(answer.iter_lines())
        started.send_signal(signal.SIGINT)
        started.send_signal(signal.SIGTERM)
        assert started.wait(15) == 0


def test_what_keeps_it_from_starting_is_one_sentence(
    chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: str) -> str:
        assert main(["serve", *words]) == 2
        text = capsys.readouterr().err.strip()
        assert text.startswith("puna serve: ")
        assert "\n" not in text
        return text

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"Port {port} is in use" in said(str(chat_model), "--port", port)
    assert "nowhere" in said(str(tmp_path / "nowhere"), "--port", "0")
    assert "key" in said(str(chat_model), "--port", "0", "--api-key-file", str(tmp_path / "none"))
    assert "max-queue" in said(str(chat_model), "--port", "0", "--max-queue", "-1")
    assert "port" in said(str(chat_model), "--port", "99999")

    import puna.engine.generate as generate

    def too_large(*args: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(generate, "load_engine", too_large)
    assert "not enough memory" in said(str(chat_model), "--port", "0", "--device", "cpu")
