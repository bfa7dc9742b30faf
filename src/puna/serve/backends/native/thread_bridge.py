"""The way from the engine's thread to asyncio: tokens of many requests, one wake-up of the loop.

The engine delivers token after token on its own thread. Waking a loop from another thread costs a system call, so only
the first token since the loop last looked does it; all others are found on the way.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadBridge:
    """Brings items to the mailboxes of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: deque[tuple[Mailbox, object]] = deque()
        self._pending = False

    def send(self, box: "Mailbox[T]", item: T) -> None:
        """Put an item into a mailbox. From any thread; never waits."""
        self._items.append((box, item))
        if not self._pending:
            self._pending = True
            try:
                self.loop.call_soon_threadsafe(self._bring)
            except RuntimeError:  # the loop is closed: nobody reads any more
                self._items.clear()

    def _bring(self) -> None:
        # Before the look: what is sent from here on wakes the loop again.
        self._pending = False
        while self._items:
            box, item = self._items.popleft()
            box._take(item)


class Mailbox(Generic[T]):
    """Where one consumer finds its items. limit: how many may lie there; `overflowed` is called at one more."""

    def __init__(self, bridge: ThreadBridge, *, limit: int, overflowed: Callable[[], None]) -> None:
        self._bridge, self._limit, self._overflowed = bridge, limit, overflowed
        self._items: list[T] = []
        self._waiter: asyncio.Future[None] | None = None
        self.full = False
        """Items were lost: the consumer was too slow."""

    def send(self, item: T) -> None:
        """From any thread."""
        self._bridge.send(self, item)

    async def take(self) -> list[T]:
        """All items that lie there, at least one unless `full`."""
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
