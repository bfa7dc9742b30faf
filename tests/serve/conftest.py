"""Servers of a small random chat model that answer on real sockets."""

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn

from puna.engine.generate import Engine, load_engine
from puna.serve.app import create_app
from puna.serve.backends.base import Models
from puna.serve.backends.native.backend import NativeBackend
from puna.serve.server import Server
from puna.serve.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # so that tests import what they share: `fronts`


@dataclass
class Live:
    """A running server. url has no slash at its end."""

    url: str
    server: Server
    engine: Engine
    api: httpx.Client

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return self.api.post(path, json=body, **options)  # type: ignore[arg-type]

    def complete(self, **body: object) -> dict:
        answer = self.post("/v1/completions", {"prompt": "The harbour", "max_tokens": 8, "temperature": 0, **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def settled(self) -> bool:
        """Whether, within a while, no page is held and nothing is on its way."""
        return eventually(
            lambda: (
                self.engine.stats()["blocks"]["held"] == 0
                and self.engine.stats()["running"] == 0
                and self.server.in_flight() == 0
            )
        )


def eventually(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@contextlib.contextmanager
def running(directory: Path, settings: Settings | None = None, **engine_options: object) -> Iterator[Live]:
    """Serve a model on a free port until the block ends."""
    settings = settings or Settings()
    engine = load_engine(directory, **{"max_batch": 8, **engine_options})
    app = create_app(settings, Models([NativeBackend(engine, "tiny", settings)]))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
    web = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(web.serve([listening])), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        assert eventually(lambda: web.started)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as api:
            yield Live(url, app.state.puna, engine, api)
    finally:
        web.should_exit = True
        thread.join(20)
        engine.close()


@pytest.fixture(scope="module")
def live(chat_model: Path) -> Iterator[Live]:
    """A server that the tests of a module share."""
    with running(chat_model) as server:
        yield server


@pytest.fixture(name="running", scope="session")
def running_fixture() -> Callable:
    return running


@pytest.fixture(name="eventually", scope="session")
def eventually_fixture() -> Callable[..., bool]:
    return eventually
