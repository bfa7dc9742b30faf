"""The engine requests of one HTTP request: submitted on a thread, read on the event loop.

Closing the consumer, for whatever reason, cancels all of them; their KV blocks are free before the engine's next step.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from time import monotonic
from typing import TypeVar

from puna.core.errors import PunaError
from puna.engine.generate import Engine
from puna.engine.request import DeadlineError, EngineError, Request, TokenOutput
from puna.serve.backends.native.preprocess import Prepared
from puna.serve.backends.native.thread_bridge import Mailbox, ThreadBridge
from puna.web.errors import ApiError, bad_request

T = TypeVar("T")
Delivery = tuple[int, TokenOutput | Exception | None]
"""The index of the prompt, and what the engine delivered for it."""


class Generation:
    """The engine requests of one HTTP request. deadline: on time.monotonic's clock."""

    def __init__(self, engine: Engine, bridge: ThreadBridge, *, deadline: float | None, buffer: int) -> None:
        self._engine, self._deadline = engine, deadline
        self._box: Mailbox[Delivery] = Mailbox(bridge, limit=buffer, overflowed=self.close)
        self._closed = False
        self.requests: list[Request] = []

    def start(self, prepared: Sequence[Prepared]) -> None:
        """Submit all prompts, on any thread. Requests submitted after `close` are cancelled at once."""
        for number, one in enumerate(prepared):
            left = None if self._deadline is None else max(self._deadline - monotonic(), 0.001)
            request = self._engine.submit(
                one.ids, one.params, deadline_seconds=left, deliver=partial(self._deliver, number)
            )
            self.requests.append(request)
            if self._closed:
                request.cancel()

    async def batches(self) -> AsyncGenerator[list[tuple[int, TokenOutput]]]:
        """Steps as they arrive, batched. Raises ApiError for what ended a request."""
        left = len(self.requests)
        while left:
            deliveries = await self._box.take()
            if self._box.full:
                raise ApiError(503, "The client read too slowly, so its stream was ended.", code="slow_reader")
            steps: list[tuple[int, TokenOutput]] = []
            for number, item in deliveries:
                if item is None:
                    left -= 1
                elif isinstance(item, Exception):
                    raise failure(item)
                else:
                    steps.append((number, item))
            yield steps

    def close(self) -> None:
        """Cancel all requests."""
        self._closed = True
        for request in list(self.requests):
            request.cancel()

    def _deliver(self, number: int, item: TokenOutput | Exception | None) -> None:
        self._box.send((number, item))


def failure(error: Exception) -> ApiError:
    """The API error for what ended an engine request."""
    if isinstance(error, DeadlineError):
        # openai-python would retry, and it would take too long again.
        return ApiError(504, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, EngineError):
        return ApiError(500, str(error), code="engine_error")
    return bad_request(error) if isinstance(error, PunaError) else ApiError(500, "The server failed.")


async def in_thread(executor: Executor, seconds: float, work: Callable[[], T]) -> T:
    """Run work off the event loop.

    Raises ApiError for PunaError, and 504 when it takes too long.

    A thread cannot be stopped: work that takes too long ends later, and its result is dropped.
    """
    future = asyncio.get_running_loop().run_in_executor(executor, work)
    try:
        return await asyncio.wait_for(asyncio.shield(future), seconds)
    except TimeoutError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise ApiError(
            504,
            f"Preparing the request took longer than {seconds:g} seconds.",
            code="deadline_exceeded",
            headers={"x-should-retry": "false"},
        ) from None
    except asyncio.CancelledError:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise
    except PunaError as error:
        raise failure(error) from None
