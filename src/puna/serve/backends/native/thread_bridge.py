"""Hands items from the engine's thread to the event loop, with one wake-up for many.

Waking a loop from another thread costs a system call, so only the first item since the loop last looked wakes it; the
others are picked up on the way.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadBridge:
    """Delivers items to the mailboxes of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[Mailbox, object]] = deque()
        self._pending = False

    def send(self, box: "Mailbox[T]", item: T) -> None:
        """Put an item into a mailbox, from any thread, without waiting."""
        self._items.append((box, item))
        if not self._pending:
            self._pending = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed, so nobody reads
                self._items.clear()

    def _deliver(self) -> None:
        # Cleared first, so that items sent from here on wake the loop again.
        self._pending = False
        while self._items:
            box, item = self._items.popleft()
            box._take(item)


class Mailbox(Generic[T]):
    """The items of one consumer. limit: how many may wait; `overflowed` is called for one more."""

    def __init__(self, bridge: ThreadBridge, *, limit: int, overflowed: Callable[[], None]) -> None:
        self._bridge, self._limit, self._overflowed = bridge, limit, overflowed
        self._items: list[T] = []
        self._waiter: asyncio.Future[None] | None = None
        self.full = False
        """Whether items were dropped because the consumer was too slow."""

    def send(self, item: T) -> None:
        """Add an item, from any thread."""
        self._bridge.send(self, item)

    async def take(self) -> list[T]:
        """Wait for items and return all of them; at least one unless `full`."""
        while not self._items and not self.full:
            self._waiter = self._bridge.loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._items = self._items, []
        return items

    def _take(self, item: object) -> None:
        if self.full:
            return
        if len(self._items) >= self._limit:
            self.full = True
            self._items.clear()
            self._overflowed()
        else:
            self._items.append(item)  # type: ignore[arg-type]
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
