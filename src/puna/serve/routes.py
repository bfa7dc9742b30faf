"""OpenAI's routes, as far as they are one request and one answer; /v1/responses has a module of its own."""

from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from puna import __version__
from puna.serve.answer import Events, Whole, event, wire_json
from puna.serve.auth import user
from puna.serve.body import read_body
from puna.serve.errors import ApiError
from puna.serve.fold import fold_chat, fold_completion
from puna.serve.protocol import (
    ChatChunk,
    ChatRequest,
    ChatResponse,
    CompletionChunk,
    CompletionRequest,
    CompletionResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    GenerationRequest,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from puna.serve.server import Server


def server_of(request: Request) -> Server:
    """The state of the server that a request came to."""
    server: Server = request.app.state.puna
    return server


Here = Annotated[Server, Depends(server_of)]
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 405, 408, 413, 415, 429, 500, 501, 502, 503, 504)
}
api = APIRouter(dependencies=[Depends(user)], responses=FAILURES)


def body_of(kind: type) -> dict[str, Any]:
    """How a route's body is described, which `read_body` reads itself."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@api.post("/v1/chat/completions", response_model=ChatResponse, openapi_extra=body_of(ChatRequest))
async def chat(request: Request, server: Here) -> Response:
    """Answer a dialogue."""
    asked = await read_body(request, ChatRequest)
    chunks = server.chat(asked)
    seconds = server.settings.write_seconds
    if asked.stream:
        return Events(_events(chunks, asked), write_seconds=seconds)
    return Whole(lambda: fold_chat(chunks), write_seconds=seconds)


@api.post("/v1/completions", response_model=CompletionResponse, openapi_extra=body_of(CompletionRequest))
async def complete(request: Request, server: Here) -> Response:
    """Continue one prompt or several."""
    asked = await read_body(request, CompletionRequest)
    chunks = server.complete(asked)
    seconds = server.settings.write_seconds
    if asked.stream:
        return Events(_events(chunks, asked), write_seconds=seconds)
    return Whole(lambda: fold_completion(chunks), write_seconds=seconds)


@api.post("/v1/embeddings", response_model=EmbeddingResponse, openapi_extra=body_of(EmbeddingRequest))
async def embeddings(request: Request, server: Here) -> Response:
    """Texts as vectors."""
    asked = await read_body(request, EmbeddingRequest)
    backend = server.models.get(asked.model)
    return _json(wire_json(await server.embed(backend, asked)))


@api.post("/tokenize", response_model=TokenizeResponse, openapi_extra=body_of(TokenizeRequest))
async def tokenize(request: Request, server: Here) -> Response:
    """A text or a dialogue as token ids."""
    asked = await read_body(request, TokenizeRequest)
    return _json(wire_json(await server.models.get(asked.model).tokenize(asked)))


@api.post("/detokenize", response_model=DetokenizeResponse, openapi_extra=body_of(DetokenizeRequest))
async def detokenize(request: Request, server: Here) -> Response:
    """Token ids as text."""
    asked = await read_body(request, DetokenizeRequest)
    return _json(wire_json(await server.models.get(asked.model).detokenize(asked)))


@api.get("/v1/models", response_model=ModelList)
async def models(server: Here) -> ModelList:
    """The models that are served."""
    return ModelList(data=[backend.card for backend in server.models])


@api.get("/v1/models/{name:path}", response_model=ModelCard)
async def model(name: str, server: Here) -> ModelCard:
    """One of them."""
    return server.models.get(name).card


@api.get("/version")
async def version() -> dict[str, str]:
    """Puna's version."""
    return {"version": __version__}


@api.get("/metrics")
async def metrics(server: Here) -> Response:
    """What was counted, for Prometheus."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


health = APIRouter(responses={503: {"model": ErrorResponse}})


@health.get("/health")
async def live(server: Here) -> dict[str, str]:
    """Whether a new start would help: 503 then."""
    state = server.health()
    return _state(state.live, state.reason)


@health.get("/ready")
async def ready(server: Here) -> dict[str, str]:
    """Whether requests may be sent here now."""
    state = server.health()
    return _state(state.ready, state.reason)


@health.get("/health/progress")
async def progress(server: Here) -> dict[str, str]:
    """Whether the engine gets on with what it has to do."""
    state = server.health()
    return _state(state.live and state.progressing, state.reason)


def _state(well: bool, reason: str) -> dict[str, str]:
    if not well:
        raise ApiError(503, reason or "The server cannot answer now.", code="unhealthy")
    return {"status": "ok"}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")


async def _events(
    chunks: AsyncGenerator[ChatChunk] | AsyncGenerator[CompletionChunk], asked: GenerationRequest
) -> AsyncGenerator[bytes]:
    """The events of a stream; usage only for who asked for it."""
    with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
    try:
        async for chunk in chunks:
            if chunk.choices or with_usage:
                yield event(chunk)
    finally:
        await chunks.aclose()
