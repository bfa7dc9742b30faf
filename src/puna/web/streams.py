"""Resumable event streams: work that continues without readers, which can come back.

A `Stream` has a version that grows with every change. A reader says which version it has seen (Last-Event-ID) and gets
what changed since; so a browser that lost its connection, or was closed, continues where it was.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header
from fastapi.responses import StreamingResponse

from puna.web.errors import ApiError

KEEP_SECONDS = 60.0  # how long a finished stream can be resumed before its result is read from the database
HEARTBEAT_SECONDS = 15.0
STREAMS_PER_USER = 8


class Stream:
    """One resumable stream of a user's.

    A subclass does the work: it calls `publish` after every change.

    result: the data of the last event, set by `end`. An `error` in it makes that event `failed` rather than `done`.
    """

    def __init__(self, user: str) -> None:
        self.user = user
        self.result: dict[str, Any] | None = None
        self.ended = 0.0
        self.version = 0
        self._changed = asyncio.Event()

    def changes_since(self, version: int) -> dict[str, Any]:
        """The data of an `update` event for a reader that has seen this version; 0 means nothing."""
        raise NotImplementedError

    async def stop(self, reason: str = "stopped") -> None:
        """End the work where it is, and return when its result is saved."""
        raise NotImplementedError

    def publish(self) -> None:
        """Wake the readers."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end(self, result: dict[str, Any]) -> None:
        """Set the result and wake the readers for the last time."""
        self.result, self.ended = result, time.monotonic()
        self.publish()

    async def follow(self, after: int = 0) -> AsyncGenerator[str]:
        """Events after a version: `update` for every change, then `done` or `failed`."""
        async for version, event, data in self.events(after):
            yield sse(version, event, data)

    async def events(self, after: int = 0) -> AsyncGenerator[tuple[int, str, dict[str, Any]]]:
        """The same as (version, event, data). An empty event is a heartbeat."""
        seen = min(after, self.version)
        first = after == 0
        while True:
            changed = self._changed
            if self.version > seen or first:
                yield self.version, "update", self.changes_since(seen)
                seen, first = self.version, False
            if self.result is not None:
                yield self.version, "failed" if "error" in self.result else "done", self.result
                return
            try:
                await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
            except TimeoutError:
                yield seen, "", {}


S = TypeVar("S", bound=Stream)


class Streams(Generic[S]):
    """The streams of a product, by the id of what they write. For the event loop's thread only."""

    def __init__(self) -> None:
        self._streams: dict[str, S] = {}

    def check(self, user: str) -> None:
        """Raise ApiError 429 when this user has too many unfinished streams."""
        if sum(one.user == user and one.result is None for one in self._streams.values()) >= STREAMS_PER_USER:
            raise ApiError(
                429, f"{STREAMS_PER_USER} answers are being written already. Wait for one to end, or stop it."
            )

    def add(self, id: str, stream: S) -> S:
        """Register a new stream, and forget those that ended a while ago."""
        now = time.monotonic()
        old = [key for key, one in self._streams.items() if one.result is not None and now - one.ended > KEEP_SECONDS]
        for key in old:
            del self._streams[key]
        self._streams[id] = stream
        return stream

    def get(self, user: str, id: str) -> S | None:
        """The stream of this id if it is the user's."""
        found = self._streams.get(id)
        return found if found is not None and found.user == user else None

    def active(self, id: str) -> bool:
        """Whether this stream is unfinished."""
        found = self._streams.get(id)
        return found is not None and found.result is None

    async def stop(self, user: str, id: str) -> None:
        """End a user's stream, if it is unfinished."""
        found = self.get(user, id)
        if found is not None and found.result is None:
            await found.stop()

    async def close(self) -> None:
        """End all streams, and return when what they have is saved."""
        await asyncio.gather(*(one.stop("interrupted") for one in self._streams.values() if one.result is None))


def sse(version: int, event: str, data: dict[str, Any], **more: Any) -> str:
    """One server-sent event; without a name it is a heartbeat, which browsers ignore."""
    if not event:
        return ": heartbeat\n\n"
    text = json.dumps({**data, **more}, ensure_ascii=False, separators=(",", ":"))
    return f"id: {version}\nevent: {event}\ndata: {text}\n\n"


def event_response(events: AsyncGenerator[str]) -> StreamingResponse:
    """The response that sends these events."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream; charset=utf-8", headers=headers)


def _seen(after: int = 0, last_event_id: Annotated[int | None, Header()] = None) -> int:
    return last_event_id if last_event_id is not None else after


Seen = Annotated[int, Depends(_seen)]
"""The last event a reader has seen: its Last-Event-ID header, or the query parameter `after`."""
