"""The page on a real socket, before backends that say what they were told to say."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from puna.apps.assistant import AssistantProduct
from puna.apps.assistant.state import Assistant
from puna.serve.app import create_app
from puna.serve.backends.base import Models
from puna.serve.settings import Settings


def eventually(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `true` gives as soon as it is something; fails when it is nothing for so long."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@dataclass
class Site:
    """A running server. api: a client that asks as the page does."""

    url: str
    api: httpx.Client
    assistant: Assistant
    app: Any

    def client(self, key: str | None = None) -> httpx.Client:
        headers = {"origin": self.url} | ({"authorization": f"Bearer {key}"} if key else {})
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, headers=headers)


@contextlib.contextmanager
def site(backends: Sequence[Any], data: Path | str, keys: dict[str, str] | None = None, **more: Any) -> Iterator[Site]:
    """Serve the page on a free port until the block ends. data: a directory or a URL. more: further settings."""
    settings = Settings(data=str(data), keys=keys or {}, **more)
    app = create_app(settings, Models(backends), products=[AssistantProduct()])
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1, timeout_keep_alive=130)
    web = uvicorn.Server(config)

    async def run() -> None:
        await web.serve([listening])
        await app.state.puna.close()

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    try:
        eventually(lambda: web.started)
        made = Site(url, None, app.state.assistant, app)  # type: ignore[arg-type]
        with made.client() as api:
            made.api = api
            yield made
    finally:
        web.should_exit = True
        thread.join(20)
