"""Another server as a backend: vLLM, llama.cpp's llama-server, or any with OpenAI's API.

Requests are mapped to what that server understands (`request_mapping`) and always sent as streams; its events are
parsed, validated as our own chunks, and passed on. So limits, errors, metrics and pages are ours whatever computes. The
key for it is read only from the environment variable PUNA_UPSTREAM_KEY.
"""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from puna.core.errors import PunaError
from puna.serve.backends.base import Health
from puna.serve.backends.upstream import parse, request_mapping
from puna.serve.backends.upstream.health_probe import Probe
from puna.serve.backends.upstream.launch import Child
from puna.serve.backends.upstream.sse import events
from puna.serve.openai.objects import construct
from puna.serve.openai.protocol import (
    ChatChunk,
    ChatRequest,
    CompletionChunk,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ModelCard,
    TokenizeRequest,
    TokenizeResponse,
    Usage,
    new_id,
    now,
)
from puna.serve.settings import Settings
from puna.text.tokenizer import Tokenizer
from puna.web.errors import ApiError

C = TypeVar("C", ChatChunk, CompletionChunk)
T = TypeVar("T")
CONNECT_SECONDS = 20.0
"""A busy server on a busy machine may take some seconds to accept a connection (vLLM, 200 at once)."""
NO_RETRY = {"x-should-retry": "false"}


