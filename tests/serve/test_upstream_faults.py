"""Another server that misbehaves, is not there, or was started by us: a sentence for each, and nothing left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fronts import CHAT, before, failed, frames

from puna.cli.main import main
from puna.core.errors import PunaError
from puna.serve.backends.upstream.backend import UpstreamBackend
from puna.serve.settings import Settings

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
        ([], "broke off its answer"),
        ([b"data: {nonsense\n\n"], "invalid JSON"),
        ([b'data: {"error": {"message": "no memory"}}\n\n'], "no memory"),
        ([chunk("", "abort")], "aborted its answer"),
        ([chunk("b")[:20]], "broke off its answer"),
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
            assert [f["usage"] for f in found[:-1]] == [None, None, None]
            assert found[-1]["usage"]["total_tokens"] == 5
            assert {f["model"] for f in found} == {"m"}
        assert liar.bodies[-1]["stream_options"] == {"include_usage": True}


def test_one_who_hangs_has_a_limit(liar, eventually) -> None:
    with before(liar.url, settings=Settings(request_seconds=0.3)) as front:
        liar.says()
        liar.pieces = [None]
        assert failed(front.post("/v1/chat/completions", CHAT), 504)["code"] == "deadline_exceeded"
        liar.says(chunk("a"), None)
        answer = front.post("/v1/chat/completions", {**CHAT, "stream": True})
        assert '"code":"deadline_exceeded"' in answer.text
        assert liar.left.wait(10)
        assert eventually(lambda: front.server.in_flight() == 0)


def test_one_who_takes_no_connection_is_unreachable(liar, monkeypatch) -> None:
    async def silent(self: httpx.AsyncClient, request: httpx.Request, **options: object) -> httpx.Response:
        raise httpx.ConnectTimeout("", request=request)

    with before(liar.url) as front:
        monkeypatch.setattr(httpx.AsyncClient, "send", silent)
        for body in (CHAT, {**CHAT, "stream": True}):
            assert failed(front.post("/v1/chat/completions", body), 503)["code"] == "upstream_unreachable"
        assert "cannot be reached" in front.api.get("/ready").json()["error"]["message"]


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
        (["x.gguf", "--backend", "llama.cpp"], "no-such-program was not found"),
        (["x", "--backend", "vllm"], "vLLM is not installed"),
        (["--backend", "openai"], "needs an address"),
        (["--backend", "vllm"], "no model to start"),
        (["--backend", "openai", "--upstream", "nowhere"], "is not an address"),
        (["x", "--upstream", "http://localhost:1"], "Select it with"),
        (["--backend", "openai", "--upstream", "http://localhost:1", "--quantize", "int8"], "own engine"),
        ([], "No model was given"),
    ],
)
def test_one_sentence_for_what_cannot_be(words, sentence, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PUNA_LLAMA_SERVER", "no-such-program")
    monkeypatch.delenv("PUNA_VLLM_PYTHON", raising=False)
    assert main(["serve", *words, "--port", "0"]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
