"""The server between routes and models: admission, time limits, metrics and shutdown.

Every request for text, of the API and of products alike, goes through `Server.chat` or `Server.complete`: they find the
model, reject the request when there is no room or the server is shutting down, and enforce the time limit.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from time import monotonic
from typing import TypeVar

from puna.serve.backends.base import Backend, Health, Models
from puna.serve.metrics import Metrics
from puna.serve.openai.protocol import (
    ChatChunk,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    GenerationRequest,
)
from puna.serve.settings import Settings
from puna.serve.telemetry import Tracer
from puna.web.errors import ApiError

C = TypeVar("C", ChatChunk, CompletionChunk)


class Server:
    """The state of a running server."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings, self.models = settings, models
        self.metrics = Metrics(models)
        self.tracer = Tracer()
        self.draining = False
        self._in_flight: dict[str, int] = {}
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatChunk]:
        """The chunks of an answer; the last has usage and no choices.

        Closing it cancels. Raises ApiError.
        """
        backend = self.models.get(request.model)
        return self._run(backend, request, backend.chat)

    def complete(self, request: CompletionRequest) -> AsyncGenerator[CompletionChunk]:
        """The same for completions."""
        backend = self.models.get(request.model)
        return self._run(backend, request, backend.complete)

    async def embed(self, backend: Backend, request: EmbeddingRequest) -> EmbeddingResponse:
        """Embeddings of texts, which count as one sequence in the queue."""
        with self._admitted(backend, 1):
            return await backend.embed(request)

    def in_flight(self) -> int:
        """Sequences running or waiting."""
        return sum(self._in_flight.values())

    def health(self) -> Health:
        """The health of all models together: the worst of each."""
        states = [backend.health() for backend in self.models]
        reason = next((state.reason for state in states if state.reason), "")
        if self.draining:
            reason = "The server is shutting down."
        return Health(
            all(state.live for state in states),
            all(state.ready for state in states) and not self.draining,
            all(state.progressing for state in states),
            reason,
        )

    async def drain(self) -> None:
        """Reject new requests and wait for those in progress, for at most settings.drain_seconds."""
        self.draining = True
        end = monotonic() + self.settings.drain_seconds
        while self.in_flight() and monotonic() < end:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close products, then models."""
        self.draining = True
        for close in self._closing:
            await close()
        for backend in self.models:
            await backend.close()
        await asyncio.to_thread(self.tracer.close)

    def before_close(self, close: Callable[[], Awaitable[None]]) -> None:
        """Register something to close before the models."""
        self._closing.append(close)

    async def _run(
        self, backend: Backend, request: GenerationRequest, make: Callable[..., AsyncGenerator[C]]
    ) -> AsyncGenerator[C]:
        name, texts = backend.card.id, request.texts
        with self._admitted(backend, texts):
            watch = self.metrics.watch(name, texts)
            span = self.tracer.start(name, request)
            try:
                async with aclosing(make(request, deadline_seconds=self.settings.request_seconds)) as chunks:
                    async for chunk in chunks:
                        watch.chunk(chunk)
                        yield chunk
            except ApiError as error:
                watch.outcome = "error"
                span.failed(error)
                raise
            finally:
                watch.end()
                span.end(watch)

    @contextmanager
    def _admitted(self, backend: Backend, texts: int) -> Iterator[None]:
        """Hold places for so many sequences. Raises ApiError when there are none."""
        name = backend.card.id
        self._admit(backend, name, texts)
        self._in_flight[name] = self._in_flight.get(name, 0) + texts
        try:
            yield
        finally:
            self._in_flight[name] -= texts

    def _admit(self, backend: Backend, name: str, texts: int) -> None:
        if self.draining:
            raise ApiError(503, "The server is shutting down and accepts no new requests.", code="draining")
        health = backend.health()
        if not health.live:
            raise ApiError(503, health.reason or f"The model '{name}' is not available.", code="engine_dead")
        most = backend.capacity + self.settings.max_queue
        if texts > most:
            raise ApiError(
                400, f"The request asks for {texts} sequences, but there is room for at most {most}.", param="n"
            )
        if self._in_flight.get(name, 0) + texts > most:
            self.metrics.refused(name)
            raise ApiError(
                429,
                f"{backend.capacity} sequences are running and {self.settings.max_queue} are waiting. Try again later.",
                code="queue_full",
                headers={"retry-after": str(self.metrics.retry_after(name))},
            )