class UpstreamBackend:
    """One model of another server.

    name: its name here, and there unless `upstream_name` is given.

    Without a name it is that server's first model. Raises PunaError when the server answers and has no such model.
    """

    tokenizer: Tokenizer | None = None

    def __init__(
        self,
        kind: request_mapping.UpstreamKind,
        url: str,
        name: str,
        settings: Settings,
        *,
        upstream_name: str | None = None,
        capacity: int = 64,
        child: Child | None = None,
    ) -> None:
        self.kind, self.url, self.settings, self.capacity = kind, root_of(url), settings, capacity
        self._child = child
        key = child.key if child else os.environ.get("PUNA_UPSTREAM_KEY", "")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        # No netrc, and no proxy from the environment.
        self._tls = ssl.create_default_context()
        self._probe = Probe(kind, self.url, self._headers, self._tls)
        try:
            self._upstream_name = parse.upstream_model_name(self._probe.models, upstream_name or name, kind, self.url)
        except PunaError:
            self._probe.close()
            raise
        self._card = ModelCard(id=name or self._upstream_name, owned_by=kind)
        self.choices = [f"{self._card.id} is computed by {kind} at {self.url}."]
        if self._probe.trouble():
            self.choices.append(self._probe.trouble())
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = 0
        self._closed = False

    @property
    def card(self) -> ModelCard:
        context = parse.context_of(self._probe.models, self._upstream_name)
        return self._card.model_copy(update={"max_model_len": context}) if context else self._card

    async def chat(self, request: ChatRequest, *, deadline_seconds: float | None = None) -> AsyncGenerator[ChatChunk]:
        """See Backend."""
        request_mapping.check_bias(request, self._probe.models)
        body = request_mapping.chat_body(request, self.kind, self._upstream_name)
        begun: set[int] = set()

        def read(event: dict[str, Any]) -> ChatChunk:
            return ChatChunk.model_validate(parse.chat_event(event, self._card.id, begun, request))

        admitted = ChatChunk(id=new_id("chatcmpl"), created=now(), model=self._card.id, choices=[])
        stream = self._stream("/v1/chat/completions", body, read, admitted, request, deadline_seconds)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(
        self, request: CompletionRequest, *, deadline_seconds: float | None = None
    ) -> AsyncGenerator[CompletionChunk]:
        """See Backend."""
        request_mapping.check_bias(request, self._probe.models)
        body = request_mapping.completion_body(request, self.kind, self._upstream_name)
        offsets: dict[int, int] = {}

        def read(event: dict[str, Any]) -> CompletionChunk:
            return CompletionChunk.model_validate(parse.completion_event(event, self._card.id, offsets, request))

        admitted = CompletionChunk(id=new_id("cmpl"), created=now(), model=self._card.id, choices=[])
        stream = self._stream("/v1/completions", body, read, admitted, request, deadline_seconds)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(self, request: EmbeddingRequest) -> EmbeddingResponse:
        """See Backend."""
        body = {**request.model_dump(exclude_unset=True, exclude_none=True), "model": self._upstream_name}
        answer = await self._ask("/v1/embeddings", body)
        return self._checked(lambda: EmbeddingResponse.model_validate({**answer, "model": self._card.id}))

    async def tokenize(self, request: TokenizeRequest) -> TokenizeResponse:
        """See Backend. Raises ApiError 501 where the other server has no such route."""
        self._has_tokenizer()
        if self.kind == "vllm":
            body = {**request.model_dump(exclude_unset=True), "model": self._upstream_name}
            if request.continue_final_message:
                body["add_generation_prompt"] = False
            answer = await self._ask("/tokenize", body)
            return self._checked(lambda: TokenizeResponse.model_validate(answer))
        text = request.prompt
        if request.messages is not None:
            asked = request.model_dump(exclude_unset=True, include={"messages", "tools", "add_generation_prompt"})
            rendered = await self._ask("/apply-template", asked)
            text = self._checked(lambda: str(rendered["prompt"]))
        body = {"content": text, "add_special": request.add_special_tokens, "with_pieces": request.return_token_strs}
        answer = await self._ask("/tokenize", body)
        return self._checked(lambda: parse.llama_tokens(answer, self.card.max_model_len or 0))

    async def detokenize(self, request: DetokenizeRequest) -> DetokenizeResponse:
        """See Backend."""
        self._has_tokenizer()
        answer = await self._ask("/detokenize", {"model": self._upstream_name, "tokens": request.tokens})
        key = "prompt" if self.kind == "vllm" else "content"
        return self._checked(lambda: DetokenizeResponse(prompt=answer[key]))

    def stats(self) -> dict[str, Any]:
        """Requests in progress."""
        return {"running": self._running}

    def health(self) -> Health:
        """The other server's health as last polled, or as the last request found it."""
        if self._closed:
            return Health(False, False, False, "The connection to the upstream server is closed.")
        if self._child is not None and not self._child.alive():
            return Health(False, False, False, f"{self.kind} has exited; see {self._child.log}.")
        reason = self._probe.trouble()
        return Health(True, not reason, not reason, reason)

    async def close(self) -> None:
        """Close the connections, and end the other server if it is a child process."""
        self._closed = True
        self._probe.close()
        if self._client is not None and self._loop is asyncio.get_running_loop():
            await self._client.aclose()
        if self._child is not None:
            await asyncio.to_thread(self._child.close)

    async def _stream(
        self,
        path: str,
        body: dict[str, Any],
        read: Callable[[dict[str, Any]], C],
        admitted: C,
        request: ChatRequest | CompletionRequest,
        deadline_seconds: float | None,
    ) -> AsyncGenerator[C]:
        """The chunks of an answer; the last always has usage and no choices."""
        end = None if deadline_seconds is None else monotonic() + deadline_seconds
        self._running += request.texts
        open_sequences = set(range(request.texts))
        last: C | None = None
        used: list[Usage] = []
        response: httpx.Response | None = None
        try:
            response = await self._within(end, self._send(path, body, stream=True))
            if response.status_code != 200:
                await self._within(end, response.aread())
                raise self._refused(response)
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise self._broken("did not answer with a stream")
            yield admitted
            async with aclosing(events(response.aiter_bytes())) as found:
                while (event := await self._within(end, anext(found, None))) is not None:
                    chunk = self._chunk(event, read)
                    last = chunk
                    used += [chunk.usage] if chunk.usage else []
                    open_sequences -= {choice.index for choice in chunk.choices if choice.finish_reason}
                    if chunk.choices:
                        # Usage is sent once, at the end.
                        chunk.usage = None
                        chunk.__pydantic_fields_set__.discard("usage")
                        yield chunk
            if last is None or open_sequences:
                raise self._broken("broke off its answer")
            kind = type(last)
            head = {"id": last.id, "object": last.object, "created": last.created, "model": last.model}
            usage = parse.whole_usage(used, self.kind, request)
            yield construct(kind, **head, system_fingerprint=last.system_fingerprint, choices=[], usage=usage)
        finally:
            self._running -= request.texts
            if response is not None:
                await response.aclose()

    def _chunk(self, event: bytes, read: Callable[[dict[str, Any]], C]) -> C:
        try:
            value = json.loads(event)
        except ValueError:
            raise self._broken("sent invalid JSON") from None
        if isinstance(value, dict) and value.get("error"):
            found = parse.error_of(value)
            status = found.status if 400 <= found.status < 600 else 500
            raise ApiError(status, found.message, type=found.type, param=found.param, code=found.code)
        return self._checked(lambda: read(value))

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request and return its JSON object."""
        end = monotonic() + self.settings.request_seconds
        response = await self._within(end, self._send(path, body, stream=False))
        if response.status_code != 200:
            raise self._refused(response)
        try:
            answer = response.json()
        except ValueError:
            raise self._broken("sent invalid JSON") from None
        if not isinstance(answer, dict):
            raise self._broken("sent something other than a JSON object")
        return answer

    async def _send(self, path: str, body: dict[str, Any], *, stream: bool) -> httpx.Response:
        client = self._connected()
        content = json.dumps(body, allow_nan=False).encode()
        headers = {"content-type": "application/json", **self._headers}

        def asked() -> httpx.Request:
            return client.build_request("POST", path, content=content, headers=headers)

        try:
            return await client.send(asked(), stream=stream)
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            # The server may close a kept connection just as it is used again. Nothing was answered yet, so retry.
            return await client.send(asked(), stream=stream)

    async def _within(self, end: float | None, work: Awaitable[T]) -> T:
        """Wait for the other server until `end` at most.

        Raises ApiError for connection errors and timeouts.
        """
        try:
            async with asyncio.timeout(None if end is None else max(end - monotonic(), 0)):
                result = await work
        except (httpx.ConnectError, httpx.ConnectTimeout):
            self._probe.failed("cannot be reached")
            raise ApiError(
                503,
                f"The upstream server ({self.kind}) cannot be reached.",
                code="upstream_unreachable",
                headers={"retry-after": "2"},
            ) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ApiError(
                504,
                f"The upstream server ({self.kind}) took too long.",
                code="deadline_exceeded",
                headers=NO_RETRY,
            ) from None
        except httpx.TransportError:
            raise self._broken("broke off its answer") from None
        except ValueError as error:
            raise self._broken(str(error)) from None
        return result

    def _refused(self, response: httpx.Response) -> ApiError:
        """The other server's error as ours. A wrong key or address is not the client's fault."""
        status = response.status_code
        if status in (401, 403):
            message = f"The upstream server ({self.kind}) rejects our key: check PUNA_UPSTREAM_KEY."
            return ApiError(502, message, code="upstream_key", headers=NO_RETRY)
        try:
            found = parse.error_of(response.json())
        except (ValueError, TypeError):
            if status == 429:
                found = parse.UpstreamError(
                    429, "The upstream server has no capacity now. Try again.", None, None, None
                )
            elif status == 503:
                found = parse.UpstreamError(503, "The upstream server cannot answer now.", None, None, None)
            else:
                return self._broken(f"answered {status} without saying why")
        kept = {name: response.headers[name] for name in parse.KEPT_HEADERS if name in response.headers}
        return ApiError(
            parse.status_of(status), found.message, type=found.type, param=found.param, code=found.code, headers=kept
        )

    def _broken(self, what: str) -> ApiError:
        return ApiError(502, f"The upstream server ({self.kind}) {what}.", code="upstream_failed")

    def _checked(self, read: Callable[[], T]) -> T:
        """Raise ApiError when what the server sent does not follow the protocol."""
        try:
            return read()
        except (ValidationError, KeyError, TypeError, AttributeError, ValueError):
            raise self._broken("sent something that its protocol does not allow") from None

    def _has_tokenizer(self) -> None:
        if self.kind == "openai":
            raise ApiError(501, "OpenAI's API has no tokenizer, so this backend cannot do that.", code="not_supported")

    def _connected(self) -> httpx.AsyncClient:
        """The HTTP client of this event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:
            self._loop = loop
            self._client = httpx.AsyncClient(
                base_url=self.url,
                timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                verify=self._tls,
                trust_env=False,
            )
        return self._client


def root_of(url: str) -> str:
    """The address of a server, without /v1. Raises PunaError when it is not one."""
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL("")
    if parts.scheme not in ("http", "https") or not parts.host or "%" in parts.host:
        raise PunaError(f"--upstream {url} is not an address.", "Give one such as http://localhost:8001.")
    return str(parts).rstrip("/").removesuffix("/v1").rstrip("/")
