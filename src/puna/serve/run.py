"""Runs the application under uvicorn, until a signal ends it.

On SIGTERM or Ctrl-C, new requests get 503 and those in progress may finish (settings.drain_seconds); then the process
exits with 0. A second signal ends it at once.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from puna.core.errors import PunaError
from puna.serve.server import Server
from puna.serve.settings import Settings
from puna.web.errors import ApiError
from puna.web.middleware import SECURITY_HEADERS
from puna.web.responses import error_response


def listen(settings: Settings) -> socket.socket:
    """Bind the socket, before models are loaded in vain. Raises PunaError when that fails.

    It accepts no connections until the models are loaded (`serve`): whoever asks before is refused, not left waiting.
    """
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
        # Idle connections cost nothing. Longer than proxies keep theirs (Caddy: two minutes): one that asks on a
        # connection just as it is closed answers 502.
        timeout_keep_alive=130,
        # The slowest request may still be running when the drain time ends.
        timeout_graceful_shutdown=2,
        lifespan="off",
        http=Protocol,
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_Uvicorn(config, server, started).run(listening))


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, and what it lacks.

    Connections that send no request within `header_seconds` are closed, what is not HTTP gets an error object, and
    clients of HTTP/1.0, which have no chunks (RFC 9112, 7.1), read an answer of unknown length to the connection's end.
    """

    header_seconds = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(self.header_seconds, self._close_idle)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0" and self.cycle is not None and self.cycle.scope is self.scope:
            self.cycle.__class__ = _UntilClosed

    def send_400_response(self, msg: str) -> None:
        answer = error_response(ApiError(400, msg, code="invalid_http", headers={"connection": "close"}))
        head = b"".join(b"%b: %b\r\n" % pair for pair in (*answer.raw_headers, *SECURITY_HEADERS))
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n%b\r\n%b" % (head, bytes(answer.body)))
        self.transport.close()

    def _close_idle(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


class _UntilClosed(RequestResponseCycle):
    """An answer whose end is the end of the connection, unless its length is known."""

    _unknown = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._unknown = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
            if self._unknown:
                self.chunked_encoding = False
        elif self._unknown:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


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
        try:
            await super().startup(sockets)
        except OSError as error:  # another process has taken the port while the models were loaded
            raise PunaError(f"The address cannot be listened on ({error.strerror}).", "Check --port.") from None
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
