"""An answer on its way to a client: whole, or as events of a stream, and given up when nobody reads it any more.

Work and the watch for the client's leaving run side by side. Whichever ends first ends the other; when the work is
cancelled the iterators below it close, and the engine frees the pages before its next step. A client that takes too
long to read is treated as gone.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from puna.serve.errors import ApiError

log = logging.getLogger("puna.serve")

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
          (b"x-accel-buffering", b"no")]  # fmt: skip


def wire_json(value: BaseModel) -> bytes:
    """The JSON of a protocol object: what was never set is not sent."""
    return value.__pydantic_serializer__.to_json(value, exclude_unset=True, by_alias=True)


def error_response(error: ApiError) -> JSONResponse:
    """A failure as an answer."""
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)


def unexpected(error: Exception) -> ApiError:
    """A defect of ours: the log has it whole, the client hears that it was not his fault."""
    log.error("A request failed.", exc_info=error)
    return ApiError(500, f"The server failed ({type(error).__name__}). This is a defect; its log says more.")


class _Work(Response):
    """A response that works while the client waits, and stops when it leaves."""

    def __init__(self, write_seconds: float) -> None:
        super().__init__()
        self._write_seconds = write_seconds
        self._sending_since: float | None = None
        self._started = False

    async def work(self, send: Send) -> None:
        """Send the answer."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._loop = asyncio.get_running_loop()
        self._send = send
        work = asyncio.create_task(self.work(self._watched_send))
        gone = asyncio.create_task(_gone(receive))
        try:
            while not work.done() and not gone.done():
                await asyncio.wait({work, gone}, timeout=self._write_seconds / 4, return_when=asyncio.FIRST_COMPLETED)
                since = self._sending_since
                if since is not None and self._loop.time() - since > self._write_seconds:
                    break
        finally:
            gone.cancel()
            if not work.done():
                work.cancel()
            await asyncio.wait({work, gone})
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


class Whole(_Work):
    """An answer in one piece. make: computes it, or its JSON."""

    def __init__(self, make: Callable[[], Awaitable[BaseModel | bytes]], *, write_seconds: float) -> None:
        super().__init__(write_seconds)
        self._make = make

    async def work(self, send: Send) -> None:
        made = await self._make()
        body = made if isinstance(made, bytes) else wire_json(made)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Events(_Work):
    """A stream of server-sent events. The status is sent with the first event, so that a refusal still has its own.

    An error after that is an event of its own, {"error": …}, and the last. done: what is sent when all went well.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        *,
        write_seconds: float,
        done: bytes = b"data: [DONE]\n\n",
        failed: Callable[[ApiError], bytes] | None = None,
    ) -> None:
        super().__init__(write_seconds)
        self._events, self._done, self._failed = events, done, failed or error_event

    async def work(self, send: Send) -> None:
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    if not self._started:
                        await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:
                if not self._started or isinstance(error, OSError):
                    raise
                failed = error if isinstance(error, ApiError) else unexpected(error)
                await send({"type": "http.response.body", "body": self._failed(failed)})
                return
        if not self._started:
            await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
        await send({"type": "http.response.body", "body": self._done})


def event(value: BaseModel) -> bytes:
    """One event of OpenAI's streams."""
    return b"data: " + wire_json(value) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """A failure in the middle of a stream."""
    return b"data: " + JSONResponse(error.body()).body + b"\n\n"


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
