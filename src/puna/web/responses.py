"""Responses, whole or streamed, whose work is cancelled when the client disconnects.

The work and the watch for a disconnect run concurrently; whichever ends first ends the other. Cancelling the work
closes the iterators below it, which frees the engine's KV blocks before its next step. A client that takes too long to
read counts as disconnected.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from puna.web.errors import ApiError

log = logging.getLogger("puna.web")

# A proxy gives up on a server that sends nothing (nginx after 60 s by default, often after less).
COMMENT_SECONDS = 1.0
COMMENT = b": waiting\n\n"
EVENT_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no")]  # fmt: skip


def to_json(value: BaseModel) -> bytes:
    """Serialise a model to JSON, without the fields that were never set."""
    return value.__pydantic_serializer__.to_json(value, exclude_unset=True, by_alias=True)


def error_response(error: ApiError) -> JSONResponse:
    """The JSON response for an error."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def unexpected(error: Exception) -> ApiError:
    """Log an unexpected exception and return the error to send: a 500 that says it is a bug."""
    log.error("A request failed.", exc_info=error)
    return ApiError(500, f"The server failed ({type(error).__name__}). This is a bug; the server's log has details.")


class _CancellableResponse(Response):
    """A response that computes while the client waits, and stops when the client disconnects."""

    def __init__(self, write_seconds: float) -> None:
        super().__init__()
        self._write_seconds = write_seconds
        self._sending_since: float | None = None
        self._started = False

    async def work(self, send: Send) -> None:
        """Compute and send the response."""
        raise NotImplementedError

    async def keep_alive(self) -> None:
        """Send what keeps the connection open while `work` has nothing to send."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        work = asyncio.create_task(self.work(self._watched_send))
        gone = asyncio.create_task(_disconnected(receive))
        beat = asyncio.create_task(self.keep_alive())
        try:
            while not work.done() and not gone.done():
                await asyncio.wait({work, gone}, timeout=self._write_seconds / 4, return_when=asyncio.FIRST_COMPLETED)
                since = self._sending_since
                if since is not None and self._loop.time() - since > self._write_seconds:
                    break
        finally:
            gone.cancel()
            beat.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait({work, gone, beat})
        error = None if work.cancelled() else work.exception()
        if error is None or isinstance(error, OSError):
            return
        failed = error if isinstance(error, ApiError) else unexpected(error)  # type: ignore[arg-type]
        if not self._started:
            await error_response(failed)(scope, receive, send)

    async def _watched_send(self, message: Any) -> None:
        self._started = True
        self._sending_since = self._loop.time()
        await self._send(message)
        self._sending_since = None


class WholeResponse(_CancellableResponse):
    """A JSON response in one piece. make: computes the object, or its JSON."""

    def __init__(self, make: Callable[[], Awaitable[BaseModel | bytes]], *, write_seconds: float) -> None:
        super().__init__(write_seconds)
        self._make = make

    async def work(self, send: Send) -> None:
        made = await self._make()
        body = made if isinstance(made, bytes) else to_json(made)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class EventStreamResponse(_CancellableResponse):
    """A stream of server-sent events.

    The status is sent with the first event, or an empty one (the request is admitted), or when nothing has happened for
    COMMENT_SECONDS; an error before that keeps its own status, a later one becomes the last event, written by `failed`.
    While there are no events, comments are sent. done: sent after a successful stream.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        write_seconds: float,
        failed: Callable[[ApiError], bytes],
        done: bytes = b"",
    ) -> None:
        super().__init__(write_seconds)
        self._events, self._done, self._failed = events, done, failed
        self._ended = False
        self._last_sent = 0.0

    async def work(self, send: Send) -> None:
        last = self._done
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    await self._put(event)
            except Exception as error:
                if not self._started or isinstance(error, OSError):
                    raise
                last = self._failed(error if isinstance(error, ApiError) else unexpected(error))
        await self._put(b"")
        self._ended = True
        await send({"type": "http.response.body", "body": last})

    async def keep_alive(self) -> None:
        while True:
            await asyncio.sleep(COMMENT_SECONDS)
            quiet = self._sending_since is None and self._loop.time() - self._last_sent >= COMMENT_SECONDS
            if quiet and not self._ended:
                with contextlib.suppress(OSError):  # `work` notices, too
                    await self._put(COMMENT)

    async def _put(self, event: bytes) -> None:
        """Send the status, unless it is sent, and an event."""
        if not self._started:
            await self._watched_send({"type": "http.response.start", "status": 200, "headers": EVENT_STREAM})
        if event:
            self._last_sent = self._loop.time()
            await self._watched_send({"type": "http.response.body", "body": event, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
