"""A backend made from one function that yields text: the short way to serve a model that Puna does not run itself.

The function gets a `Prompt` and the request and yields pieces of the answer. `TextBackend` does the rest of OpenAI's
protocol: chunks, stop strings, max_tokens, the time limit, usage. Each piece counts as one token. What it cannot do
(several answers at once, log probabilities, tools, grammars, embeddings, tokenizing) is refused with a sentence; a
model that can do more implements `puna.serve.backends.base.Backend` itself.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, Literal, NamedTuple, TypeVar

from puna.serve.backends.base import Health
from puna.serve.openai.protocol import (
    ChatChunk,
    ChatChunkChoice,
    ChatRequest,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionRequest,
    Delta,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    FinishReason,
    GenerationRequest,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
    Usage,
    new_id,
    now,
)
from puna.web.errors import ApiError

R = TypeVar("R")


class Prompt(NamedTuple):
    """What is to be continued or answered.

    text: the prompt of a completion, or the last message of a dialogue. messages: the dialogue, each message with role
    and content; empty for a completion.
    """

    text: str
    messages: tuple[dict[str, str], ...] = ()


Generate = Callable[[Prompt, GenerationRequest], AsyncIterator[str]]
"""An asynchronous generator function: `async def f(prompt, request)` that yields pieces of text."""


class TextBackend:
    """One model, served under `name`.

    capacity: answers it writes at once; more have to wait. context: tokens of its context, None where nobody knows.
    stage: "chat" for a model that answers, "base" for one that continues. close: called when the server stops.
    """

    tokenizer = None

    def __init__(
        self,
        name: str,
        generate: Generate,
        *,
        capacity: int = 16,
        context: int | None = None,
        stage: Literal["base", "chat"] = "chat",
        close: Callable[[], None] | None = None,
    ) -> None:
        self.card = ModelCard(id=name, max_model_len=context, stage=stage)
        self.capacity = capacity
        self.choices = [f"{name}: text from {getattr(generate, '__name__', type(generate).__name__)}"]
        self._generate, self._close = generate, close
        self._running = 0

    async def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> AsyncGenerator[ChatChunk]:
        """See Backend."""
        _refuse(request, logprobs=bool(request.logprobs), tools=bool(request.tools), **_beyond(request))
        messages = tuple({"role": message.role, "content": message.text()} for message in request.messages)
        most = request.max_completion_tokens or request.max_tokens
        made: dict[str, Any] = {"id": new_id("chatcmpl"), "created": now(), "model": self.card.id}
        count = 0
        prompt = Prompt(messages[-1]["content"], messages)
        async with aclosing(self._pieces(prompt, request, most, deadline_seconds)) as it:
            async for text, reason in it:
                count += reason is None
                choice = ChatChunkChoice(
                    index=0, delta=Delta(role="assistant" if count == 1 else None, content=text), finish_reason=reason
                )
                yield ChatChunk(**made, choices=[choice])
        yield ChatChunk(**made, choices=[], usage=_usage(count))

    async def complete(
        self, request: CompletionRequest, *, deadline_seconds: float | None = None
    ) -> AsyncGenerator[CompletionChunk]:
        """See Backend."""
        prompts = request.prompts
        _refuse(
            request,
            logprobs=request.logprobs is not None,
            echo=bool(request.echo),
            prompt=len(prompts) != 1 or not isinstance(prompts[0], str),
            **_beyond(request),
        )
        made: dict[str, Any] = {"id": new_id("cmpl"), "created": now(), "model": self.card.id}
        count = 0
        pieces = self._pieces(Prompt(str(prompts[0])), request, request.max_tokens, deadline_seconds)
        async with aclosing(pieces) as it:
            async for text, reason in it:
                count += reason is None
                yield CompletionChunk(**made, choices=[CompletionChunkChoice(index=0, text=text, finish_reason=reason)])
        yield CompletionChunk(**made, choices=[], usage=_usage(count))

    async def _pieces(
        self, prompt: Prompt, request: GenerationRequest, most: int | None, seconds: float | None
    ) -> AsyncGenerator[tuple[str, FinishReason | None]]:
        """Pieces of the answer, then an empty one with the reason for its end."""
        end = None if seconds is None else monotonic() + seconds
        stops, open_text, count = request.stops, "", 0
        reason: FinishReason = "stop"
        self._running += 1
        source = self._generate(prompt, request)
        try:
            while True:
                try:
                    piece = await asyncio.wait_for(anext(source), None if end is None else max(0.0, end - monotonic()))
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise ApiError(504, f"The answer took longer than {seconds:g} seconds.", code="deadline_exceeded") \
                        from None  # fmt: skip
                count += 1
                open_text += piece
                place = min((at for stop in stops if (at := open_text.find(stop)) >= 0), default=-1)
                if place >= 0:
                    open_text = open_text[:place]
                    break
                held = _open_suffix(open_text, stops)
                yield open_text[: len(open_text) - held], None
                open_text = open_text[len(open_text) - held :]
                if most is not None and count >= most:
                    reason = "length"
                    break
            yield open_text, reason
        finally:
            self._running -= 1
            if isinstance(source, AsyncGenerator):
                await source.aclose()

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """See Backend."""
        raise self._unable("give embeddings")

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """See Backend."""
        raise self._unable("tokenize")

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """See Backend."""
        raise self._unable("detokenize")

    def _unable(self, what: str) -> ApiError:
        return ApiError(400, f"The model '{self.card.id}' cannot {what}.")

    def stats(self) -> dict[str, Any]:
        """See Backend."""
        return {"running": self._running, "waiting": 0}

    def health(self) -> Health:
        """See Backend."""
        return Health(True, True, True)

    async def close(self) -> None:
        """See Backend."""
        if self._close is not None:
            await asyncio.to_thread(self._close)


def _beyond(request: GenerationRequest) -> dict[str, bool]:
    """Which fields of any request ask for more than one plain text."""
    form = request.response_format
    return {
        "n": (request.n or 1) > 1,
        "response_format": form is not None and form.type != "text",
        "structured_outputs": request.structured_outputs is not None,
    }


def _refuse(request: GenerationRequest, **used: bool) -> None:
    """Raises ApiError for the first field that is used."""
    for name, given in used.items():
        if given:
            raise ApiError(400, f"{name} is not supported by the model '{request.model or 'served here'}'.", param=name)


def _usage(count: int) -> Usage:
    return Usage(prompt_tokens=0, completion_tokens=count, total_tokens=count)


def _open_suffix(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of a stop string."""
    longest = min(max(map(len, stops), default=1) - 1, len(text))
    sizes = (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in stops))
    return next(sizes, 0)
