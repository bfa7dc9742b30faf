"""Runs the application under uvicorn, until a signal ends it.

On SIGTERM or Ctrl-C, new requests get 503 and those in progress may finish (settings.drain_seconds); then the process
exits with 0. A second signal ends it at once.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from puna.core.errors import PunaError
from puna.serve.server import Server
from puna.serve.settings import Settings


def listen(settings: Settings) -> socket.socket:
    """Bind the socket, before models are loaded in vain. Raises PunaError when that fails."""
    place = f"{settings.host}:{settings.port}"
    if not 0 <= settings.port < 65536:
        raise PunaError(f"Port {settings.port} does not exist.", "Choose a --port from 1 to 65535.")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host or None, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise PunaError(f"{place} is not an address of this machine.", "Check --host and --port.") from None
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise PunaError(
                f"Port {settings.port} is in use.", "Stop what uses it, or choose another --port."
            ) from None
        raise PunaError(f"{place} cannot be listened on ({error.strerror}).", "Check --host and --port.") from None
    return made


def serve(app: FastAPI, listening: socket.socket, *, started: Callable[[], None] = lambda: None) -> None:
    """Serve until a signal ends it. started: called once requests are answered."""
    server: Server = app.state.puna
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Idle connections cost nothing.
        timeout_keep_alive=30,
        # The slowest request may still be running when the drain time ends.
        timeout_graceful_shutdown=2,
        lifespan="off",
        http=_PromptProtocol,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_Uvicorn(config, server, started).run(listening))


class _PromptProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes connections that send no request within `header_seconds`."""

    header_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.header_seconds, self._close_idle)

    def _close_idle(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn with a graceful drain."""

    def __init__(self, config: uvicorn.Config, server: Server, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._server, self._on_started = server, started
        self._draining_task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, listening: socket.socket) -> None:  # type: ignore[override]
        """Serve, drain, close."""
        self._loop = asyncio.get_running_loop()
        try:
            await self.serve([listening])
        finally:
            await self._server.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second exits."""
        assert self._loop is not None
        if self._draining_task is None and not self._server.draining:
            self._server.draining = True
            self._loop.call_soon_threadsafe(self._begin_drain)
        else:
            self.should_exit = self.force_exit = True

    def _begin_drain(self) -> None:
        self._draining_task = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        await self._server.drain()
        self.should_exit = True
