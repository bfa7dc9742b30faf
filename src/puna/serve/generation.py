"""The engine requests behind one HTTP request: started on a worker thread, their steps read on the event loop.

Whoever iterates `batches` is the consumer; when it is closed, for whatever reason, all requests are cancelled and their
pages are free before the engine's next step.
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
from puna.serve.bridge import Bridge, Mailbox
from puna.serve.errors import ApiError, bad_request
from puna.serve.prepare import Prepared

T = TypeVar("T")
Delivery = tuple[int, TokenOutput | Exception | None]
"""Number of the prompt, and what the engine brought for it."""


class Generation:
    """Prompts on their way through the engine. deadline: on time.monotonic's clock."""

    def __init__(self, engine: Engine, bridge: Bridge, *, deadline: float | None, buffer: int) -> None:
        self._engine, self._deadline = engine, deadline
        self._box: Mailbox[Delivery] = Mailbox(bridge, limit=buffer, overflowed=self.close)
        self._closed = False
        self.requests: list[Request] = []

    def start(self, prepared: Sequence[Prepared]) -> None:
        """Hand all prompts to the engine. On any thread; what was closed in the meantime is not left running."""
        for number, one in enumerate(prepared):
            left = None if self._deadline is None else max(self._deadline - monotonic(), 0.001)
            request = self._engine.submit(
                one.ids, one.params, deadline_seconds=left, deliver=partial(self._deliver, number)
            )
            self.requests.append(request)
            if self._closed:
                request.cancel()

    async def batches(self) -> AsyncGenerator[list[tuple[int, TokenOutput]]]:
        """Steps as they come, those that came together as one list. Raises ApiError for what ended a request."""
        left = len(self.requests)
        while left:
            deliveries = await self._box.take()
            if self._box.full:
                raise ApiError(503, "The reader was too slow, and its stream was ended.", code="slow_reader")
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
        """Nobody reads any more."""
        self._closed = True
        for request in list(self.requests):
            request.cancel()

    def _deliver(self, number: int, item: TokenOutput | Exception | None) -> None:
        self._box.send((number, item))


def failure(error: Exception) -> ApiError:
    """What the engine says ended a request, with its status."""
    if isinstance(error, DeadlineError):
        # openai-python would try again what takes too long, and it would again.
        return ApiError(504, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, EngineError):
        return ApiError(500, str(error), code="engine_error")
    return bad_request(error) if isinstance(error, PunaError) else ApiError(500, "The server failed.")


async def in_thread(executor: Executor, seconds: float, work: Callable[[], T]) -> T:
    """Run work that may take a while off the event loop. Raises ApiError for PunaError, and 504 when it takes too long.

    A thread cannot be stopped: work that takes too long ends later, unheard.
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
