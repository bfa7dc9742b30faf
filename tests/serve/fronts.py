"""A server of ours before another one, for the tests of upstreams, and what they ask it."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvicorn

from puna.serve.app import create_app
from puna.serve.backends.base import Models
from puna.serve.backends.upstream import request_mapping
from puna.serve.backends.upstream.backend import UpstreamBackend
from puna.serve.server import Server
from puna.serve.settings import Settings

MESSAGES = [{"role": "user", "content": "What is the time in the harbour?"}]
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
    url: str, kind: request_mapping.UpstreamKind = "openai", *, name: str = "", settings: Settings | None = None
) -> Iterator[Front]:
    """Serve what is at a URL until the block ends."""
    settings = settings or Settings()
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


def failed(answer: httpx.Response, status: int) -> dict:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def frames(text: str) -> list[dict]:
    """The events of a stream, which ends as OpenAI's do."""
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(frame[6:]) for frame in text.split("\n\n") if frame.startswith("data: {")]
