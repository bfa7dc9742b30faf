"""OpenAI's routes, health and metrics; /v1/responses has a package of its own."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from puna.serve.openai.aggregate import aggregate_chat, aggregate_completion
from puna.serve.openai.protocol import (
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    CompletionResponse,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorResponse,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
)
from puna.serve.openai.streaming import stream
from puna.serve.server import Server
from puna.version import __version__
from puna.web.access import public, signed_in
from puna.web.auth import user
from puna.web.errors import ApiError
from puna.web.request_body import read_body
from puna.web.responses import WholeResponse, to_json


def server_of(request: Request) -> Server:
    """FastAPI dependency: the server of a request."""
    server: Server = request.app.state.puna
    return server


ServerDep = Annotated[Server, Depends(server_of)]
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 404, 405, 408, 413, 415, 429, 500, 501, 502, 503, 504)
}
api = APIRouter(dependencies=[Depends(user)], responses=FAILURES)


def body_of(kind: type) -> dict[str, Any]:
    """The OpenAPI description of a body that a route reads with `read_body`."""
    schema = {"$ref": f"#/components/schemas/{kind.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@api.post("/v1/chat/completions", response_model=ChatResponse, openapi_extra=body_of(ChatRequest))
@signed_in
async def chat(request: Request, server: ServerDep) -> Response:
    """Generate an answer to a dialogue."""
    asked = await read_body(request, ChatRequest)
    chunks = server.chat(asked)
    seconds = server.settings.write_seconds
    if asked.stream:
        return stream(chunks, asked, write_seconds=seconds)
    return WholeResponse(lambda: aggregate_chat(chunks), write_seconds=seconds)


@api.post("/v1/completions", response_model=CompletionResponse, openapi_extra=body_of(CompletionRequest))
@signed_in
async def complete(request: Request, server: ServerDep) -> Response:
    """Continue one or more prompts."""
    asked = await read_body(request, CompletionRequest)
    chunks = server.complete(asked)
    seconds = server.settings.write_seconds
    if asked.stream:
        return stream(chunks, asked, write_seconds=seconds)
    return WholeResponse(lambda: aggregate_completion(chunks), write_seconds=seconds)


@api.post("/v1/embeddings", response_model=EmbeddingResponse, openapi_extra=body_of(EmbeddingRequest))
@signed_in
async def embeddings(request: Request, server: ServerDep) -> Response:
    """Compute embeddings of texts."""
    asked = await read_body(request, EmbeddingRequest)
    backend = server.models.get(asked.model)
    return _json(to_json(await server.embed(backend, asked)))


@api.post("/tokenize", response_model=TokenizeResponse, openapi_extra=body_of(TokenizeRequest))
@signed_in
async def tokenize(request: Request, server: ServerDep) -> Response:
    """Convert a text or a dialogue to token ids."""
    asked = await read_body(request, TokenizeRequest)
    return _json(to_json(await server.models.get(asked.model).tokenize(asked)))


@api.post("/detokenize", response_model=DetokenizeResponse, openapi_extra=body_of(DetokenizeRequest))
@signed_in
async def detokenize(request: Request, server: ServerDep) -> Response:
    """Convert token ids to text."""
    asked = await read_body(request, DetokenizeRequest)
    return _json(to_json(await server.models.get(asked.model).detokenize(asked)))


@api.get("/v1/models", response_model=ModelList)
@api.get("/v1/models/", response_model=ModelList, include_in_schema=False)
@signed_in
async def models(server: ServerDep) -> ModelList:
    """List the models."""
    return ModelList(data=[backend.card for backend in server.models])


@api.get("/v1/models/{name:path}", response_model=ModelCard)
@signed_in
async def model(name: str, server: ServerDep) -> ModelCard:
    """Describe one model."""
    return server.models.get(name).card


@api.get("/version")
@signed_in
async def version() -> dict[str, str]:
    """Return Puna's version."""
    return {"version": __version__}


@api.get("/metrics")
@signed_in
async def metrics(server: ServerDep) -> Response:
    """Return metrics in Prometheus' format."""
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


health = APIRouter(responses={503: {"model": ErrorResponse}})


@health.get("/health")
@public
async def live(server: ServerDep) -> dict[str, str]:
    """Liveness: 503 when only a restart would help."""
    state = server.health()
    return _state(state.live, state.reason)


@health.get("/ready")
@public
async def ready(server: ServerDep) -> dict[str, str]:
    """Readiness: 503 when requests should not be sent here now."""
    state = server.health()
    return _state(state.ready, state.reason)


@health.get("/health/progress")
@public
async def progress(server: ServerDep) -> dict[str, str]:
    """Progress: 503 when the engine is busy but finishes no step."""
    state = server.health()
    return _state(state.live and state.progressing, state.reason)


def _state(well: bool, reason: str) -> dict[str, str]:
    if not well:
        raise ApiError(503, reason or "The server cannot answer now.", code="unhealthy")
    return {"status": "ok"}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
